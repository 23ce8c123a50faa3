"""Full disks, files that change, too little memory: one sentence, nothing half-written, nothing lost."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmx.cohort.case import Case, Cohort
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.manifest import write_manifest
from dmx.cohort.volume import write_volume
from dmx.training.checkpoint import verify_checkpoint
from tests.faults.kills import Ended, Project, account, artifacts_of, runs_of

Disk = Callable[[Path, str], Callable[[str], None]]


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Put a small disk at a folder, which keeps its content; what is returned gives it another size."""
    mounted: list[Path] = []

    def make(folder: Path, size: str) -> Callable[[str], None]:
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder.with_name(f"{folder.name}-before")
        folder.rename(aside)
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"A small disk needs the right to mount one: {done.stderr.decode().strip()}")
        mounted.append(folder)
        subprocess.run(["cp", "-a", f"{aside}/.", str(folder)], check=True)
        shutil.rmtree(aside)

        def resize(to: str) -> None:
            subprocess.run(["mount", "-o", f"remount,size={to}", str(folder)], check=True)

        return resize

    if os.geteuid() != 0:
        pytest.skip("A small disk needs the right to mount one.")
    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def one_sentence(ended: Ended, *parts: str) -> None:
    assert ended.code == 2, ended.err[-3000:]
    assert "Traceback" not in ended.err
    assert ended.err.count("Error: ") == 1, ended.err
    for part in parts:
        assert part in ended.said, ended.said


@pytest.mark.slow
def test_a_disk_that_is_full_ends_a_training_which_goes_on_when_there_is_room(project: Project, disk: Disk) -> None:
    root = project.copy()
    resize = disk(root / "mlruns/artifacts", "260k")
    one_sentence(project.call(root, "train", "balls.yaml"), "could not be written", "No space left on device")
    ((run_id, status, folder),) = runs_of(root)
    assert status == "FAILED"
    checkpoints = sorted((folder / "checkpoints").iterdir())
    assert len(checkpoints) >= 2
    assert all(verify_checkpoint(path) == [] for path in checkpoints)
    # Still full: the same sentence again, and nothing is lost by it.
    one_sentence(project.call(root, "resume", run_id), "No space left on device")
    assert sorted((folder / "checkpoints").iterdir())[: len(checkpoints)] == checkpoints
    resize("100m")
    resumed = project.call(root, "resume", run_id)
    assert resumed.code == 0, resumed.said
    assert project.losses(root) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1600k", "1700k", "1800k", "1900k", "2000k"])
def test_a_full_disk_of_everything_a_run_keeps_loses_nothing(project: Project, disk: Disk, size: str) -> None:
    """Store, journal and artifacts share it, and it becomes full wherever it does."""
    root = project.copy()
    resize = disk(root / "mlruns", size)
    ended = project.call(root, "train", "balls.yaml")
    assert ended.code == 2, ended.err[-3000:]
    assert "Traceback" not in ended.err
    resize("100m")
    begun = runs_of(root)
    words = ("resume", begun[0][0]) if begun else ("train", "balls.yaml")
    ended = project.call(root, *words)
    assert ended.code == 0, ended.err[-3000:]
    assert project.losses(root) == []


@pytest.mark.slow
def test_a_disk_that_is_full_of_prepared_cases_makes_no_run(project: Project, disk: Disk) -> None:
    root = project.copy()
    cache = root / "mlruns/cache"
    for entry in cache.iterdir():
        subprocess.run(["rm", "-r", str(entry)], check=True)
    resize = disk(cache, "200k")
    ended = project.call(root, "train", "balls.yaml", faults={"one_core": True})
    one_sentence(ended, "mlruns/cache", "cannot be written: No space left on device")
    assert runs_of(root) == []
    assert [path.name for path in cache.iterdir() if path.name.startswith(".")] == []
    resize("100m")
    assert project.call(root, "train", "balls.yaml", faults={"one_core": True}).code == 0
    found = account(root)
    found.elsewhere[:] = project.reference.elsewhere
    assert found.differences(project.reference) == []


