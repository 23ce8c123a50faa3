"""Write checkpoints in TensorFlow's format, whole ones and broken ones."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from dmx.model.crc32c import masked_crc32c

DTYPES = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "int64": 9,
    "bool": 10,
    "float16": 19,
}
FOOTER = 48


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor_entry(array: np.ndarray, offset: int, changes: Mapping[str, int] | None = None) -> bytes:
    """Return the entry of a tensor; `changes` replace dtype, shard, offset, size, and add slices."""
    values = {"dtype": DTYPES[array.dtype.name], "shard": 0, "offset": offset, "size": array.nbytes, **(changes or {})}
    shape = b"".join(field(2, field(1, size)) for size in array.shape)
    checksum = masked_crc32c(array.tobytes()).to_bytes(4, "little")
    slices = field(7, b"") * values.get("slices", 0)
    place = field(3, values["shard"]) + field(4, values["offset"]) + field(5, values["size"])
    return field(1, values["dtype"]) + field(2, shape) + place + varint(6 << 3 | 5) + checksum + slices


def block(entries: Iterable[tuple[bytes, bytes]], *, restarts: int = 1, kind: int = 0) -> bytes:
    """Return a block with its trailer; every key repeats what it can of the one before."""
    content, last = b"", b""
    for key, value in entries:
        shared = next((k for k in range(min(len(key), len(last))) if key[k] != last[k]), min(len(key), len(last)))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    content += bytes(4 * restarts) + restarts.to_bytes(4, "little") + bytes([kind])
    return content + masked_crc32c(content).to_bytes(4, "little")


def table(blocks: Iterable[list[tuple[bytes, bytes]]], *, restarts: int = 1, kind: int = 0) -> bytes:
    """Return a table of blocks of entries."""
    data, handles = b"", []
    for entries in blocks:
        written = block(entries, restarts=restarts, kind=kind)
        handles.append((entries[-1][0] if entries else b"", varint(len(data)) + varint(len(written) - 5)))
        data += written
    return close(data, handles)


def close(data: bytes, handles: list[tuple[bytes, bytes]]) -> bytes:
    """Return blocks with the block of handles and the footer."""
    index = block(handles)
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(index) - 5)
    return data + index + footer.ljust(FOOTER - 8, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")


def header(*, shards: int = 1, endianness: int = 0) -> bytes:
    return field(1, shards) + field(2, endianness) + field(3, field(1, 1))


def write(
    prefix: Path, tensors: Mapping[str, np.ndarray], *, changes: Mapping[str, Mapping[str, int]] | None = None
) -> Path:
    """Write a checkpoint, three entries per block."""
    entries, data = [(b"", header())], b""
    for name in sorted(tensors):
        entries.append((name.encode(), tensor_entry(tensors[name], len(data), (changes or {}).get(name))))
        data += tensors[name].tobytes()
    prefix.with_name(f"{prefix.name}.index").write_bytes(table([entries[k : k + 3] for k in range(0, len(entries), 3)]))
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)
    return prefix
