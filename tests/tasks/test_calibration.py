"""Calibration on generated rows whose true probabilities are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from twilbert.model.calibration import Calibration, ConfidenceCut
from twilbert.model.problems import MULTI, SINGLE
from twilbert.tasks import calibration, metrics


def single(rng: np.random.Generator, rows: int, temperature: float, labels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a model whose logits are `temperature` times too large, and truths."""
    logits = rng.normal(0, 1.5, (rows, labels))
    true = special.softmax(logits, 1)
    truths = (true.cumsum(1) > rng.random((rows, 1))).argmax(1)
    return special.softmax(temperature * logits, 1).astype(np.float32), truths


def multi(rng: np.random.Generator, rows: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    logits = rng.normal(-1.5, 1.2, (rows, 6))
    flags = (special.expit(logits) > rng.random(logits.shape)).astype(np.int64)
    return special.expit(temperature * logits).astype(np.float32), flags


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
@pytest.mark.parametrize(("problem", "make"), [(SINGLE, single), (MULTI, multi)])
def test_the_temperature_is_the_true_one(problem, make, true):
    probabilities, truths = make(np.random.default_rng(0), 20_000, true)
    assert calibration.fit_temperature(probabilities, truths, problem) == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize(("problem", "make"), [(SINGLE, single), (MULTI, multi)])
def test_an_overtrained_models_error_is_halved_on_other_rows(problem, make):
    rng = np.random.default_rng(1)
    dev, test = make(rng, 2_000, 4.0), make(rng, 5_000, 4.0)
    temperature = calibration.fit_temperature(*dev, problem)
    after = calibration.at_temperature(test[0], problem, temperature)
    before = calibration.reliability(*test, problem).expected_error
    assert before > 0.1
    assert calibration.reliability(after, test[1], problem).expected_error < before / 2
    assert calibration.log_loss(after, test[1], problem) < calibration.log_loss(*test, problem)
    if problem == SINGLE:
        assert np.array_equal(after.argmax(1), test[0].argmax(1)), "labels stay"
        np.testing.assert_allclose(after.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(("metric", "average"), [("f1", "macro"), ("f1", "micro"), ("jaccard", None)])
def test_thresholds_raise_the_metric_on_other_rows_on_average(metric, average):
    def score(truths: np.ndarray, flags: np.ndarray) -> float:
        return metrics.score(truths, flags, metric, average=average)

    gains = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        (dev, dev_truths), (test, test_truths) = multi(rng, 500), multi(rng, 1_000)
        thresholds = calibration.fit_thresholds(dev, dev_truths, metric, average=average)
        gains.append(score(test_truths, test >= thresholds) - score(test_truths, test >= 0.5))
    assert np.mean(gains) > 0.02, gains


def test_a_label_that_never_occurs_keeps_its_threshold():
    probabilities, truths = multi(np.random.default_rng(0), 200)
    truths[:, 2] = 0
    thresholds = calibration.fit_thresholds(probabilities, truths, "f1")
    assert thresholds[2] == 0.5 and (thresholds != 0.5).any()


def test_reliability_by_hand():
    probabilities = np.array([[0.92, 0.08], [0.91, 0.09], [0.45, 0.55], [0.45, 0.55]])
    got = calibration.reliability(probabilities, np.array([0, 1, 1, 1]), SINGLE, bins=10)
    np.testing.assert_allclose(got.confidence, [0.55, 0.915])
    np.testing.assert_allclose(got.accuracy, [1.0, 0.5])
    assert got.rows.tolist() == [2, 2] and got.expected_error == pytest.approx((0.45 + 0.415) / 2)


def test_a_cut_reaches_its_precision_on_other_rows():
    errors = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        dev, test = (calibration.confidences(*single(rng, 1_000, 2.0), SINGLE) for _ in range(2))
        cut = Calibration(cuts=calibration.fit_cuts(*dev)).cut(0.8)
        assert cut is not None and cut.precision >= 0.8 and 0.02 < cut.share < 0.9
        answered = test[0] >= cut.confidence
        errors.append(test[1][answered].mean() - 0.8)
        assert abs(errors[-1]) < 3 * (0.16 / answered.sum()) ** 0.5 + 0.02
    assert abs(np.mean(errors)) < 0.02


def test_rows_of_equal_confidence_are_answered_together():
    confidence, right = np.array([0.9, 0.8, 0.8, 0.8]), np.array([1.0, 1.0, 0.0, 0.0])
    confidence, right = np.repeat(confidence, 10), np.repeat(right, 10)
    assert calibration.fit_cuts(confidence, right) == (ConfidenceCut(0.9, 1.0, 0.25), ConfidenceCut(0.8, 0.5, 1.0))
    assert Calibration(cuts=calibration.fit_cuts(confidence, right)).cut(0.9) == ConfidenceCut(0.9, 1.0, 0.25)
    assert Calibration(cuts=calibration.fit_cuts(confidence, np.zeros(40))).cut(0.9) is None


def test_a_positive_class_gets_the_threshold_of_its_metric():
    rng = np.random.default_rng(0)
    share = rng.beta(1, 6, 2_000)
    truths, probabilities = (share > rng.random(2_000)).astype(np.int64), np.stack([1 - share, share], 1)
    fitted = calibration.fit(probabilities, truths, SINGLE, "f1", average=None, labels=[1])
    assert fitted.thresholds is not None and fitted.thresholds[1] < 0.4
    assert calibration.fit(probabilities, truths, SINGLE, "accuracy", average=None).thresholds is None


def test_precision_is_that_of_the_label_which_the_threshold_gives():
    rng = np.random.default_rng(0)
    share = rng.beta(1, 6, 4_000)
    truths, probabilities = (share > rng.random(4_000)).astype(np.int64), np.stack([1 - share, share], 1)
    fitted = calibration.fit(probabilities, truths, SINGLE, "f1", average=None, labels=[1])
    last = fitted.cuts[-1]
    assert fitted.thresholds is not None and last.share == 1
    scaled = calibration.at_temperature(probabilities, SINGLE, fitted.temperature)
    answers = scaled[:, 1] >= fitted.thresholds[1]
    assert last.precision == pytest.approx((answers == truths).mean())
    assert last.precision < (scaled.argmax(1) == truths).mean(), "the threshold gives up accuracy for F1"
