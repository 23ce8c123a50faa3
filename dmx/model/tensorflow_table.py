"""The container of TensorFlow's checkpoints: a table in the format of LevelDB, and protocol buffers in it.

A table is a row of blocks of sorted entries, each with a checksum, found through a block of handles, which the last 48
bytes point to. Nothing is trusted: every length is held against what is there before anything is read.
"""

from collections.abc import Iterator
from typing import Final

from dmx.model.crc32c import masked_crc32c

_MAGIC: Final = 0xDB4775248B80FB57
_FOOTER: Final = 48
# Entries repeat the beginning of the name before, so a small file could hold names without end.
_LONGEST_NAME: Final = 4096
_ALL_NAMES: Final = 1 << 26


class MalformedError(Exception):
    """What is wrong with the table, in words."""


def entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield all entries, names ascending.

    Raises:
        MalformedError: The table is damaged or of a kind that cannot be read.
    """
    if len(data) < _FOOTER:
        raise MalformedError(f"{len(data)} bytes are too few")
    footer = data[-_FOOTER:]
    if int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise MalformedError("it does not end in the mark of such a table; it is of another kind, or cut short")
    _, position = _handle(footer, 0)
    index, _ = _handle(footer, position)
    last: bytes | None = None
    total = done = 0
    for number, (_, handle) in enumerate(_block_entries(_block(data, index, "the table of blocks"))):
        place, _ = _handle(handle, 0)
        if place[0] < done:
            raise MalformedError(f"block {number} overlaps the one before")
        done = sum(place)
        for key, value in _block_entries(_block(data, place, f"block {number}")):
            if last is not None and key <= last:
                raise MalformedError(f"the names in block {number} are not in order")
            total += len(key)
            if total > _ALL_NAMES:
                raise MalformedError("its names are longer than any network's")
            last = key
            yield key, value


def _block(data: bytes, place: tuple[int, int], what: str) -> bytes:
    """Return the content of a block, its checksum compared."""
    offset, size = place
    end = offset + size
    if end + 5 > len(data) - _FOOTER:
        raise MalformedError(f"{what} should lie at bytes {offset} to {end} of {len(data)}")
    kind = data[end]
    if masked_crc32c(data[offset : end + 1]) != int.from_bytes(data[end + 1 : end + 5], "little"):
        raise MalformedError(f"the checksum of {what} does not fit: the file is damaged")
    if kind:
        raise MalformedError(
            f"{what} is compressed ({'snappy' if kind == 1 else f'kind {kind}'}), which is not supported"
        )
    return data[offset:end]


def _block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of a block; each key begins with a part of the one before."""
    restarts = int.from_bytes(block[-4:], "little") if len(block) >= 4 else -1
    end = len(block) - 4 * (restarts + 1)
    if restarts < 0 or end < 0:
        raise MalformedError("a block says that it has more restart points than bytes")
    position, key = 0, b""
    while position < end:
        shared, position = _varint(block, position)
        added, position = _varint(block, position)
        size, position = _varint(block, position)
        if shared > len(key) or position + added + size > end:
            raise MalformedError("an entry is longer than its block")
        if shared + added > _LONGEST_NAME:
            raise MalformedError(f"a name has more than {_LONGEST_NAME} bytes")
        key = key[:shared] + block[position : position + added]
        position += added
        yield key, block[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number of at most 64 bits, seven per byte, lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise MalformedError("a number is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise MalformedError("a number has more than 64 bits")


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Return offset and size of a block, and where they end."""
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    return (offset, size), position


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protocol buffer: number and value."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(message, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise MalformedError(f"a field is of the unknown kind {wire}")
        content = message[position : position + length]
        if len(content) < length:
            raise MalformedError("a field is cut off")
        position += length
        yield number, content if wire == 2 else int.from_bytes(content, "little")


def as_number(value: int | bytes) -> int:
    """Return a field's value that must be a number."""
    if isinstance(value, bytes):
        raise MalformedError("a field should hold a number")
    return value


def as_message(value: int | bytes) -> bytes:
    """Return a field's value that must be a message."""
    if not isinstance(value, bytes):
        raise MalformedError("a field should hold a message")
    return value
