"""Whom a network has seen, and which held-out cases leak."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from dmx.cohort.case import Case
from dmx.errors import CohortError, RunError
from dmx.tracking.store import RunInfo, RunReader
from dmx.workflows.identity import IDENTITY, ancestors, cannot_tell, find_leaks, identity, require_no_leak

BLANK = RunInfo(
    id="", name="", experiment="study", experiment_id="1", status="FINISHED", started=0, ended=0, artifact_uri=""
)


class Runs:
    """A store of runs that only exist as folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[str, RunInfo] = {}

    def add(self, name: str, seen: dict[str, Any] | None, **tags: str) -> RunInfo:
        self.runs[name] = replace(BLANK, id=name, name=name, tags={"dmx.kind": "train", **tags})
        place = self.folder / name / IDENTITY
        place.parent.mkdir(parents=True)
        if seen is not None:
            place.write_text(json.dumps(seen))
        return self.runs[name]

    def get_run(self, run_id: str) -> RunInfo:
        if run_id not in self.runs:
            raise RunError("gone")
        return self.runs[run_id]

    def local_artifacts(self, run_id: str) -> Path:
        return self.folder / run_id


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setenv("DMX_CACHE_DIR", str(tmp_path / "facts"))
    return Runs(tmp_path)


def case(folder: Path, subject: str, scan: str) -> Case:
    """Return a case whose scan has its name as content."""
    path = folder / f"{scan}.nii"
    path.write_text(scan)
    return Case(name=f"{subject}-{scan}", subject=subject, channels={"t1": path}, label_map=None)


def leaks(runs: Runs, run: RunInfo, cohort: str, *cases: Case) -> list[tuple[str, str, str, str]]:
    found, _ = find_leaks(cast(RunReader, runs), run, cohort=cohort, cases=cases)
    return [(leak.case, leak.run.id, leak.split, leak.reason) for leak in found]


def test_a_subject_counts_within_its_cohort_and_a_scan_everywhere(runs: Runs, tmp_path: Path) -> None:
    seen = identity("a", {"training": [case(tmp_path, "sub-01", "one")], "validation": []})
    run = runs.add("first", seen)
    assert leaks(runs, run, "a", case(tmp_path, "sub-01", "two")) == [("sub-01-two", "first", "training", "subject")]
    assert leaks(runs, run, "b", case(tmp_path, "sub-01", "two")) == []
    assert leaks(runs, run, "b", case(tmp_path, "sub-07", "one")) == [("sub-07-one", "first", "training", "scan")]


def test_every_ancestor_counts(runs: Runs, tmp_path: Path) -> None:
    for name in ("x", "y"):
        runs.add(name, identity("a", {"training": [case(tmp_path, name, name)], "validation": []}))
    both = '[{"run": "x", "checkpoint": "c", "share": 0.6}, {"run": "y", "checkpoint": "c", "share": 0.4}]'
    nobody = identity("a", {"training": [], "validation": []})
    runs.add("middle", nobody, **{"dmx.source_run_id": "x", "dmx.sources": both})
    last = runs.add("last", nobody, **{"dmx.source_run_id": "middle"})
    assert [run.id for run in ancestors(cast(RunReader, runs), last)] == ["last", "middle", "x", "y"]
    assert leaks(runs, last, "a", case(tmp_path, "y", "new")) == [("y-new", "y", "training", "subject")]
    orphan = runs.add("orphan", nobody, **{"dmx.source_run_id": "gone"})
    assert [run.id for run in ancestors(cast(RunReader, runs), orphan)] == ["orphan"]


def test_what_was_validated_on_is_a_note_and_what_was_trained_on_an_error(runs: Runs, tmp_path: Path) -> None:
    one, two = case(tmp_path, "s1", "one"), case(tmp_path, "s2", "two")
    run = runs.add("first", identity("a", {"training": [one], "validation": [two]}))
    reader = cast(RunReader, runs)
    validated, _ = find_leaks(reader, run, cohort="a", cases=[two])
    assert require_no_leak(validated, allowed=False) == (
        ["1 held-out cases were validation cases of the network or its sources."],
        {},
    )
    trained, _ = find_leaks(reader, run, cohort="a", cases=[one, two])
    with pytest.raises(CohortError, match=r"s1-one \(same subject in first\).*--allow-leak"):
        require_no_leak(trained, allowed=False)
    notes, tags = require_no_leak(trained, allowed=True)
    assert tags == {"dmx.leak": "1"}
    assert len(notes) == 2


def test_what_is_not_known_is_named_and_an_untrained_network_has_seen_nobody(runs: Runs, tmp_path: Path) -> None:
    runs.add("import", None, **{"dmx.kind": "import", "dmx.source_file": "model.ckpt"})
    seen = identity("a", {"training": [case(tmp_path, "s1", "one")], "validation": []})
    tags = {"dmx.source_run_id": "import", "dmx.source_file": "w.pth", "dmx.optimizer_state": "none: not trained"}
    moved = runs.add("moved", seen, **{**tags, "dmx.kind": "transfer"})
    found, unknown = find_leaks(cast(RunReader, runs), moved, cohort="a", cases=[case(tmp_path, "s1", "one")])
    assert found == []
    assert unknown == [cannot_tell("the network in 'w.pth'"), cannot_tell("study/import")]
