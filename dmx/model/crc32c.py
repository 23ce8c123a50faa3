"""The checksum of TensorFlow's files: CRC-32 with Castagnoli's polynomial (RFC 3720, appendix B.4).

Python's own CRC-32 has another polynomial. A loop costs 130 ns per byte, which is slow for a network's weights. The
remainder is linear in the data, so parts of equal length are computed side by side and joined afterwards, 20 ns.
"""

import math
from functools import cache
from typing import Final

import torch
from torch import Tensor

_POLYNOMIAL: Final = 0x82F63B78
_ALL_ONES: Final = 0xFFFFFFFF
# Below this a plain loop is faster.
_SHORT: Final = 4096


@cache
def _table() -> tuple[int, ...]:
    """Return the remainder of each byte."""
    remainders = []
    for value in range(256):
        remainder = value
        for _ in range(8):
            remainder = (remainder >> 1) ^ (_POLYNOMIAL if remainder & 1 else 0)
        remainders.append(remainder)
    return tuple(remainders)


def crc32c(data: bytes) -> int:
    """Return the checksum of some bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    return (_serial(data) if len(data) < _SHORT else _parallel(data)) ^ _ALL_ONES


def masked_crc32c(data: bytes) -> int:
    """Return the checksum as TensorFlow keeps it, turned and shifted so that a checksum of checksums is none."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _ALL_ONES


def _serial(data: bytes) -> int:
    table = _table()
    remainder = _ALL_ONES
    for byte in data:
        remainder = table[(remainder ^ byte) & 0xFF] ^ (remainder >> 8)
    return remainder


def _parallel(data: bytes) -> int:
    """Return the remainder from parts of equal length.

    Starting with all ones is the same as inverting the first four bytes, and zeros in front change nothing then.
    """
    count = 1 << (len(data).bit_length() // 2 + 2)
    length = math.ceil(len(data) / count)
    inverted = bytes(byte ^ 0xFF for byte in data[:4]) + data[4:]
    zeros = bytes(count * length - len(data))
    parts = torch.frombuffer(bytearray(zeros + inverted), dtype=torch.uint8).view(count, length)
    # The last 32 registers, one per bit, are only pushed on: they say what a part does to the remainder before it.
    registers = torch.cat([torch.zeros(count, dtype=torch.int64), 1 << torch.arange(32)])
    table = torch.tensor(_table())
    for column in parts.T.contiguous():
        registers[:count] ^= column
        registers = table[registers & 0xFF] ^ (registers >> 8)
    remainders, images = registers[:count], registers[count:]
    while len(remainders) > 1:
        remainders = _pushed(remainders[::2], images) ^ remainders[1::2]
        images = _pushed(images, images)
    return int(remainders)


def _pushed(remainders: Tensor, images: Tensor) -> Tensor:
    """Return the remainders after as many zeros as the images of the 32 bits stand for."""
    parts = (remainders[:, None] >> torch.arange(32) & 1) * images
    while parts.shape[1] > 1:
        parts = parts[:, ::2] ^ parts[:, 1::2]
    return parts[:, 0]
