"""Files of ``torch.save``, opened without executing anything."""

import math
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from dmx.errors import CheckpointError
from dmx.model.module import first_sentence
from dmx.transfer.file_kind import require_weights

# NumPy's codes of types and those of struct.
_CODES = {
    **{"b1": "?", "f2": "e", "f4": "f", "f8": "d"},
    **{"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"},
}
_TYPES = {
    **{"b1": torch.bool, "f2": torch.float16, "f4": torch.float32, "f8": torch.float64},
    **{"i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64},
    **{"u1": torch.uint8, "u2": torch.uint16, "u4": torch.uint32, "u8": torch.uint64},
}
_TEXT = re.compile(r"[US]\d{1,6}")
_OBJECTS = "O8"
_TEXT_WIDTH = {"U": 4, "S": 1}


class _Type:
    """Stands in for ``numpy.dtype``, so that a file reaches no code of NumPy: numbers, text, or plain objects."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in _CODES and code != _OBJECTS and not (isinstance(code, str) and _TEXT.fullmatch(code)):
            raise ValueError(f"a type of numbers or text is needed, got '{code}'")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    @property
    def size(self) -> int:
        """Bytes of one value."""
        if self.code in _CODES:
            return int(self.code[1:])
        return int(self.code[1:]) * _TEXT_WIDTH[self.code[0]]

    def texts(self, data: bytes) -> list[str | bytes]:
        """Return texts of equal length, whose ends are filled with zeros."""
        parts = [data[start : start + self.size] for start in range(0, len(data), self.size or 1)]
        if self.code[0] == "S":
            return [part.rstrip(b"\0") for part in parts]
        return [part.decode("utf-32-be" if self.order == ">" else "utf-32-le").rstrip("\0") for part in parts]

    def tensor(self, data: bytes, shape: tuple[int, ...], *, by_columns: bool) -> Tensor:
        """Return numbers as a tensor."""
        if not data:
            return torch.empty(shape, dtype=_TYPES[self.code])
        octets = torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(-1, self.size)
        values = (octets.flip(1) if self.order == ">" else octets).contiguous().view(_TYPES[self.code])
        if by_columns:
            return values.reshape(shape[::-1]).permute(*reversed(range(len(shape)))).contiguous()
        return values.reshape(shape)


class _Array:
    """Stands in for ``numpy.ndarray``: numbers become a tensor, text and objects a list."""

    def __init__(self) -> None:
        self.value: Any = None

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _, shape, kind, by_columns, data = state
        if not isinstance(kind, _Type) or not isinstance(shape, tuple):
            raise TypeError("an array of NumPy must have a type and a shape")
        if kind.code == _OBJECTS:
            if not isinstance(data, list):
                raise TypeError("an array of objects must be a list of them")
            self.value = data
            return
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * kind.size:
            raise TypeError("an array of NumPy must have as many bytes as its shape says")
        numbers = kind.code in _CODES
        self.value = kind.tensor(data, shape, by_columns=bool(by_columns)) if numbers else kind.texts(data)


class _Fields:
    """Stands in for ``argparse.Namespace`` and its like: names with values."""

    def __init__(self) -> None:
        self.value: dict[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise TypeError("a namespace must hold names and values")
        self.value = state


class _Dictionary:
    """Stands in for subclasses of ``dict``; what is made is a plain one."""

    def __new__(cls, *_: object) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


def _array(*_: object) -> _Array:
    """Stand in for the function that makes NumPy's arrays: return an empty one, whose content follows."""
    return _Array()


def _number(kind: object, data: object) -> float | int | bool | str | bytes:
    """Stand in for the function that makes NumPy's scalars: return a plain number or text."""
    if not isinstance(kind, _Type) or not isinstance(data, bytes) or kind.code == _OBJECTS:
        raise TypeError("a number of NumPy must be bytes of a type of numbers")
    if kind.code in _CODES:
        value: float | int | bool = struct.unpack(kind.order + _CODES[kind.code], data)[0]
        return value
    if len(data) != kind.size or not data:
        raise TypeError("a text of NumPy must have as many bytes as its type says")
    return kind.texts(data)[0]


def _no_bytes(*arguments: object) -> bytes:
    """Stand in for ``bytes``, by which an empty one is pickled; a number would ask for as much memory."""
    if arguments:
        raise TypeError("bytes must be empty here")
    return b""


def _path_maker(kind: type[PurePath]) -> Callable[..., str]:
    def make(*parts: object) -> str:
        if not all(isinstance(part, str) for part in parts):
            raise TypeError("a path must be made of text")
        return str(kind(*map(str, parts)))

    return make


def _stand_ins() -> list[Any]:
    """Return what stands in for each name of plain data that a file may use."""
    cores = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2
    stands: list[Any] = [(_Type, "numpy.dtype"), (_Array, "numpy.ndarray")]
    stands += [(_number, f"{core}.scalar") for core in cores]
    stands += [(_array, f"{core}._reconstruct") for core in cores]
    stands += [(_Fields, name) for name in ("argparse.Namespace", "types.SimpleNamespace")]
    dictionaries = (
        *("collections.defaultdict", "addict.addict.Dict", "yacs.config.CfgNode"),
        *(f"{package}.utilities.parsing.AttributeDict" for package in ("pytorch_lightning", "lightning.pytorch")),
        *(f"{package}.utilities.data.AttributeDict" for package in ("lightning_fabric", "lightning.fabric")),
    )
    stands += [(_Dictionary, name) for name in dictionaries]
    stands += [(_no_bytes, "builtins.bytes")]
    # What a defaultdict makes of a missing key.
    stands += [(kind, f"builtins.{kind.__name__}") for kind in (list, dict, int, float)]
    for module in ("pathlib", "pathlib._local"):
        stands += [(_path_maker(PurePosixPath), f"{module}.{name}") for name in ("PosixPath", "PurePosixPath")]
        stands += [(_path_maker(PureWindowsPath), f"{module}.{name}") for name in ("WindowsPath", "PureWindowsPath")]
    return stands


def load_torch_file(path: Path) -> Any:
    """Return what a file of ``torch.save`` holds: tensors, containers, text and numbers.

    Plain data of other kinds comes as such: arrays of NumPy as tensors (of text or objects as lists) and its scalars as
    numbers, namespaces as dictionaries, paths as text.

    Raises:
        CheckpointError: It holds anything else, or is no such file; nothing of it was executed.
    """
    require_weights(path)
    try:
        # Opened here: of a path, torch takes the ending for what is inside.
        with path.open("rb") as file, torch.serialization.safe_globals(_stand_ins()), warnings.catch_warnings():
            # About the pickle protocol, of which a user knows nothing.
            warnings.simplefilter("ignore")
            return _plain(torch.load(file, map_location="cpu", weights_only=True), set())
    except Exception as error:
        raise CheckpointError(
            f"'{path}' cannot be opened without executing code, or is no complete torch file ({_reason(error)}). Save "
            "its state dict alone (torch.save(model.state_dict(), …) or safetensors)."
        ) from error


def _plain(value: Any, seen: set[int]) -> Any:
    """Return a value with plain data in the place of what stood in for it; containers are changed in place."""
    if isinstance(value, _Array | _Fields):
        value = value.value
    if isinstance(value, _Type):
        return value.code
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_plain(entry, seen) for entry in value)
    if id(value) in seen or not isinstance(value, dict | list):
        return value
    seen.add(id(value))
    for key, entry in list(value.items() if isinstance(value, dict) else enumerate(value)):
        value[key] = _plain(entry, seen)
    return value


def _reason(error: Exception) -> str:
    """Return why, without torch's advice to open the file with code."""
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
    if wanted:
        return f"it asks for {wanted[1]}"
    if "TorchScript" in str(error):
        return "it is a TorchScript program, which holds code beside its weights"
    sentence = first_sentence(error)
    return f"{type(error).__name__}: {sentence}" if "weights_only" not in sentence else type(error).__name__
