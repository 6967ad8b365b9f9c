"""Paired comparisons: the share of false verdicts, the power gained by pairing, and corrections by hand."""

from __future__ import annotations

import numpy as np
import pytest

from twilbert.tasks import metrics
from twilbert.tasks.comparison import AHEAD, BEHIND, NOT_TOLD_APART, holm, paired_bootstrap

LABELS = 3


def models(
    rng: np.random.Generator, rows: int, *accuracies: float, shared: float = 0.7
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Truths and predictions of models of these accuracies, which find the same rows hard in a share `shared`."""
    truths = rng.choice(LABELS, rows, p=[0.5, 0.3, 0.2])
    common = rng.random(rows)
    predicted = []
    for accuracy in accuracies:
        difficulty = np.where(rng.random(rows) < shared, common, rng.random(rows))
        wrong = (truths + rng.integers(1, LABELS, rows)) % LABELS
        predicted.append(np.where(difficulty < accuracy, truths, wrong))
    return truths, predicted


def false_verdicts(pairs: int, seeds: int) -> float:
    """Share of pairs of equally good models that are told apart, by macro-F1."""
    rng, wrong = np.random.default_rng(0), 0
    for number in range(pairs):
        truths, predicted = models(rng, 300, *[0.7] * (2 * seeds))
        one = paired_bootstrap(truths, predicted[:seeds], predicted[seeds:], "f1", resamples=400, seed=number)
        wrong += one.verdict() != NOT_TOLD_APART
    return wrong / pairs


def test_equal_models_are_rarely_told_apart():
    assert false_verdicts(80, 1) <= 0.05 + 2 * (0.05 * 0.95 / 80) ** 0.5
    assert false_verdicts(30, 3) <= 0.05 + 2 * (0.05 * 0.95 / 30) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_a_thousand_pairs_of_equal_models(seeds):
    share = false_verdicts(1000, seeds)
    print(f"{seeds} seeds: told apart in {share:.1%}")
    assert share / 2 <= 0.05  # «ahead»
    assert share <= 0.05 + 2 * (0.05 * 0.95 / 1000) ** 0.5


@pytest.mark.slow
def test_a_sweep_of_equal_models_has_a_false_verdict_in_a_twentieth_of_cases():
    rng, wrong, sweeps = np.random.default_rng(1), 0, 300
    for number in range(sweeps):
        truths, (yardstick, *others) = models(rng, 300, *[0.7] * 6)
        p_values = [paired_bootstrap(truths, [one], [yardstick], "f1", resamples=1000, seed=number).p for one in others]
        wrong += min(holm(p_values)) <= 0.05
    print(f"a verdict in {wrong / sweeps:.1%} of sweeps")
    assert wrong / sweeps <= 0.05 + 2 * (0.05 * 0.95 / sweeps) ** 0.5


def test_pairing_sees_what_an_unpaired_test_does_not():
    rng, paired, unpaired = np.random.default_rng(2), 0, 0
    for number in range(25):
        truths, (better, worse) = models(rng, 500, 0.76, 0.70, shared=0.9)
        one = paired_bootstrap(truths, [better], [worse], "f1", resamples=400, seed=number)
        assert one.low <= one.difference <= one.high
        spread = sum(metrics.bootstrap(truths, each, "f1", resamples=400).sd ** 2 for each in (better, worse)) ** 0.5
        paired += one.verdict() == AHEAD
        unpaired += one.difference > 1.96 * spread
    assert paired >= unpaired + 6, (paired, unpaired)


def test_the_verdict_turns_with_the_order_and_with_the_metric():
    truths, (good, bad) = models(np.random.default_rng(3), 400, 0.9, 0.6)
    one, other = (paired_bootstrap(truths, [a], [b], "accuracy") for a, b in ((good, bad), (bad, good)))
    assert (one.verdict(), other.verdict()) == (AHEAD, BEHIND)
    assert one.difference == -other.difference and one.p == other.p < 0.01
    errors = [truths + np.random.default_rng(4).normal(0, sd, 400) for sd in (0.1, 1.0)]
    assert paired_bootstrap(truths.astype(float), errors[:1], errors[1:], "mae").verdict() == AHEAD
    assert one.verdict(p=0.06) == NOT_TOLD_APART, "after correction"


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(5)
    truths, steady = models(rng, 2000, *[0.7] * 3)
    _, (good, bad) = models(rng, 2000, 0.8, 0.6)
    good, bad = (np.where(one == _, truths, one) for one in (good, bad))
    narrow = paired_bootstrap(truths, steady, steady, "accuracy")
    wide = paired_bootstrap(truths, [good, bad, steady[0]], steady, "accuracy")
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
