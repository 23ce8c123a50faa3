import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dmx.cohort import digest as digest_module
from dmx.cohort.cache import FactStore, default_cache_dir
from dmx.cohort.case import Cohort
from dmx.cohort.digest import cohort_digest, file_sha256
from dmx.errors import CohortError


def test_the_hash_is_that_of_the_content_and_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"scan")
    assert file_sha256(path) == hashlib.sha256(b"scan").hexdigest()
    path.write_bytes(b"nacs")
    assert file_sha256(path) == hashlib.sha256(b"nacs").hexdigest(), "a file of this moment is not remembered"
    os.utime(path, (1e9, 1e9))
    monkeypatch.setattr(digest_module, "_SETTLED_NS", -1)
    file_sha256(path)
    monkeypatch.setattr(digest_module.hashlib, "file_digest", lambda *_: pytest.fail("the file was read"))
    digest_module._store.cache_clear()
    assert file_sha256(path) == hashlib.sha256(b"nacs").hexdigest()
    with pytest.raises(CohortError, match="there is no such file"):
        file_sha256(tmp_path / "b")


def test_a_file_that_takes_the_place_of_another_with_its_size_and_date_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest_module, "_SETTLED_NS", -1)
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"scan" + bytes(100))
    other.write_bytes(b"nacs" + bytes(100))
    for file in (path, other):
        os.utime(file, (1e9, 1e9))
    first = file_sha256(path)
    shutil.copy2(other, path)
    assert file_sha256(path) == file_sha256(other) != first
    path.write_bytes(b"scan" + bytes(100))
    os.utime(path, (1e9, 1e9))
    assert file_sha256(path) == first
    other.replace(path)
    assert file_sha256(path) != first


def test_what_is_remembered_can_be_left_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_module, "_SETTLED_NS", -1)
    path = tmp_path / "a"
    path.write_bytes(b"scan")
    monkeypatch.setattr(digest_module, "_identity", lambda *_: "the same")
    first = file_sha256(path)
    path.write_bytes(b"nacs")
    assert file_sha256(path) == first
    assert file_sha256(path, fresh=True) == hashlib.sha256(b"nacs").hexdigest()
    assert file_sha256(path) != first


def test_the_digest_is_that_of_the_content_alone(
    make_cohort: Callable[..., Cohort], tmp_path: Path, write_scan: Callable[..., Path]
) -> None:
    cohort = make_cohort()
    digest = cohort_digest(cohort)
    assert len(digest) <= 36
    assert digest == cohort_digest(replace(cohort, cases=cohort.cases[::-1], name="other"))
    first, *others = cohort.cases
    (tmp_path / "moved.nii.gz").write_bytes(first.channels["t1"].read_bytes())
    moved = replace(first, channels={"t1": tmp_path / "moved.nii.gz"})
    assert digest == cohort_digest(replace(cohort, cases=(moved, *others)))
    for changed in (
        replace(first, name="other"),
        replace(first, subject="other"),
        replace(first, split="validation"),
        replace(first, roi=None),
        replace(first, channels={"t1": write_scan("other.nii.gz")}),
        replace(first, roi=first.label_map, label_map=first.roi),
    ):
        assert digest != cohort_digest(replace(cohort, cases=(changed, *others)))


def test_facts_survive_and_damaged_lines_and_locked_folders_do_no_harm(tmp_path: Path) -> None:
    store = FactStore(tmp_path / "facts.jsonl")
    store.put("a", {"x": [1, 2]})
    with (tmp_path / "facts.jsonl").open("a") as file:
        file.write('["b", 2\n[1,2,3]\n[1,2]\n\n["c",3]\n')
    again = FactStore(tmp_path / "facts.jsonl")
    assert (again.get("a"), again.get("b"), again.get("c")) == ({"x": [1, 2]}, None, 3)
    locked = FactStore(tmp_path / "facts.jsonl" / "below")
    locked.put("a", 1)
    assert locked.get("a") == 1


def test_the_cache_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("DMX_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache_dir() == Path("/x/dmx")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "dmx"


def test_labels_of_cases_count_and_their_absence_changes_nothing(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort(2)
    plain = cohort_digest(cohort)
    first, second = cohort.cases

    def labeled(label: int | None, classes: tuple[str, ...]) -> str:
        return cohort_digest(replace(cohort, cases=(replace(first, label=label), second), label_classes=classes))

    assert labeled(None, ("small", "large")) == plain
    assert labeled(1, ("small", "large")) == labeled(0, ("large",)) != plain
    assert labeled(0, ("small", "large")) != labeled(1, ("small", "large"))
    assert cohort_digest(replace(cohort, cases=(replace(first, targets={"age": 3.0}), second))) != plain
