"""Torch files: numbers of NumPy come in, code does not."""

import argparse
import collections
import pathlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmx.errors import CheckpointError
from dmx.model.torch_file import load_torch_file

NUMBERS = {
    "double": np.float64(0.25),
    "single": np.float32(-1.5),
    "half": np.float16(2),
    "integer": np.int64(-(2**40)),
    "byte": np.uint8(200),
    "yes": np.bool_(True),
}


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "file.pth")
    return folder / "file.pth"


def test_numbers_of_numpy_become_plain_ones(tmp_path: Path) -> None:
    content = {**NUMBERS, "list": [np.float32(0.5)], "device": torch.device("cuda", 1), "weights": torch.arange(3)}
    found = load_torch_file(saved(tmp_path, content))
    for name, number in NUMBERS.items():
        assert found[name] == number.item()
        assert type(found[name]) in (float, int, bool)
    assert found["list"] == [0.5]
    assert found["device"] == torch.device("cuda", 1)
    assert found["weights"].tolist() == [0, 1, 2]


def test_the_names_of_numpy_1_and_the_other_byte_order_are_known(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": np.float64(0.25), "y": np.float32(3)})
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(name, data)
    assert load_torch_file(old) == {"x": 0.25, "y": 3.0}
    big = np.array([1.5], dtype=">f8").astype(">f8")[0]
    assert load_torch_file(saved(tmp_path, [big])) == [1.5]


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_plain_data_of_other_kinds_comes_in_as_such(tmp_path: Path) -> None:
    settings = argparse.Namespace(lr=0.1, out=Path("/data/run 1"), sizes=np.array([[1, 2], [3, 4]], dtype=">i2"))
    content = {
        "args": settings,
        "both": [settings, settings],
        "mean": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "scalar": np.array(3.5),
        "empty": np.zeros((0, 2)),
        "names": np.array(["left", "right"]),
        "mixed": np.array([1, "two", None], dtype=object),
        "name": np.str_("text"),
        "windows": pathlib.PureWindowsPath("C:/runs"),
        "best": collections.defaultdict(list, dice=[np.float64(0.5)]),
        "order": collections.OrderedDict(a=(Path("x"), 1)),
        "weights": torch.ones(2),
    }
    found = load_torch_file(saved(tmp_path, content))
    assert found["args"]["lr"] == 0.1
    assert found["args"]["out"] == "/data/run 1"
    assert torch.equal(found["args"]["sizes"], torch.tensor([[1, 2], [3, 4]], dtype=torch.int16))
    assert found["both"][1] is found["both"][0]
    assert torch.equal(found["mean"], torch.arange(6.0).reshape(2, 3))
    assert found["scalar"] == torch.tensor(3.5, dtype=torch.float64)
    assert found["scalar"].shape == ()
    assert found["empty"].shape == (0, 2)
    assert found["names"] == ["left", "right"]
    assert found["mixed"] == [1, "two", None]
    assert found["name"] == "text"
    assert found["windows"] == "C:\\runs"
    assert found["best"] == {"dice": [0.5]}
    assert found["order"]["a"] == ("x", 1)


@pytest.mark.parametrize(
    ("content", "asks"),
    [
        (Calls(Path.touch, Path("trace")), "it asks for"),
        (Calls(eval, "open('trace', 'w')"), "it asks for"),
        (np.zeros(3, dtype="M8[s]"), "a type of numbers or text is needed, got 'M8'"),
        (np.array([Calls(eval, "open('trace', 'w')")], dtype=object), "it asks for"),
        (argparse.Namespace(model=Calls(eval, "open('trace', 'w')")), "it asks for"),
        (collections.defaultdict(set().add), "it asks for"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, asks: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=asks) as caught:
        load_torch_file(saved(tmp_path, {"weights": torch.ones(2), "x": content}))
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "trace").exists()


def test_a_number_is_made_of_its_bytes_and_of_nothing_else(tmp_path: Path) -> None:
    scalar = np.float64(1).__reduce__()[0]
    for arguments in ((np.dtype("f8"), "12345678"), (np.dtype("f8"), b"123"), ("f8", b"12345678")):
        with pytest.raises(CheckpointError, match="cannot be opened"):
            load_torch_file(saved(tmp_path, Calls(scalar, *arguments)))


def test_what_is_no_torch_file_is_one_sentence(tmp_path: Path) -> None:
    path = saved(tmp_path, {"weights": torch.ones(100)})
    cut = tmp_path / "cut.pth"
    cut.write_bytes(path.read_bytes()[:200])
    text = tmp_path / "text.pth"
    text.write_text("hello")
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps({"weights": [1]}))
    for wrong in (cut, text, plain, tmp_path, tmp_path / "nothing.pth"):
        with pytest.raises(CheckpointError, match="is no complete torch file"):
            load_torch_file(wrong)
