"""Probabilities that can be acted on: temperature, thresholds and confidence cuts, fitted on held-out rows.

Letters: N rows, C labels. Probabilities are float [N, C]; truths are as in metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special

from twilbert.model.calibration import Calibration, ConfidenceCut
from twilbert.model.problems import MULTI
from twilbert.tasks import metrics

_SMALLEST = 1e-12  # of a probability, whose logarithm is taken
_TEMPERATURES = (0.05, 20.0)
_CANDIDATES = 200  # thresholds of a label that are tried


def at_temperature(probabilities: np.ndarray, problem: str, temperature: float) -> np.ndarray:
    """Return the probabilities of logits divided by `temperature` (Guo et al. 2017); above 1 they are less sure."""
    p_NC = np.clip(probabilities.astype(np.float64), _SMALLEST, 1 - _SMALLEST)
    if problem == MULTI:
        return special.expit(special.logit(p_NC) / temperature)
    return special.softmax(np.log(p_NC) / temperature, axis=1)


def fit_temperature(probabilities: np.ndarray, truths: np.ndarray, problem: str) -> float:
    """Return the temperature of the least log loss on these rows, between 0.05 and 20."""

    def loss(log_temperature: float) -> float:
        return log_loss(at_temperature(probabilities, problem, float(np.exp(log_temperature))), truths, problem)

    bounds = tuple(np.log(_TEMPERATURES))
    best: Any = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(best.x))


def log_loss(probabilities: np.ndarray, truths: np.ndarray, problem: str) -> float:
    """Return the mean negative log-likelihood of the truths: a row's, or for multi-label a label's of a row."""
    p_NC = np.clip(probabilities, _SMALLEST, 1 - _SMALLEST)
    if problem == MULTI:
        return float(-np.where(truths == 1, np.log(p_NC), np.log1p(-p_NC)).mean())
    return float(-np.log(p_NC[np.arange(len(truths)), truths]).mean())


def fit_thresholds(
    probabilities: np.ndarray,
    truths: np.ndarray,
    metric: str,
    *,
    average: str | None = "macro",
    labels: Sequence[int] | None = None,
    rounds: int = 2,
) -> np.ndarray:
    """Return a threshold for each label [C] of a multi-label task, one after the other the best for its metric.

    Where neighbouring thresholds are equally good, their middle; 0.5 where nothing is better.
    """
    thresholds = np.full(probabilities.shape[1], 0.5)
    flags = (probabilities >= thresholds).astype(np.int64)
    truths = truths.astype(np.int64)
    for _ in range(rounds):
        before = thresholds.copy()
        for label in np.flatnonzero(truths.any(0)).tolist():
            cuts = _cuts(probabilities[:, label])
            columns_KN = (probabilities[:, label] >= cuts[:, None]).astype(np.int64)
            columns_KN[0] = flags[:, label]  # the threshold so far
            cuts[0] = thresholds[label]
            scores = metrics.scores_with_column(
                truths, flags, label, columns_KN, metric, average=average, labels=labels
            )
            if scores.max() > scores[0] + 1e-12:
                best = np.flatnonzero(scores == scores.max())
                run = best[: 1 + np.argmin(np.append(np.diff(best) == 1, False))]  # the first stretch of neighbours
                thresholds[label] = cuts[run].mean()
            flags[:, label] = probabilities[:, label] >= thresholds[label]
        if np.array_equal(thresholds, before):
            break
    return thresholds


def _cuts(p_N: np.ndarray) -> np.ndarray:
    """Thresholds to try, ascending, between all values or many quantiles; the first is a place holder."""
    values = np.unique(p_N.astype(np.float64))
    if len(values) > _CANDIDATES:
        values = np.unique(np.quantile(values, np.linspace(0, 1, _CANDIDATES)))
    return np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [values[-1] + _SMALLEST]])


@dataclass(frozen=True)
class Reliability:
    """Rows by confidence: in each of equally wide bins that has rows, their confidence, share right and number."""

    confidence: np.ndarray
    accuracy: np.ndarray
    rows: np.ndarray

    @property
    def expected_error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): the mean over rows of |confidence - accuracy| of the bin."""
        return float((np.abs(self.confidence - self.accuracy) * self.rows).sum() / self.rows.sum())


