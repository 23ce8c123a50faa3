"""Files of ``torch.save``, opened without executing anything."""

import re
import struct
import warnings
from pathlib import Path
from typing import Any

import torch

from dmx.errors import CheckpointError
from dmx.model.module import first_sentence

# Names under which NumPy 1 and 2 pickle a scalar.
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")

# NumPy's codes of types and those of struct.
_CODES = {
    **{"b1": "?", "f2": "e", "f4": "f", "f8": "d"},
    **{"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"},
}


class _NumberType:
    """Stands in for ``numpy.dtype``, so that a file reaches no code of NumPy: a type of numbers and nothing else."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in _CODES:
            raise ValueError(f"a type of numbers is needed, got '{code}'")
        self.code = _CODES[code]
        self.order = "<"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(kind: object, data: object) -> float | int | bool:
    """Stand in for the function that makes NumPy's scalars: return a plain number."""
    if not isinstance(kind, _NumberType) or not isinstance(data, bytes):
        raise TypeError("a number of NumPy must be bytes of a type of numbers")
    value: float | int | bool = struct.unpack(kind.order + kind.code, data)[0]
    return value


def load_torch_file(path: Path) -> Any:
    """Return what a file of ``torch.save`` holds: tensors, containers, text and numbers; NumPy's scalars become plain.

    Raises:
        CheckpointError: It holds anything else, or is no such file; nothing of it was executed.
    """
    allowed: list[Any] = [(_NumberType, "numpy.dtype"), *((_number, name) for name in _SCALARS)]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            # About the pickle protocol, of which a user knows nothing.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"'{path}' cannot be opened without executing code, or is no complete torch file ({_reason(error)}). Save "
            "its state dict alone (torch.save(model.state_dict(), …) or safetensors)."
        ) from error


def _reason(error: Exception) -> str:
    """Return why, without torch's advice to open the file with code."""
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
    if wanted:
        return f"it asks for {wanted[1]}"
    sentence = first_sentence(error)
    return f"{type(error).__name__}: {sentence}" if "weights_only" not in sentence else type(error).__name__
