"""Whom a network has seen, and which held-out cases leak."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from dmx.cohort.case import Case, Cohort
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.volume import read_volume, write_volume
from dmx.errors import CohortError, RunError
from dmx.tracking.store import RunInfo, RunReader
from dmx.workflows.identity import (
    ANCESTORS,
    IDENTITY,
    Exposure,
    ancestors_text,
    cannot_tell,
    find_leaks,
    identity,
    require_no_leak,
    seen_by,
)

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

    def keep(self, name: str, seen: dict[str, str]) -> None:
        for path, text in seen.items():
            (self.folder / name / path).write_text(text)

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
    """Return a case whose scan is a function of its name."""
    path = folder / f"{scan}.nii"
    array = np.random.default_rng(sum(map(ord, scan))).normal(0, 100, size=(36, 40, 44)).round().astype(np.float32)
    write_volume(path, array, NiftiGrid.from_affine(array.shape, np.eye(4)), dtype=np.float32)
    return Case(name=f"{subject}-{scan}", subject=subject, channels={"t1": path}, label_map=None)


def exposure(runs: Runs, run: RunInfo, cohort: str, *cases: Case, others: tuple[Case, ...] = ()) -> Exposure:
    whole = Cohort(cohort, (), ("t1",), (*cases, *others))
    return find_leaks(cast(RunReader, runs), run, cohort=whole, cases=cases)


def leaks(
    runs: Runs, run: RunInfo, cohort: str, *cases: Case, others: tuple[Case, ...] = ()
) -> list[tuple[str, str, str, str]]:
    found = exposure(runs, run, cohort, *cases, others=others).leaks
    return [(leak.case, leak.seen.run, leak.split, leak.reason) for leak in found]


def test_a_subject_counts_within_its_cohort_and_a_scan_everywhere(runs: Runs, tmp_path: Path) -> None:
    one = case(tmp_path, "sub-01", "one")
    run = runs.add("first", identity("a", {"training": [one], "validation": []}))
    two = case(tmp_path, "sub-01", "two")
    found = leaks(runs, run, "a", two, others=(one,))
    assert found == [("sub-01-two", "first", "training", "subject")], "one study, as it shares a scan"
    assert leaks(runs, run, "b", two) == []
    assert leaks(runs, run, "b", case(tmp_path, "sub-07", "one")) == [("sub-07-one", "first", "training", "scan")]


def test_a_subject_of_another_site_whose_cohort_has_the_same_name_is_no_leak(runs: Runs, tmp_path: Path) -> None:
    run = runs.add("first", identity("a", {"training": [case(tmp_path, "sub-01", "one")], "validation": []}))
    found = exposure(runs, run, "a", case(tmp_path, "sub-01", "two"))
    notes, tags = require_no_leak(found, allowed=False)
    assert tags == {}
    assert len(notes) == 1
    assert "study/first was trained on, in a cohort that is called 'a', too" in notes[0]
    assert "--name" in notes[0]


def test_a_scan_that_was_saved_anew_or_changed_in_shape_is_found(runs: Runs, tmp_path: Path) -> None:
    one = case(tmp_path, "s1", "one")
    run = runs.add("first", identity("a", {"training": [one], "validation": []}))
    array = read_volume(tmp_path / "one.nii").array
    reasons = []
    for index, changed in enumerate((array.astype(np.float64) * 0.5 + 7, array[::-1].transpose(2, 0, 1), array[2:-1])):
        path = tmp_path / f"anew_{index}.nii.gz"
        write_volume(path, changed, NiftiGrid.from_affine(changed.shape, np.eye(4)), dtype=changed.dtype)
        held_out = Case(name=f"new_{index}", subject="s9", channels={"t1": path})
        reasons += [reason for *_, reason in leaks(runs, run, "b", held_out)]
    assert reasons == ["voxels", "voxels", "likely"]
    with pytest.raises(CohortError, match=r"new_2 \(probably the same scan.* in study/first"):
        require_no_leak(exposure(runs, run, "b", held_out), allowed=False)
    _, tags = require_no_leak(exposure(runs, run, "b", held_out), allowed=True)
    assert tags == {"dmx.leak": "1", "dmx.leak_reasons": "1 probably the same scan, flipped, cropped or resampled"}


def test_a_run_knows_whom_its_ancestors_saw_when_they_are_gone(runs: Runs, tmp_path: Path) -> None:
    reader = cast(RunReader, runs)
    for name in ("x", "y"):
        runs.add(name, identity("a", {"training": [case(tmp_path, name, name)], "validation": []}))
    nobody = identity("a", {"training": [], "validation": []})
    both = '[{"run": "x", "checkpoint": "c", "share": 0.6}, {"run": "y", "checkpoint": "c", "share": 0.4}]'
    middle = runs.add("middle", nobody, **{"dmx.source_run_id": "x", "dmx.sources": both, "dmx.source_file": "w.pth"})
    last = runs.add("last", nobody, **{"dmx.source_run_id": "middle"})
    runs.keep("last", ancestors_text(seen_by(reader, middle)))
    before = exposure(runs, last, "b", case(tmp_path, "y", "y"))
    for name in ("x", "y", "middle"):
        del runs.runs[name]
    after = exposure(runs, last, "b", case(tmp_path, "y", "y"))
    assert {(leak.case, leak.seen.run, leak.reason) for leak in after.leaks} == {("y-y", "y", "scan")}
    assert {one.key for one in before.seen} == {one.key for one in after.seen}
    assert after.unknown == [cannot_tell("the network in 'w.pth'")]


def test_a_source_that_is_gone_and_was_not_kept_is_named(runs: Runs, tmp_path: Path) -> None:
    orphan = runs.add("orphan", identity("a", {"training": [], "validation": []}), **{"dmx.source_run_id": "gone"})
    notes, _ = require_no_leak(exposure(runs, orphan, "a", case(tmp_path, "s", "one")), allowed=False)
    assert notes == [cannot_tell("run gone, a source of study/orphan that is gone")]


def test_what_cannot_be_read_of_the_ancestors_is_not_taken_for_nothing(runs: Runs, tmp_path: Path) -> None:
    runs.add("x", identity("a", {"training": [case(tmp_path, "x", "one")], "validation": []}))
    last = runs.add("last", identity("a", {"training": [], "validation": []}), **{"dmx.source_run_id": "x"})
    runs.keep("last", {ANCESTORS: "[{]"})
    assert leaks(runs, last, "b", case(tmp_path, "z", "one")) == [("z-one", "x", "training", "scan")]


def test_every_ancestor_counts(runs: Runs, tmp_path: Path) -> None:
    for name in ("x", "y"):
        runs.add(name, identity("a", {"training": [case(tmp_path, name, name)], "validation": []}))
    both = '[{"run": "x", "checkpoint": "c", "share": 0.6}, {"run": "y", "checkpoint": "c", "share": 0.4}]'
    nobody = identity("a", {"training": [], "validation": []})
    runs.add("middle", nobody, **{"dmx.source_run_id": "x", "dmx.sources": both})
    last = runs.add("last", nobody, **{"dmx.source_run_id": "middle"})
    assert [one.run for one in seen_by(cast(RunReader, runs), last)] == ["last", "middle", "x", "y"]
    assert leaks(runs, last, "a", case(tmp_path, "z", "y")) == [("z-y", "y", "training", "scan")]


def test_what_was_validated_on_is_a_note_and_what_was_trained_on_an_error(runs: Runs, tmp_path: Path) -> None:
    one, two = case(tmp_path, "s1", "one"), case(tmp_path, "s2", "two")
    run = runs.add("first", identity("a", {"training": [one], "validation": [two]}))
    assert require_no_leak(exposure(runs, run, "a", two), allowed=False) == (
        ["1 held-out cases were validation cases of the network or its sources."],
        {},
    )
    trained = exposure(runs, run, "a", one, two)
    with pytest.raises(CohortError, match=r"s1-one \(same scan in study/first\).*--allow-leak"):
        require_no_leak(trained, allowed=False)
    notes, tags = require_no_leak(trained, allowed=True)
    assert tags == {"dmx.leak": "1", "dmx.leak_reasons": "1 same scan"}
    assert len(notes) == 2


def test_what_is_not_known_is_named_and_an_untrained_network_has_seen_nobody(runs: Runs, tmp_path: Path) -> None:
    runs.add("import", None, **{"dmx.kind": "import", "dmx.source_file": "model.ckpt"})
    seen = identity("a", {"training": [case(tmp_path, "s1", "one")], "validation": []})
    tags = {"dmx.source_run_id": "import", "dmx.source_file": "w.pth", "dmx.optimizer_state": "none: not trained"}
    moved = runs.add("moved", seen, **{**tags, "dmx.kind": "transfer"})
    found = exposure(runs, moved, "a", case(tmp_path, "s1", "one"))
    assert found.leaks == []
    assert found.unknown == [cannot_tell("the network in 'w.pth'"), cannot_tell("study/import")]


def test_a_transfer_counts_from_its_training_on(runs: Runs, tmp_path: Path) -> None:
    one = case(tmp_path, "s1", "one")
    seen = identity("a", {"training": [one], "validation": []})
    untrained = runs.add("untrained", seen, **{"dmx.kind": "transfer", "dmx.optimizer_state": "none: not trained"})
    trained = runs.add("trained", seen, **{"dmx.kind": "transfer", "dmx.optimizer_state": "initialized: transferred"})
    assert leaks(runs, untrained, "a", one) == []
    assert leaks(runs, trained, "a", one) == [("s1-one", "trained", "training", "scan")]
