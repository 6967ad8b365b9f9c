"""Cutting a step's samples into micro-batches of near-equal padded tokens.

Samples come sorted by length. A piece of n samples whose longest has t tokens costs n·t padded tokens: what a device
stores and computes. Pieces are contiguous, so that a piece holds like lengths; the least largest cost makes them
level, so that no worker waits for another (`cut`). Trading levelness for padding cost two to eight workers 1 to 2.5
points in waiting; a worker that cuts for itself alone waits for nobody, and takes the padding (`cut_alone`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

_MOST, _LEAST = 1.03, 0.9  # of what cut's pieces cost: memory must hold one, and small ones are slow
_LITTLE = 0.01  # a share of padding at which there is little to gain
_PLACES = 128  # tried for one edge, which bounds the work
_NEVER = 2**60


def cut(lengths: np.ndarray, n_pieces: int) -> np.ndarray:
    """Edges (int64 [n_pieces + 1]) of the contiguous pieces of ascending `lengths` with the least largest padded cost.

    Piece m is [edges[m], edges[m + 1]); pieces that are not needed are empty, at the short end. The least is found by
    bisection, over whole numbers of tokens.
    """
    ordered = lengths.tolist()
    low = max(ordered[-1], math.ceil(sum(ordered) / n_pieces)) if ordered else 0
    high, stride = low, max(1, low // 64)
    while (tops := _tops(ordered, high, n_pieces)) is None:
        low, high, stride = high + 1, high + stride, 2 * stride
    while low < high:
        middle = (low + high) // 2
        found = _tops(ordered, middle, n_pieces)
        if found is None:
            low = middle + 1
        else:
            high, tops = middle, found
    edges = np.zeros(n_pieces + 1, np.int64)
    edges[n_pieces + 1 - len(tops) :] = tops[::-1]
    return edges


def cut_alone(lengths: np.ndarray, n_pieces: int) -> np.ndarray:
    """Edges like `cut`'s with less padding in all, for pieces that nobody waits for and that may be less level.

    None costs over 3 % more than `cut`'s costliest, none under 90 % of `cut`'s mean (or of its cheapest, if less).
    Dynamic programming over the pieces from the short end (Bellman 1954): the limits leave each edge a narrow range of
    places, of which at most 128 are tried.
    """
    level = cut(lengths, n_pieces)
    costs = padded(lengths, level)
    if costs.sum() - lengths.sum() <= _LITTLE * costs.sum():
        return level
    cap, floor = int(_MOST * costs.max()), min(_LEAST * costs.mean(), costs.min())
    tried = _places(lengths, cap, level)
    least = np.zeros(1, np.int64)  # padded tokens of the pieces so far, for each place where they may end
    choices = []
    for before, at in pairwise(tried):
        cost = (at[:, None] - before) * lengths[at - 1, None]  # of one more piece; where at is 0, of no sample
        bad = (cost > cap) | (cost < floor) | ((cost == 0) & (at[:, None] > 0))
        through = np.where(bad, _NEVER, cost + least)
        choices.append(through.argmin(axis=1))
        least = through[np.arange(len(at)), choices[-1]]
    edges, chosen = [len(lengths)], 0
    for before, choice in zip(tried[-2::-1], reversed(choices), strict=True):
        chosen = int(choice[chosen])
        edges.append(int(before[chosen]))
    return np.array(edges[::-1], np.int64)


def _places(lengths: np.ndarray, cap: int, level: np.ndarray) -> list[np.ndarray]:
    """For each edge, ascending places that pieces within `cap` can reach from both ends; `level`'s are among them."""
    ordered, n_pieces = lengths.tolist(), len(level) - 1
    tops = _tops(ordered, cap, n_pieces)
    assert tops is not None  # `level` itself is within the cap
    lowest = [0] * (n_pieces + 1 - len(tops)) + tops[::-1]
    highest = [0]
    for _ in range(n_pieces):
        highest.append(_furthest(ordered, highest[-1], cap))
    places = []
    for low, high, own in zip(lowest, highest, level.tolist(), strict=True):
        stride = -(-(high + 1 - low) // _PLACES)
        places.append(np.union1d(np.arange(low, high + 1, stride), own) if stride > 1 else np.arange(low, high + 1))
    return places


def _furthest(ordered: Sequence[int], begin: int, cap: int) -> int:
    """Where the longest piece from `begin` within `cap` ends."""
    ends = range(begin + 1, len(ordered) + 1)
    return begin + bisect_right(ends, cap, key=lambda end: (end - begin) * ordered[end - 1])


def cut_for(sharers: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """How samples are cut whose pieces so many workers share."""
    return cut_alone if sharers == 1 else cut


def pieces_needed(lengths: np.ndarray, cap: int) -> int:
    """The fewest contiguous pieces of ascending `lengths` within `cap` padded tokens, or the longest sample's."""
    if not len(lengths):
        return 0
    tops = _tops(lengths.tolist(), max(cap, int(lengths[-1])), len(lengths))
    assert tops is not None  # one piece a sample always suffices
    return len(tops)


def padded(lengths: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Padded tokens of each piece (int64): samples in it times the longest of them, which is its last."""
    counts = np.diff(edges)
    longest = np.zeros(len(counts), np.int64)
    longest[counts > 0] = lengths[edges[1:][counts > 0] - 1]
    return counts * longest


def _tops(ordered: Sequence[int], cap: int, n_pieces: int) -> list[int] | None:
    """The ends of the fewest pieces within `cap`, from the longest samples down; None when n_pieces do not suffice.

    The longest sample left fixes how many fit with it; taking all that fit is best, as what is left is never longer.
    """
    tops = []
    end = len(ordered)
    while end > 0:
        if len(tops) == n_pieces:
            return None
        tops.append(end)
        end -= cap // ordered[end - 1]
    return tops
