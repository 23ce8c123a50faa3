"""Read checkpoints of TensorFlow 1 and 2 ("tensor bundles") without TensorFlow.

A checkpoint ``PREFIX`` is a table ``PREFIX.index`` and the bytes of its tensors in ``PREFIX.data-00000-of-00001``. An
entry of the table is a protocol buffer that says type, shape, place and checksum of one tensor; that of the empty name
says how many data files there are.

Nothing is trusted: every place is held against the file before anything is read or allocated, every checksum is
compared. Compressed tables, tensors stored in slices, text and big-endian numbers are refused by name.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from dmx.errors import CheckpointError
from dmx.model.crc32c import masked_crc32c
from dmx.model.tensorflow_table import MalformedError, as_message, as_number, entries, fields

# An entry takes about 30 bytes: enough for a million tensors.
_LARGEST_INDEX: Final = 1 << 25
_MOST_AXES: Final = 254

_DTYPES: Final = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    19: torch.float16,
}
_STRING: Final = 7


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies and what it is.

    Attributes:
        name: Name of the variable.
        dtype: TensorFlow's number of the type.
        shape: Its shape.
        shard: Number of the data file.
        offset: First byte in it.
        size: Bytes.
        checksum: Masked checksum of the bytes.
        sliced: Whether it is stored in slices.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    sliced: bool


@dataclass(frozen=True, kw_only=True)
class TensorFlowCheckpoint:
    """A checkpoint whose table has been read; tensors are read one by one.

    Attributes:
        prefix: Path without ``.index``.
        tensors: All tensors by name.
        shards: Number of data files.
    """

    prefix: Path
    tensors: Mapping[str, StoredTensor]
    shards: int

    def data_files(self) -> list[Path]:
        """Return the files with the tensors' bytes."""
        return [self._data_file(shard) for shard in range(self.shards)]

    def read(self, name: str) -> Tensor:
        """Return a tensor, its checksum compared.

        Raises:
            CheckpointError: It is missing, damaged, stored in slices, or of a type that cannot be read.
        """
        stored = self.tensors.get(name)
        if stored is None:
            raise CheckpointError(f"TensorFlow checkpoint '{self.prefix}' has no tensor '{name}'.")
        dtype = self._readable(stored)
        data = self._bytes(stored)
        if masked_crc32c(data) != stored.checksum:
            raise CheckpointError(
                f"TensorFlow checkpoint '{self.prefix}' is damaged: the checksum of tensor '{name}' does not fit. "
                "Copy it again from where it was trained."
            )
        if not data:
            return torch.empty(stored.shape, dtype=dtype)
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(stored.shape)

    def sha256(self) -> str:
        """Return the SHA-256 of the data files, one after the other; of a single one what ``sha256sum`` prints."""
        digest = hashlib.sha256()
        for path in self.data_files():
            with path.open("rb") as file:
                while data := file.read(1 << 20):
                    digest.update(data)
        return digest.hexdigest()

    def _data_file(self, shard: int) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{shard:05d}-of-{self.shards:05d}")

    def _readable(self, stored: StoredTensor) -> torch.dtype:
        """Return the type of a tensor that is stored in one piece, with as many bytes as its shape needs."""
        owner = f"Tensor '{stored.name}' of TensorFlow checkpoint '{self.prefix}'"
        if stored.sliced:
            raise CheckpointError(f"{owner} is stored in slices (a partitioned variable), which cannot be read.")
        dtype = _DTYPES.get(stored.dtype)
        if dtype is None:
            kind = "text" if stored.dtype == _STRING else f"the unknown type {stored.dtype}"
            raise CheckpointError(f"{owner} holds {kind}; only numbers can be read.")
        wanted = math.prod(stored.shape) * dtype.itemsize
        if stored.size != wanted:
            raise CheckpointError(f"{owner} has {stored.size} bytes; shape {list(stored.shape)} needs {wanted}.")
        return dtype

    def _bytes(self, stored: StoredTensor) -> bytes:
        if not 0 <= stored.shard < self.shards:
            raise CheckpointError(
                f"TensorFlow checkpoint '{self.prefix}' is damaged: tensor '{stored.name}' lies in data file "
                f"{stored.shard} of {self.shards}."
            )
        path = self._data_file(stored.shard)
        try:
            with path.open("rb") as file:
                length = path.stat().st_size
                if not 0 <= stored.offset <= stored.offset + stored.size <= length:
                    raise CheckpointError(
                        f"'{path}' is damaged: it has {length} bytes; tensor '{stored.name}' should lie at bytes "
                        f"{stored.offset} to {stored.offset + stored.size}."
                    )
                file.seek(stored.offset)
                return file.read(stored.size)
        except OSError as error:
            raise CheckpointError(f"'{path}' cannot be read: {error.strerror or error}.") from error


