"""What the journal of a project's only run says, also while a training writes it."""

from itertools import pairwise
from pathlib import Path

from dmx.tracking.journal import Entry, read_entries
from tests.faults.server import until


def entries(root: Path) -> list[Entry]:
    journal = next((root / "mlruns/local").glob("*/journal.jsonl"), None)
    return [entry for entry, _ in read_entries(journal)] if journal else []


def step_times(root: Path) -> list[int]:
    """Return when each step was logged, in milliseconds."""
    found = [entry for entry in entries(root) if entry["do"] == "metrics"]
    return [entry["time"] for entry in found if "train/loss" in entry["values"]]


def reach(root: Path, step: int) -> None:
    """Wait until a training has done so many steps."""
    until(lambda: len(step_times(root)) >= step, 90, f"step {step}")


def longest_pause(root: Path, pace: float) -> float:
    """Return the longest time between two steps beyond the pace, in seconds."""
    return max(after - before for before, after in pairwise(step_times(root))) / 1000 - pace
