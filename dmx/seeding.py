"""Random numbers as pure functions of (seed, what for, epoch, step, index).

No generator keeps a state, so the draws of a step do not depend on which process, worker or device makes them, nor on
what was drawn before: a resumed training sees what an uninterrupted one sees.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def derive(seed: int, *path: str | int) -> int:
    """Return a signed 64-bit key for the named place, e.g. ``derive(seed, "center", epoch, step, index)``."""
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Shift as if the 64-bit integers were unsigned."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def bits(key: int, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Return 64 random bits per element (int64), the same on every device.

    SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014) in counter mode.
    """
    counter = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=device)
    state = counter * _GOLDEN + key
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    return (state ^ _shift_right(state, 31)).reshape(tuple(shape))


def uniform(key: int, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Return float32 numbers from [0, 1), the same on every device."""
    return _shift_right(bits(key, shape, device), 40).to(torch.float32) * 2.0**-24


def normal(key: int, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Return standard normal float32 numbers (Box and Muller 1958), equal across devices up to rounding."""
    count = math.prod(shape)
    half = (count + 1) // 2
    pair = uniform(key, (2, half), device)
    radius = torch.sqrt(-2.0 * torch.log1p(-pair[0]))
    angle = 2.0 * math.pi * pair[1]
    both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])
    return both[:count].reshape(tuple(shape))


def scalar(key: int) -> float:
    """Return one number from [0, 1) with 53 random bits, without a tensor."""
    mask = (1 << 64) - 1
    state = (key + _GOLDEN) & mask
    state = ((state ^ (state >> 30)) * _MIX_1) & mask
    state = ((state ^ (state >> 27)) * _MIX_2) & mask
    return ((state ^ (state >> 31)) >> 11) * 2.0**-53
