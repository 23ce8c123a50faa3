"""A project with a cohort and a trained run, and a way to call the command in this process and see what it left."""

import io
import os
import re
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from dmx.cohort.grid import NiftiGrid
from dmx.cohort.volume import write_volume
from dmx.config.load import as_dict
from tests.workflows.conftest import make_manifest, settings

SHAPE = (16, 18, 14)
# What a command may leave wherever it is called: a lock beside the store, SQLite's own files.
_HARMLESS = (".mlflow.db.lock", "mlflow.db-wal", "mlflow.db-shm", "mlflow.db", ".gitignore")


@dataclass
class Outcome:
    """What a command came to."""

    code: int
    out: str
    err: str
    crash: str = ""

    @property
    def said(self) -> str:
        """Everything that a person sees, line ends and table lines left out."""
        return " ".join(self.err.replace("│", " ").split())


@dataclass
class World:
    """A project; ``here`` of a bad input is a folder of its own in it."""

    root: Path
    run_id: str = ""
    count: int = 0
    grid: NiftiGrid = field(init=False)

    def __post_init__(self) -> None:
        affine = np.diag([-1.0, 1.0, 2.0, 1.0])
        affine[0, 3] = 15.0
        self.grid = NiftiGrid.from_affine(SHAPE, affine)

    @property
    def manifest(self) -> Path:
        return self.root / "cohort.csv"

    @property
    def experiment(self) -> Path:
        return self.root / "balls.yaml"

    @property
    def database(self) -> Path:
        return self.root / "mlruns/mlflow.db"

    def build(self) -> None:
        """Make the cohort and the experiment; one epoch of one step, so that a refusal that is missing costs little."""
        make_manifest(self.root)
        small = settings(
            self.manifest,
            training={"epochs": 1, "steps_per_epoch": 1, "batch_size": 2},
            validation={"segments": 2, "volumes_every_epochs": 0, "overlays": 0},
        )
        self.experiment.write_text(yaml.safe_dump(as_dict(small)))

    def here(self) -> Path:
        """Return a new empty folder."""
        self.count += 1
        folder = self.root / f"bad/{self.count:04d}"
        folder.mkdir(parents=True)
        return folder

    def scan(self, path: Path, value: np.ndarray | None = None) -> Path:
        """Write a scan that nothing is wrong with."""
        array = np.random.default_rng(7).normal(size=SHAPE) if value is None else value
        write_volume(path, array.astype(np.float32), self.grid, dtype=np.float32)
        return path

    def cohort_with(self, here: Path, column: str, file: str, *, classes: str = "background, ball") -> Path:
        """Write a manifest whose first case has another file in a column; the rest of it is sound."""
        rows = []
        for index, split in enumerate(("training", "training", "validation", "evaluation")):
            cells = {
                "case": f"case_{index}",
                "subject": f"s{index}",
                "channel_t1": str(self.root / f"scans/t1_{index}.nii.gz"),
                "label_map": str(self.root / f"scans/label_{index}.nii.gz"),
                "roi": "",
                "weight_w": "",
                "split": split,
            }
            if index == 0:
                cells[column] = file
            rows.append(cells)
        lines = [f"# classes: {classes}", ",".join(rows[0]), *(",".join(cells.values()) for cells in rows)]
        path = here / "cohort.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    def runs(self) -> int:
        with closing(sqlite3.connect(self.database)) as connection:
            return int(connection.execute("select count(*) from runs").fetchone()[0])

    def tree(self) -> dict[str, int]:
        """Return all files of the project with their sizes, without those that change when a store is opened."""
        found = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                if name not in _HARMLESS:
                    found[str(path.relative_to(self.root))] = path.lstat().st_size
        return found

    def call(self, *words: str | Path) -> Outcome:
        """Call the command in this process."""
        from dmx.cli.main import main

        out, err = io.StringIO(), io.StringIO()
        code, crash = 0, ""
        before = sys.argv
        sys.argv = ["dmx", *map(str, words)]
        try:
            with _inside(self.root), redirect_stdout(out), redirect_stderr(err):
                main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            code, crash = 1, traceback.format_exc()
        finally:
            sys.argv = before
        return Outcome(code, out.getvalue(), err.getvalue(), crash)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@dataclass(frozen=True)
class Bad:
    """One bad input.

    Attributes:
        name: What is wrong.
        words: The command; ``{here}`` is the folder of its files, ``{run}`` the trained run.
        parts: What the sentence must name; ``a|b``: one of them.
        make: Writes the files.
    """

    name: str
    words: tuple[str, ...]
    parts: tuple[str, ...] = ()
    make: Callable[[World, Path], object] = lambda world, here: None


def problems(world: World, bad: Bad) -> list[str]:
    """Call the command with a bad input and return what was not as it must be."""
    here = world.here()
    bad.make(world, here)
    places = {"{here}": str(here), "{run}": world.run_id, "{root}": str(world.root)}
    words = [_placed(word, places) for word in bad.words]
    files, runs = world.tree(), world.runs()
    done = world.call(*words)
    # The check of a cohort lists all findings in a table instead of one sentence.
    listed = words[:2] == ["cohort", "check"] and done.code == 2 and not done.err
    said = " ".join(done.out.replace("│", " ").split()) if listed else done.said
    found = []
    if done.code != 2:
        found.append(f"exit code {done.code}: {done.crash[-1500:] or done.said[-300:] or done.out[-300:]}")
    if "Traceback" in done.err + done.out:
        found.append("a traceback")
    if not listed and done.code == 2:
        found += _wording(said)
    if listed and "error" not in said:
        found.append(f"no finding: {said}")
    if not done.crash:
        wanted = [_placed(part, places).split("|") for part in bad.parts]
        found += [f"{one} is not in: {said[-600:]}" for one in wanted if not any(word in said for word in one)]
    if new := sorted(world.tree().keys() - files.keys()):
        found.append(f"files left behind: {new[:5]}")
    if world.runs() != runs:
        found.append("a run was made")
    return found


def _wording(said: str) -> list[str]:
    """Return what is wrong with the words of a refusal: one sentence (or a few), and nothing else."""
    _, sign, sentence = said.rpartition("Error: ") if "Error: " in said else said.rpartition("─ Error ")
    if not sign:
        return [f"no sentence: {said[-300:]!r}"]
    found = []
    if len(re.findall(r"(?<!\w)Error: ", said)) > 1:
        found.append(f"several errors: {said}")
    if sign == "Error: " and not sentence.rstrip().endswith((".", "?", ")")):
        found.append(f"no end of a sentence: {sentence[-200:]!r}")
    if len(sentence) > 1500:
        found.append(f"{len(sentence)} characters")
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in sentence):
        found.append(f"control characters: {sentence[-300:]!r}")
    return found


def _placed(word: str, places: dict[str, str]) -> str:
    for sign, place in places.items():
        word = word.replace(sign, place)
    return word