@pytest.fixture(scope="module")
def trained(project: Project) -> Path:
    root = project.copy()
    assert project.call(root, "train", "balls.yaml").code == 0
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("predict", "--from-run", "balls/last", "cohort.csv", "-o", "out"),
        ("export", "balls/last", "-o", "out/w.safetensors"),
        pytest.param(("cohort", "show", "cohort.csv", "-o", "out"), marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_a_full_disk_leaves_no_half_output(project: Project, trained: Path, disk: Disk, words: tuple[str, ...]) -> None:
    out = trained / "out"
    disk(out, "8k")
    ended = project.call(trained, *words)
    one_sentence(ended, "No space left on device")
    for path in out.rglob("*"):
        assert not path.name.startswith("."), path
        assert not path.is_file() or path.stat().st_size, path


@pytest.mark.slow
def test_a_thread_that_fails_ends_the_training_and_it_goes_on(project: Project) -> None:
    root = project.copy()
    ended = project.call(root, "train", "balls.yaml", "--set", "sampling.workers=2", faults={"sampler_raises": 15})
    assert ended.code == 1, "What nobody foresaw is a bug, with a traceback."
    assert "Input/output error" in ended.err
    ((run_id, status, _),) = runs_of(root)
    assert status == "FAILED"
    assert project.call(root, "resume", run_id, "--workers", "0").code == 0
    found = account(root)
    assert found.state.keys() == project.reference.state.keys()
    found.files[:], found.params["workers"] = project.reference.files, ""
    assert [one for one in found.differences(project.reference) if not one.startswith("params")] == []


CHANGES = {
    "after it was checked": ("dmx.workflows.assemble.check_cohort", "has changed since it was checked"),
    "while it is prepared": ("dmx.preprocess.cache.preprocess_case", "changed while it was prepared"),
}


@pytest.mark.parametrize("when", CHANGES)
def test_a_file_that_changes_is_named(project: Project, when: str) -> None:
    root = project.copy()
    subprocess.run(["rm", "-r", str(root / "mlruns/cache")], check=True)
    place, sentence = CHANGES[when]
    path = root / "scans/t1_0.nii.gz"
    what = {"path": str(path), "when": place, "content": str(root / "scans/t1_4.nii.gz")}
    ended = project.call(root, "train", "balls.yaml", faults={"change_file": what, "one_core": True})
    one_sentence(ended, sentence, "case_0", str(path))
    assert runs_of(root) == []
    assert [name.name for name in (root / "mlruns/cache").glob("*")] == []


@pytest.mark.parametrize(
    ("when", "path", "parts"),
    [
        ("dmx.workflows.assemble.check_cohort", "scans/t1_0.nii.gz", ("t1_0.nii.gz", "there is no such file")),
        ("dmx.workflows.assemble.prepare_cases", "mlruns/cache", ("prepared case", "it is gone")),
    ],
    ids=["scan", "prepared case"],
)
def test_a_file_that_disappears_is_named(project: Project, when: str, path: str, parts: tuple[str, ...]) -> None:
    root = project.copy()
    what = {"path": str(root / path), "when": when, "content": ""}
    one_sentence(project.call(root, "train", "balls.yaml", faults={"change_file": what, "one_core": True}), *parts)


@pytest.mark.slow
def test_a_cohort_that_changed_is_not_resumed(project: Project) -> None:
    root = project.copy()
    assert project.call(root, "train", "balls.yaml", at=[("step", 8, "TERM")]).code == 143
    run_id, _ = artifacts_of(root)
    before = (root / "scans/t1_1.nii.gz").read_bytes()
    (root / "scans/t1_1.nii.gz").write_bytes((root / "scans/t1_2.nii.gz").read_bytes())
    one_sentence(project.call(root, "resume", run_id, faults={"one_core": True}), "case_1", "cannot go on exactly")
    (root / "scans/t1_1.nii.gz").write_bytes(before)
    assert project.call(root, "resume", run_id).code == 0
    assert project.losses(root) == []


@pytest.mark.slow
def test_a_smaller_tile_is_predicted_where_memory_runs_out(project: Project, trained: Path) -> None:
    words = ("predict", "--from-run", "balls/last", "cohort.csv", "--split", "evaluation", "-o")
    assert project.call(trained, *words, "whole").code == 0
    ended = project.call(trained, *words, "tiles", faults={"memory_for": 3000})
    assert ended.code == 0, ended.said
    assert re.search(r"Tiles of [\dx]+ voxels did not fit into the memory of cpu; [\dx]+ did", ended.said), ended.said
    from dmx.cohort.volume import read_volume

    whole = sorted((trained / "whole").rglob("*.nii.gz"))
    assert whole
    for path in whole:
        other = trained / "tiles" / path.relative_to(trained / "whole")
        assert np.array_equal(read_volume(path).array, read_volume(other).array)


def test_a_training_says_what_would_fit(project: Project) -> None:
    root = project.copy()
    ended = project.call(
        root, "train", "balls.yaml", "--set", "training.batch_size=8", faults={"memory_for": 11**3 * 5}
    )
    one_sentence(ended, "8 segments per pass", "training.batch_size 4 with training.accumulate 4 fits")
    ((_, status, _),) = runs_of(root)
    assert status == "FAILED"


@contextlib.contextmanager
def memory_limit(megabytes: int) -> Iterator[Path]:
    """Make a control group (version 1) with a limit for all memory, pages of files included."""
    group = Path(f"/sys/fs/cgroup/memory/dmx-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(megabytes * 2**20))
    except OSError as error:
        pytest.skip(f"A limit of memory needs a control group of version 1 that can be written: {error}.")
    try:
        yield group
    finally:
        group.rmdir()


@pytest.mark.slow
def test_a_cohort_larger_than_memory_trains(project: Project, tmp_path: Path) -> None:
    """700 MB of prepared cases, read within 300 MB of memory."""
    size, count = 160, 13
    grid = NiftiGrid.from_affine((size,) * 3, np.eye(4))
    cases = []
    for index in range(count):
        rng = np.random.default_rng(index)
        labels = np.zeros((size,) * 3, np.uint8)
        labels[40:80, 40:80, 40 + index : 80] = 1
        scan = labels + rng.normal(size=size).astype(np.float32)
        files = {name: tmp_path / f"{name}_{index}.nii" for name in ("t1", "label")}
        write_volume(files["t1"], scan.astype(np.float32), grid, dtype=np.float32)
        write_volume(files["label"], labels, grid, dtype=np.uint8)
        split = "validation" if index == 0 else "training"
        case = Case(
            name=f"c{index}", subject=f"s{index}", channels={"t1": files["t1"]}, label_map=files["label"], split=split
        )
        cases.append(case)
    manifest = tmp_path / "large.csv"
    write_manifest(Cohort(name="large", classes=("background", "cube"), channels=("t1",), cases=tuple(cases)), manifest)
    root = project.copy()
    words: tuple[Any, ...] = ("train", "balls.yaml", "--set", f"cohort.manifest={manifest}")
    words += ("--set", "validation.volumes_every_epochs=0", "--set", "training.steps_per_epoch=40")
    # Prepared without a limit, on a disk and not in memory.
    cache = {"DMX_CACHE": str(tmp_path / "cache")}
    options: dict[str, Any] = {"faults": {"one_core": True}, "environment": cache}
    assert project.call(root, *words, "--set", "training.epochs=1", **options).code == 0
    prepared = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    with memory_limit(300) as group:
        options["faults"]["memory_group"] = str(group)
        ended = project.call(root, *words, **options)
        peak = int((group / "memory.max_usage_in_bytes").read_text())
    assert ended.code == 0, ended.said
    print(f"\nprepared cohort {prepared / 2**20:.0f} MiB, memory within {peak / 2**20:.0f} MiB of 300")
    assert prepared > 2 * 300 * 2**20