def reliability(probabilities: np.ndarray, truths: np.ndarray, problem: str, bins: int = 15) -> Reliability:
    """Return the reliability of the predicted label, or for multi-label of each flag."""
    confidence, right = confidences(probabilities, truths, problem)
    number = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    rows = np.bincount(number, minlength=bins)
    filled = rows > 0
    sums = [np.bincount(number, weights=values, minlength=bins)[filled] for values in (confidence, right)]
    return Reliability(sums[0] / rows[filled], sums[1] / rows[filled], rows[filled])


def confidences(
    probabilities: np.ndarray, truths: np.ndarray, problem: str, predicted: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (confidence, whether right) of each prediction: a row's, or for multi-label each label's of a row.

    `predicted`: label numbers of single-label rows where thresholds decide; None: the most probable.
    """
    if problem == MULTI:
        flat = probabilities.ravel()
        flags = flat >= 0.5
        return np.where(flags, flat, 1 - flat), (flags == truths.ravel()).astype(np.float64)
    answers = probabilities.argmax(1) if predicted is None else predicted
    return probabilities[np.arange(len(answers)), answers], (answers == truths).astype(np.float64)


def fit_cuts(confidence: np.ndarray, right: np.ndarray, most: int = 200) -> tuple[ConfidenceCut, ...]:
    """Return the precision on these rows from each confidence on, the surest first; of many rows `most` of them.

    Rows of equal confidence are answered together. The first cuts are of at least ten rows: of fewer, a precision says
    nothing.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence, answered = confidence[order], np.arange(1, len(order) + 1)
    precise = np.cumsum(right[order]) / answered
    ends = np.flatnonzero(np.append(sorted_confidence[1:] < sorted_confidence[:-1], True))
    ends = ends[answered[ends] >= min(10, len(order))]
    if len(ends) > most:
        ends = ends[np.linspace(0, len(ends) - 1, most).round().astype(np.int64)]
    return tuple(
        ConfidenceCut(float(sorted_confidence[i]), float(precise[i]), float(answered[i] / len(order))) for i in ends
    )


def fit(
    probabilities: np.ndarray,
    truths: np.ndarray,
    problem: str,
    metric: str,
    *,
    average: str | None = "macro",
    labels: Sequence[int] | None = None,
) -> Calibration:
    """Fit temperature, thresholds and cuts on the uncalibrated probabilities of held-out rows.

    Thresholds for several labels, and for two classes whose metric is about one of them (`labels`).
    """
    temperature = fit_temperature(probabilities, truths, problem)
    calibrated = at_temperature(probabilities, problem, temperature)
    if problem == MULTI:
        thresholds = fit_thresholds(calibrated, truths, metric, average=average, labels=labels)
        return Calibration(temperature, tuple(thresholds.tolist()))
    if calibrated.shape[1] != 2 or labels is None or len(labels) != 1 or metric not in ("precision", "recall", "f1"):
        return Calibration(temperature, None, fit_cuts(*confidences(calibrated, truths, problem)))
    positive = labels[0]
    flags = (truths == positive).astype(np.int64)[:, None]
    [threshold] = fit_thresholds(calibrated[:, [positive]], flags, metric, labels=[0]).tolist()
    thresholds = (1 - threshold, threshold) if positive == 1 else (threshold, 1 - threshold)
    predicted = (calibrated[:, 1] >= thresholds[1]).astype(np.int64)
    return Calibration(temperature, thresholds, fit_cuts(*confidences(calibrated, truths, problem, predicted)))
