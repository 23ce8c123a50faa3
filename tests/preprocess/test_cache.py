import errno
import multiprocessing
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.case import Case
from dmx.config.sections import PreprocessSection
from dmx.errors import CohortError, DmxError
from dmx.preprocess import cache as cache_module
from dmx.preprocess import folder as folder_module
from dmx.preprocess.cache import CaseCache
from dmx.preprocess.contract import Contract
from dmx.preprocess.pipeline import preprocess_case

CONTRACT = Contract(channels=("t1",), classes=("background", "a", "b"))


@pytest.fixture
def cache(tmp_path: Path) -> CaseCache:
    return CaseCache(tmp_path / "cache")


def entries(cache: CaseCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir())


def prepared_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []

    def counted(case: Case, contract: Contract):
        calls.append(case.name)
        return preprocess_case(case, contract)

    monkeypatch.setattr(cache_module, "preprocess_case", counted)
    return calls


def test_a_cached_case_holds_what_preparing_gives(cache: CaseCache, make_case) -> None:
    case = make_case()
    (cached,) = cache.prepare([case], CONTRACT)
    prepared = preprocess_case(case, CONTRACT)
    assert (cached.name, cached.subject, cached.shape) == ("one", "subject-one", (9, 8, 7))
    np.testing.assert_array_equal(cached.channels, prepared.channels)
    np.testing.assert_array_equal(cached.labels, prepared.labels)
    np.testing.assert_array_equal(cached.roi, prepared.roi)
    assert list(cached.weight_maps) == ["hard"]
    np.testing.assert_array_equal(cached.weight_maps["hard"], prepared.weight_maps["hard"])
    np.testing.assert_array_equal(
        cached.weight_cumsums["hard"], np.cumsum(prepared.weight_maps["hard"].ravel(), dtype=np.float64)
    )
    assert cached.geometry.as_dict() == prepared.geometry.as_dict()
    assert cached.channels.flags.writeable
    assert cached.channels.ctypes.data % 64 == 0


def test_centers_are_the_voxels_of_each_category_within_the_roi(cache: CaseCache, make_case) -> None:
    (cached,) = cache.prepare([make_case()], CONTRACT)
    roi, labels = cached.roi.ravel() > 0, cached.labels.ravel()
    expected = {"roi": roi, "foreground": roi & (labels > 0), "background": roi & (labels == 0)}
    expected |= {f"class_{k}": roi & (labels == k) for k in range(3)}
    assert set(cached.centers) == set(expected)
    assert len(cached.centers) == 6
    for category, region in expected.items():
        assert cached.centers[category].dtype == np.int32
        np.testing.assert_array_equal(cached.centers[category], np.flatnonzero(region), err_msg=category)


def test_without_roi_and_labels_every_voxel_is_a_center_and_nothing_else(cache: CaseCache, make_case) -> None:
    (cached,) = cache.prepare([make_case(roi=None, label_map=None, weights=None)], CONTRACT)
    assert list(cached.centers) == ["roi"]
    np.testing.assert_array_equal(cached.centers["roi"], np.arange(9 * 8 * 7))
    assert cached.labels is None
    assert cached.roi is None


def test_an_absent_class_has_no_centers(cache: CaseCache, make_case) -> None:
    (cached,) = cache.prepare([make_case(label_map=np.zeros((9, 8, 7)))], CONTRACT)
    assert cached.centers["foreground"].size == 0
    assert cached.centers["class_2"].size == 0


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_all_open_arrays_share_one_file_descriptor_and_changes_never_reach_the_disk(cache, make_case) -> None:
    (cached,) = cache.prepare([make_case()], CONTRACT)
    before = open_files()
    held = [cached.channels, cached.labels, cached.roi, *cached.centers.values(), *cached.weight_maps.values()]
    views = [array.reshape(-1)[1:] for array in held]
    assert open_files() == before + 1
    held[0][...] = 0
    del held
    assert open_files() == before + 1
    del views
    assert open_files() == before
    assert cached.channels.any()


