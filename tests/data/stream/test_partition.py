"""Partitions of a step: level micro-batches of the least largest cost, or near-equal ones of the least padding."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest

from twilbert.data.stream.partition import balanced, least_padding, padded, pieces_needed


def every_cost(lengths: np.ndarray, n_pieces: int) -> list[np.ndarray]:
    """The costs of all partitions into contiguous pieces."""
    n = len(lengths)
    inner = combinations_with_replacement(range(n + 1), n_pieces - 1)
    return [padded(lengths, np.array([0, *edges, n])) for edges in inner]


def costs_of(partition, lengths: np.ndarray, n_pieces: int) -> np.ndarray:
    edges = partition(lengths, n_pieces)
    assert edges[0] == 0 and edges[-1] == len(lengths) and len(edges) == n_pieces + 1 and (np.diff(edges) >= 0).all()
    return padded(lengths, edges)


def conversations(n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Ascending lengths of samples of two texts, gamma-distributed: mean 30 tokens, a long tail."""
    texts = np.clip(rng.gamma(2.2, 6.0, (n_samples, 2)).astype(np.int64) + 1, 1, 128)
    return np.sort(texts.sum(axis=1) + 3)


def test_the_largest_piece_is_the_least_possible():
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths, n_pieces = np.sort(rng.integers(1, 30, rng.integers(1, 12))), int(rng.integers(1, 5))
        assert costs_of(balanced, lengths, n_pieces).max() == min(c.max() for c in every_cost(lengths, n_pieces))


def test_the_padding_is_the_least_of_all_near_equal_pieces():
    rng = np.random.default_rng(1)
    better = 0
    for _ in range(150):
        lengths, n_pieces = np.sort(rng.integers(1, 60, rng.integers(4, 14))), int(rng.integers(2, 5))
        level = costs_of(balanced, lengths, n_pieces)
        if level.sum() - lengths.sum() <= 0.01 * level.sum():
            continue  # too little to gain
        costs = costs_of(least_padding, lengths, n_pieces)
        most, least = 1.03 * level.max(), min(0.9 * level.mean(), level.min())
        near_equal = [c for c in every_cost(lengths, n_pieces) if c.max() <= most and c.min() >= least]
        assert costs.sum() == min(c.sum() for c in near_equal)
        assert costs.max() <= most and costs.min() >= least
        better += costs.sum() < level.sum()
    assert better > 3


@pytest.mark.parametrize(
    ("n_samples", "n_pieces", "level_padding", "padding"),
    [(2048, 8, 0.14, 0.12), (2048, 32, 0.04, 0.03), (2048, 64, 0.025, 0.025), (9000, 32, 0.05, 0.032)],
)
def test_pieces_of_conversations_are_level_and_hold_little_padding(n_samples, n_pieces, level_padding, padding):
    lengths = conversations(n_samples, np.random.default_rng(0))
    level, costs = costs_of(balanced, lengths, n_pieces), costs_of(least_padding, lengths, n_pieces)
    assert level.max() < 1.03 * level.mean() and 1 - lengths.sum() / level.sum() < level_padding
    assert costs.max() <= 1.03 * level.max() and costs.min() > 0.89 * level.mean()
    assert 1 - lengths.sum() / costs.sum() < min(padding, 0.95 * (1 - lengths.sum() / level.sum()))


@pytest.mark.parametrize("partition", [balanced, least_padding])
def test_pieces_outnumbering_the_samples_are_empty_at_the_short_end(partition):
    assert partition(np.array([3, 5]), 4).tolist() == [0, 0, 0, 1, 2]
    assert partition(np.zeros(0, np.int64), 3).tolist() == [0, 0, 0, 0]


def test_pieces_needed_are_the_fewest_within_the_cap_or_the_longest_sample():
    lengths = np.array([2, 2, 4, 5, 9])
    assert pieces_needed(lengths, 10) == 3  # [2 2] [4 5] [9]
    assert pieces_needed(lengths, 3) == 4  # as with 9: [2] [2 4] [5] [9]
    assert pieces_needed(np.zeros(0, np.int64), 3) == 0
