"""Partition a step's samples, sorted by length, into micro-batches of near-equal padded tokens.

A micro-batch is a contiguous run of the sorted samples; n samples of which the longest has t tokens cost n·t padded
tokens, which a device stores and computes. Workers that share a step wait for the slowest, so they get micro-batches of
the least largest cost (`balanced`): less padding at uneven costs lost two to eight workers 1 to 2.5 % in waiting. A
worker that partitions its samples alone waits for nobody and gets less padding (`least_padding`).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

_MOST, _LEAST = 1.03, 0.9  # bounds of a cost, relative to `balanced`: memory must hold it, and small ones are slow
_LITTLE_PADDING = 0.01  # share of padding below which `balanced` is good enough
_CANDIDATES = 128  # positions tried for an edge
_NEVER = 2**60


def balanced(lengths: np.ndarray, n_pieces: int) -> np.ndarray:
    """Return the edges (int64 [n_pieces + 1]) of the partition of ascending `lengths` with the least largest cost.

    Piece m is [edges[m], edges[m + 1]); pieces that are not needed are empty, at the short end.
    """
    ordered = lengths.tolist()
    if not ordered:
        return np.zeros(n_pieces + 1, np.int64)
    low = max(ordered[-1], math.ceil(sum(ordered) / n_pieces))
    high = ordered[-1] * math.ceil(len(ordered) / n_pieces)  # equally many samples in each
    cap = low + bisect_left(range(low, high), True, key=lambda cap: len(_ends(ordered, cap, n_pieces)) <= n_pieces)
    return np.array(_padded_front(_ends(ordered, cap, n_pieces), n_pieces), np.int64)


def least_padding(lengths: np.ndarray, n_pieces: int) -> np.ndarray:
    """Return edges like `balanced`'s with the least padding in all.

    No cost is over 3 % above `balanced`'s largest, none under 90 % of its mean (or under its smallest, if less).
    Dynamic programming over the pieces from the short end (Bellman 1954): the bounds leave a narrow range of positions
    for each edge, of which at most 128 are tried.
    """
    level = balanced(lengths, n_pieces)
    costs = padded(lengths, level)
    if costs.sum() - lengths.sum() <= _LITTLE_PADDING * costs.sum():
        return level
    cap, floor = int(_MOST * costs.max()), min(_LEAST * costs.mean(), costs.min())
    candidates = _candidates(lengths, cap, level)
    least = np.zeros(1, np.int64)  # padded tokens of the pieces so far, for each position at which they may end
    choices = []
    for before, at in pairwise(candidates):
        cost = (at[:, None] - before) * lengths[at - 1, None]  # of one more piece; where `at` is 0, of no sample
        outside = (cost > cap) | (cost < floor) | ((cost == 0) & (at[:, None] > 0))
        total = np.where(outside, _NEVER, cost + least)
        choices.append(total.argmin(axis=1))
        least = total[np.arange(len(at)), choices[-1]]
    edges, chosen = [len(lengths)], 0
    for before, choice in zip(candidates[-2::-1], reversed(choices), strict=True):
        chosen = int(choice[chosen])
        edges.append(int(before[chosen]))
    return np.array(edges[::-1], np.int64)


def partitioner(readers: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """Return the partition for samples that `readers` workers share."""
    return least_padding if readers == 1 else balanced


def pieces_needed(lengths: np.ndarray, cap: int) -> int:
    """Count the fewest pieces of ascending `lengths` that each cost at most `cap`, or the longest sample's cost."""
    return len(_ends(lengths.tolist(), max(cap, int(lengths[-1])), len(lengths))) if len(lengths) else 0


def padded(lengths: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the padded tokens of each piece (int64): its samples times the length of the last."""
    counts = np.diff(edges)
    longest = np.zeros(len(counts), np.int64)
    longest[counts > 0] = lengths[edges[1:][counts > 0] - 1]
    return counts * longest


def _ends(ordered: Sequence[int], cap: int, most: int) -> list[int]:
    """The ends of the fewest pieces within `cap`, from the longest samples down; more than `most` are not listed.

    The longest sample left fixes how many fit with it; taking all that fit is best, as what is left is never longer.
    """
    ends = []
    end = len(ordered)
    while end > 0 and len(ends) <= most:
        ends.append(end)
        end -= cap // ordered[end - 1]
    return ends


def _padded_front(ends: list[int], n_pieces: int) -> list[int]:
    return [0] * (n_pieces + 1 - len(ends)) + ends[::-1]


def _candidates(lengths: np.ndarray, cap: int, level: np.ndarray) -> list[np.ndarray]:
    """For each edge the ascending positions that pieces within `cap` reach from both ends, `level`'s among them."""
    ordered, n_pieces = lengths.tolist(), len(level) - 1
    lowest, highest = _padded_front(_ends(ordered, cap, n_pieces), n_pieces), [0]
    for _ in range(n_pieces):
        begin = highest[-1]
        ends = range(begin + 1, len(ordered) + 1)
        highest.append(begin + bisect_right(ends, cap, key=lambda end, begin=begin: (end - begin) * ordered[end - 1]))
    positions = []
    for low, high, own in zip(lowest, highest, level.tolist(), strict=True):
        stride = -(-(high + 1 - low) // _CANDIDATES)
        positions.append(np.union1d(np.arange(low, high + 1, stride), own))
    return positions