def test_a_second_call_prepares_nothing_and_a_changed_file_or_setting_does(
    cache: CaseCache, make_case, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = prepared_calls(monkeypatch)
    cases = [make_case("a"), make_case("b")]
    cache.prepare(cases, CONTRACT)
    first = cache.prepare(cases, CONTRACT)
    assert calls == ["a", "b"]
    make_case("a", t1=np.random.default_rng(1).normal(5, 1, (9, 8, 7)))
    second = cache.prepare(cases, CONTRACT)
    assert calls == ["a", "b", "a"]
    assert second[0].folder != first[0].folder
    assert second[1].folder == first[1].folder
    cache.prepare(cases, replace(CONTRACT, preprocess=PreprocessSection(crop_to_roi=True)))
    assert calls == ["a", "b", "a", "a", "b"]


def test_equal_content_is_prepared_once_whatever_the_name(cache: CaseCache, make_case, monkeypatch) -> None:
    calls = prepared_calls(monkeypatch)
    case = make_case()
    one, two = cache.prepare([case, replace(case, name="two")], CONTRACT)
    assert calls == ["one"]
    assert (one.folder, two.name) == (two.folder, "two")


def test_progress_counts_every_case_once(cache: CaseCache, make_case) -> None:
    seen: list[tuple[int, int, str]] = []
    cases = [make_case("a"), make_case("b")]
    cache.prepare(cases[:1], CONTRACT)
    cache.prepare(cases, CONTRACT, progress=lambda *step: seen.append(step))
    assert seen == [(1, 2, "a"), (2, 2, "b")]


@pytest.mark.parametrize("damage", ["cut", "gone", "index", "half"])
def test_a_damaged_entry_is_made_again(cache: CaseCache, make_case, damage: str) -> None:
    case = make_case()
    (cached,) = cache.prepare([case], CONTRACT)
    good = np.array(cached.channels)
    arrays = cached.folder / "arrays.bin"
    if damage == "cut":
        os.truncate(arrays, 200)
    elif damage == "gone":
        arrays.unlink()
    elif damage == "index":
        (cached.folder / "entry.json").write_text("{")
    else:
        shutil.rmtree(cached.folder)
        cached.folder.mkdir()
    (again,) = cache.prepare([case], CONTRACT)
    np.testing.assert_array_equal(again.channels, good)
    assert len(entries(cache)) == 1


@contextmanager
def small_files() -> Iterator[None]:
    """Let no file grow above 2 kB, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(cache: CaseCache, make_case) -> None:
    case = make_case()
    with small_files(), pytest.raises(DmxError, match=r"cannot be written: .*Free some space"):
        cache.prepare([case], CONTRACT)
    assert entries(cache) == []
    assert len(cache.prepare([case], CONTRACT)) == 1


def killed_before_the_end(folder: Path, case: Case) -> None:
    folder_module.publish = lambda *_: os._exit(9)  # type: ignore[assignment]
    CaseCache(folder).prepare([case], CONTRACT)


def test_a_kill_leaves_nothing_that_counts(cache: CaseCache, make_case) -> None:
    case = make_case()
    child = multiprocessing.get_context("fork").Process(target=killed_before_the_end, args=(cache.folder, case))
    child.start()
    child.join()
    assert child.exitcode == 9
    (half,) = entries(cache)
    assert half.startswith(".tmp-")
    (cached,) = cache.prepare([case], CONTRACT)
    assert entries(cache) == [cached.folder.name]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, make_case) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DmxError, match="cannot be written"):
        CaseCache(tmp_path / "file" / "cache").prepare([make_case()], CONTRACT)


def test_a_case_that_cannot_be_prepared_leaves_the_others(cache: CaseCache, make_case) -> None:
    bad = make_case("bad", roi=np.zeros((9, 8, 7)))
    with pytest.raises(CohortError, match=r"'bad'.*empty"):
        cache.prepare([make_case("good"), bad], CONTRACT)
    assert len(entries(cache)) == 1


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_stays(cache: CaseCache, make_case) -> None:
    ended = multiprocessing.get_context("spawn").Process(target=int)
    ended.start()
    ended.join()
    host = socket.gethostname()
    cache.folder.mkdir()
    for pid in (ended.pid, os.getpid()):
        (cache.folder / f".tmp-{host}-{pid}-abc").mkdir()
    (cache.folder / ".tmp-elsewhere-1-abc").mkdir()
    old = cache.folder / ".tmp-elsewhere-2-abc"
    old.mkdir()
    os.utime(old, (0, 0))
    cache.prepare([], CONTRACT)
    assert entries(cache) == [".tmp-elsewhere-1-abc", f".tmp-{host}-{os.getpid()}-abc"]


def test_when_another_process_was_faster_its_entry_stays(cache: CaseCache, make_case, monkeypatch) -> None:
    case = make_case()
    other = CaseCache(cache.folder)

    def slow(one: Case, contract: Contract):
        monkeypatch.undo()
        (theirs,) = other.prepare([one], contract)
        (theirs.folder / "mark").touch()
        return preprocess_case(one, contract)

    monkeypatch.setattr(cache_module, "preprocess_case", slow)
    (cached,) = cache.prepare([case], CONTRACT)
    assert (cached.folder / "mark").exists()
    assert len(entries(cache)) == 1


def test_a_rename_that_fails_for_another_reason_is_a_sentence(cache: CaseCache, make_case, monkeypatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        # The entry that a complete one would replace is absent; taking its name is forbidden.
        raise (
            FileNotFoundError
            if not self.name.startswith(".tmp")
            else PermissionError(errno.EACCES, "Permission denied")
        )

    case = make_case()
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(DmxError, match="Permission denied"):
        cache.prepare([case], CONTRACT)
    assert entries(cache) == []


def test_several_processes_give_what_one_gives(cache: CaseCache, make_case, tmp_path: Path) -> None:
    cases = [make_case(name, t1=np.random.default_rng(k).normal(9, 2, (9, 8, 7))) for k, name in enumerate("ab")]
    many = cache.prepare(cases, CONTRACT, processes=2)
    alone = CaseCache(tmp_path / "other").prepare(cases, CONTRACT)
    for one, other in zip(many, alone, strict=True):
        assert one.folder.name == other.folder.name
        for name in ("entry.json", "arrays.bin"):
            assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()
    bad = [make_case("bad1", roi=np.zeros((9, 8, 7))), make_case("bad2", roi=np.zeros((9, 8, 7)))]
    with pytest.raises(CohortError, match="'bad1'"):
        cache.prepare(bad, CONTRACT, processes=2)
