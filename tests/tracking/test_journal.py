import json
from pathlib import Path

import pytest

from dmx.tracking.history import History, write_table
from dmx.tracking.journal import Journal, last_steps, read_entries


def metrics(step: int, **values: float) -> dict[str, object]:
    return {"do": "metrics", "step": step, "time": 1, "values": values}


def test_entries_come_back_in_order_with_offsets(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for step in range(3):
        journal.append(metrics(step, loss=float("nan")))
    journal.close()
    entries = list(read_entries(tmp_path / "journal"))
    assert [entry["step"] for entry, _ in entries] == [0, 1, 2]
    assert [entry["step"] for entry, _ in read_entries(tmp_path / "journal", entries[0][1])] == [1, 2]
    assert entries[-1][1] == (tmp_path / "journal").stat().st_size


def test_a_line_cut_off_by_a_kill_is_neither_read_nor_continued(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text(json.dumps(metrics(1, loss=1.0)) + "\n" + '{"do": "metr')
    assert len(list(read_entries(path))) == 1
    journal = Journal(path)
    journal.append(metrics(2, loss=1.0))
    journal.close()
    assert [entry["step"] for entry, _ in read_entries(path)] == [1, 2]


def test_the_disk_is_told_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal")
    told: list[int] = []
    monkeypatch.setattr("os.fsync", told.append)
    journal.append(metrics(1, loss=1.0))
    assert not told
    monkeypatch.setattr("dmx.tracking.journal._FSYNC_SECONDS", -1.0)
    journal.append(metrics(2, loss=1.0))
    assert len(told) == 1


def test_the_last_step_is_known_per_metric(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append(metrics(5, loss=1.0, dice=0.5))
    journal.append({"do": "tags", "values": {}})
    journal.append(metrics(7, loss=1.0))
    journal.close()
    assert last_steps(tmp_path / "journal") == {"loss": 7, "dice": 5}
    assert last_steps(tmp_path / "none") == {}


def test_a_table_has_no_step_twice_and_no_torn_row(tmp_path: Path) -> None:
    path = tmp_path / "history" / "steps.csv"
    table = History(path)
    assert table.add(1, {"loss": 0.5})
    assert table.add(2, {"loss": 0.25})
    path.write_bytes(path.read_bytes() + b"3,0.1")
    again = History(path)
    assert again.last_step == 2
    assert not again.add(2, {"loss": 9.0})
    assert again.add(3, {"loss": 0.125})
    assert [row["loss"] for row in again.rows()] == ["0.5", "0.25", "0.125"]


def test_a_new_column_keeps_the_rows_before_it(tmp_path: Path) -> None:
    table = History(tmp_path / "epochs.csv")
    table.add(1, {"loss": 1})
    table.add(2, {"val/dice": 0.5, "loss": 2})
    table.add(3, {"loss": None})
    assert table.rows() == [
        {"step": "1", "loss": "1", "val/dice": ""},
        {"step": "2", "loss": "2", "val/dice": "0.5"},
        {"step": "3", "loss": "", "val/dice": ""},
    ]


def test_cells_with_commas_survive(tmp_path: Path) -> None:
    write_table(tmp_path / "a" / "t.csv", [{"case": "a, b"}, {"case": "c", "dice": None}])
    assert (tmp_path / "a" / "t.csv").read_text() == 'case,dice\n"a, b",\nc,\n'
