"""Cutting: level pieces, the least largest of all, with little padding on lengths like those of conversations."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest

from twilbert.data.stream.partition import cut, cut_alone, padded, pieces_needed


def test_the_largest_piece_is_the_least_possible():
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = np.sort(rng.integers(1, 30, rng.integers(1, 12)))
        n_pieces = int(rng.integers(1, 5))
        edges = cut(lengths, n_pieces)
        n = len(lengths)
        assert edges[0] == 0 and edges[-1] == n and len(edges) == n_pieces + 1 and (np.diff(edges) >= 0).all()
        every_cut = combinations_with_replacement(range(n + 1), n_pieces - 1)
        least = min(padded(lengths, np.array([0, *inner, n])).max() for inner in every_cut)
        assert padded(lengths, edges).max() == least


@pytest.mark.parametrize(("n_pieces", "most_padding"), [(8, 0.14), (32, 0.04), (64, 0.025)])
def test_pieces_of_a_step_of_conversations_are_level_and_hold_little_padding(n_pieces, most_padding):
    """2,048 samples of two texts each, gamma-distributed in length: mean 30 tokens, a long tail."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        texts = np.clip(rng.gamma(2.2, 6.0, (2048, 2)).astype(np.int64) + 1, 1, 128)
        lengths = np.sort(texts.sum(axis=1) + 3)
        costs = padded(lengths, cut(lengths, n_pieces))
        assert costs.max() < 1.03 * costs.mean()
        assert 1 - lengths.sum() / costs.sum() < most_padding


def test_a_cut_for_one_worker_has_the_least_padding_of_all_near_equal_pieces():
    rng = np.random.default_rng(1)
    better = 0
    for _ in range(150):
        lengths = np.sort(rng.integers(1, 60, rng.integers(4, 14)))
        n_pieces = int(rng.integers(2, 5))
        level = padded(lengths, cut(lengths, n_pieces))
        if level.sum() - lengths.sum() <= 0.01 * level.sum():
            continue  # so little that it is left
        edges = cut_alone(lengths, n_pieces)
        costs = padded(lengths, edges)
        n = len(lengths)
        assert edges[0] == 0 and edges[-1] == n and len(edges) == n_pieces + 1 and (np.diff(edges) >= 0).all()
        every_cut = combinations_with_replacement(range(n + 1), n_pieces - 1)
        every = [padded(lengths, np.array([0, *inner, n])) for inner in every_cut]
        floor = min(0.9 * level.mean(), level.min())
        near_equal = [cost for cost in every if cost.max() <= 1.03 * level.max() and cost.min() >= floor]
        assert costs.sum() == min(cost.sum() for cost in near_equal)
        assert costs.max() <= 1.03 * level.max() and costs.min() >= floor
        better += costs.sum() < level.sum()
    assert better > 3


@pytest.mark.parametrize(
    ("n_samples", "n_pieces", "most_padding"), [(2048, 8, 0.12), (2048, 32, 0.03), (9000, 32, 0.032)]
)
def test_one_workers_micro_batches_of_conversations_hold_less_padding_and_are_near_equal(
    n_samples, n_pieces, most_padding
):
    rng = np.random.default_rng(0)
    texts = np.clip(rng.gamma(2.2, 6.0, (n_samples, 2)).astype(np.int64) + 1, 1, 128)
    lengths = np.sort(texts.sum(axis=1) + 3)
    level, costs = padded(lengths, cut(lengths, n_pieces)), padded(lengths, cut_alone(lengths, n_pieces))
    assert costs.max() <= 1.03 * level.max() and costs.min() > 0.89 * level.mean()
    assert 1 - lengths.sum() / costs.sum() < min(most_padding, 0.95 * (1 - lengths.sum() / level.sum()))


def test_pieces_outnumbering_the_samples_are_empty_at_the_short_end():
    assert cut(np.array([3, 5]), 4).tolist() == cut_alone(np.array([3, 5]), 4).tolist() == [0, 0, 0, 1, 2]
    assert cut(np.zeros(0, np.int64), 3).tolist() == cut_alone(np.zeros(0, np.int64), 3).tolist() == [0, 0, 0, 0]
    assert padded(np.array([3, 5]), np.array([0, 0, 0, 1, 2])).tolist() == [0, 0, 3, 5]


def test_pieces_needed_are_the_fewest_within_the_cap_or_the_longest_sample():
    lengths = np.array([2, 2, 4, 5, 9])
    assert pieces_needed(lengths, 10) == 3  # [2 2] [4 5] [9]
    assert pieces_needed(lengths, 3) == 4  # as with 9: [2] [2 4] [5] [9]
    assert pieces_needed(np.zeros(0, np.int64), 3) == 0
