"""The table of contents of a safetensors file: names and shapes without reading a weight.

The file begins with the length of a JSON text, 8 bytes, least significant first; the text names each tensor's type,
shape and place.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmx.errors import CheckpointError
from dmx.transfer.describe import NetworkSketch, TensorInfo
from dmx.transfer.file_kind import require_weights
from dmx.transfer.layout import is_buffer, natural_key

_LENGTH_BYTES = 8
_LARGEST = 100_000_000
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}


def read_header(*paths: Path) -> tuple[TensorInfo, ...]:
    """Return name and shape of each tensor of a safetensors file, or of several that hold a network together.

    A file does not keep the order of the network, so the names are sorted, numbers by value.

    Args:
        paths: The files; the first one that has a name counts.

    Raises:
        CheckpointError: A file is missing or is no safetensors file.
    """
    infos = {info.name: info for path in reversed(paths) for info in _infos(path)}
    return tuple(sorted(infos.values(), key=lambda info: natural_key(info.name)))


def _infos(path: Path) -> list[TensorInfo]:
    require_weights(path)
    entries = _entries(path)
    entries.pop("__metadata__", None)
    try:
        return [
            TensorInfo(name, tuple(int(n) for n in entry["shape"]), _dtype(entry["dtype"]), not is_buffer(name))
            for name, entry in entries.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _no_safetensors(path, f"an entry lacks {error}") from error


def _entries(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if not 2 <= length <= _LARGEST:
                raise _no_safetensors(path, f"its table of contents would have {length} bytes")
            text = file.read(length)
        entries = json.loads(text)
    except OSError as error:
        raise CheckpointError(f"Weights '{path}' cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise _no_safetensors(path, "its table of contents is no JSON") from error
    if len(text) < length or not isinstance(entries, dict):
        raise _no_safetensors(path, "its table of contents is cut off")
    return entries


def _no_safetensors(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"Weights '{path}' are no complete safetensors file: {why}. Copy or export the file again.")


def _dtype(code: str) -> str:
    return _TYPES.get(code, code.lower())


def check_header(sketch: NetworkSketch, tensors: Sequence[TensorInfo]) -> None:
    """Check that a file holds exactly the tensors of a network.

    Raises:
        CheckpointError: Names all that are missing, unexpected or of another shape.
    """
    wanted = {tensor.name: tensor.shape for tensor in sketch.tensors}
    found = {info.name: info.shape for info in tensors}
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unexpected" for name in found if name not in wanted]
    problems += [
        f"{name} is {list(found[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        raise CheckpointError(
            f"The weights of {sketch.name} do not fit the network that it describes: {'; '.join(problems)}."
        )