def open_tensorflow_checkpoint(prefix: Path) -> TensorFlowCheckpoint:
    """Read the table of a checkpoint.

    Args:
        prefix: Path without ``.index``; with it, or that of a data file, is understood too.

    Raises:
        CheckpointError: There is none, it is damaged, or it is of a kind that cannot be read.
    """
    if prefix.is_dir():
        found = [path.name.removesuffix(".index") for path in sorted(prefix.glob("*.index"))]
        some = f"such as '{prefix / found[-1]}'" if found else "but there is none"
        raise CheckpointError(f"'{prefix}' is a folder: give the path of one checkpoint in it, {some}.")
    prefix = prefix.with_name(prefix.name.removesuffix(".index").partition(".data-")[0])
    path = prefix.with_name(f"{prefix.name}.index")
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_INDEX + 1)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"There is no TensorFlow checkpoint '{prefix}': '{path.name}' is missing. Give the path that its files "
            "share, without '.index' and '.data-00000-of-00001'."
        ) from error
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    if len(data) > _LARGEST_INDEX:
        raise CheckpointError(f"'{path}' is no table of a checkpoint: it is larger than {_LARGEST_INDEX >> 20} MiB.")
    try:
        return _checkpoint(prefix, data)
    except MalformedError as problem:
        raise CheckpointError(f"'{path}' cannot be read as a TensorFlow checkpoint's table: {problem}.") from problem


def _checkpoint(prefix: Path, data: bytes) -> TensorFlowCheckpoint:
    tensors: dict[str, StoredTensor] = {}
    shards = 0
    for key, value in entries(data):
        if not key:
            shards = _shards(value)
        else:
            name = key.decode("utf-8", errors="backslashreplace")
            tensors[name] = _stored(name, value)
    if not shards:
        raise MalformedError("it has no header")
    return TensorFlowCheckpoint(prefix=prefix, tensors=tensors, shards=shards)


def _shards(header: bytes) -> int:
    """Return the number of data files that the header names."""
    shards = 0
    for number, value in fields(header):
        if number == 1:
            shards = as_number(value)
        elif number == 2 and value != 0:
            raise MalformedError("its numbers are big-endian, which is not supported")
    if not 1 <= shards <= 99999:
        raise MalformedError(f"it names {shards} data files")
    return shards


def _stored(name: str, entry: bytes) -> StoredTensor:
    shape: tuple[int, ...] = ()
    numbers = dict.fromkeys((1, 3, 4, 5, 6), 0)
    sliced = False
    for number, value in fields(entry):
        if number == 2:
            shape = _shape(name, as_message(value))
        elif number == 7:
            sliced = True
        elif number in numbers:
            numbers[number] = as_number(value)
    dtype, shard, offset, size, checksum = numbers.values()
    return StoredTensor(
        name=name,
        dtype=dtype,
        shape=shape,
        shard=shard,
        offset=offset,
        size=size,
        checksum=checksum,
        sliced=sliced,
    )


def _shape(name: str, message: bytes) -> tuple[int, ...]:
    sizes = []
    for number, value in fields(message):
        if number == 2:
            size = next((as_number(found) for key, found in fields(as_message(value)) if key == 1), 0)
            if size >= 1 << 63:
                raise MalformedError(f"tensor '{name}' has a size below 0")
            sizes.append(size)
            if len(sizes) > _MOST_AXES:
                raise MalformedError(f"tensor '{name}' has more than {_MOST_AXES} axes")
    return tuple(sizes)
