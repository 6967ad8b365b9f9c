"""Counter-based randomness: a draw is a function of its key and number, independent of process and time.

`key` folds all that a draw depends on (seed, purpose, epoch, sample) into 64 bits, and `bits` returns a key's draws
0, 1, 2, … in any order: the splitmix64 generator at random access, finalise(key + (number + 1) · 0x9E3779B97F4A7C15).

Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (OOPSLA 2014), section 4, with the
finaliser "Mix13" of Stafford's table, as in java.util.SplittableRandom.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_ONE = np.uint64(1)
_MASK_64 = (1 << 64) - 1


class Purpose(IntEnum):
    """The purpose of a draw, part of its key: two purposes share no number. The values are part of the data order."""

    ROW_GROUP_ORDER = 1
    SAMPLE_ORDER = 2
    SPAN_START = 3
    SPAN_LENGTH = 4
    TOKEN_CHOICE = 5
    REPLACEMENT = 6
    RANDOM_TOKEN = 7


def key(seed: int, purpose: Purpose, *parts: int | np.ndarray) -> np.ndarray:
    """Return a uint64 key for `seed`, `purpose` and each element of the broadcast integer `parts`, in this order."""
    state = np.zeros((), np.uint64)
    for part in (seed, int(purpose), *parts):
        number = np.uint64(part & _MASK_64) if isinstance(part, int) else np.asarray(part).astype(np.uint64)
        state = bits(state, number)
    return state


def bits(keys: np.ndarray, numbers: np.ndarray | np.uint64 | int) -> np.ndarray:
    """Return 64 random bits for draw `numbers` (from 0) of `keys`; both uint64, broadcast against each other."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        z = np.asarray((np.asarray(numbers, np.uint64) + _ONE) * _GOLDEN + keys)
        z = (z ^ (z >> _30)) * _MIX_1
        z = (z ^ (z >> _27)) * _MIX_2
        return z ^ (z >> _31)


def uniform(keys: np.ndarray, numbers: np.ndarray | np.uint64 | int) -> np.ndarray:
    """Return float64 in [0, 1), 53 bits, for draw `numbers` of `keys`."""
    return (bits(keys, numbers) >> _11) * 2.0**-53


def below(keys: np.ndarray, numbers: np.ndarray | np.uint64 | int, bound: np.ndarray | int) -> np.ndarray:
    """Return int64 uniform over 0..bound-1 (bound below 2^32, so that the bias of scaling stays under 2^-21)."""
    return (uniform(keys, numbers) * bound).astype(np.int64)
