"""Task scores and their bootstrap intervals; scikit-learn and scipy behind the point values.

Letters: N rows, C labels, R resamples.

What is scored, by problem:
    single label   truths and predictions are label numbers, int [N]
    multi-label    flags 0 or 1, [N, C]; probabilities are to be cut (at 0.5) before they come here
    regression     numbers, float [N]

Labels that are absent. Macro and weighted averages, and means over chosen labels, go over the labels that occur in
truths or predictions, as scikit-learn's: a label never predicted scores 0, one that is only predicted scores 0, one
that occurs in neither says nothing and is left out. Where no chosen label occurs the score is 0. Pearson and Spearman
of a constant are undefined: nan, which `better` puts below every number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from twilbert.model.problems import MULTI, REGRESSION, SINGLE

_PRF = ("precision", "recall", "f1", "stance_f1")
METRICS = ("accuracy", *_PRF, "jaccard", "pearson", "spearman", "mae")
LOWER_IS_BETTER = frozenset({"mae"})
_MEASURES: dict[str, Callable[..., Any]] = {
    "precision": sk.precision_score,
    "recall": sk.recall_score,
    "f1": sk.f1_score,
    "stance_f1": sk.f1_score,
}
_CELLS_AT_ONCE = 4_000_000  # weights of resamples in memory


def better(metric: str, new: float, old: float | None) -> bool:
    """Whether score `new` beats `old` (None = nothing yet); nan beats nothing but None."""
    if old is None or math.isnan(old):
        return old is None or not math.isnan(new)
    return new < old if metric in LOWER_IS_BETTER else new > old


def score(
    truths: np.ndarray,
    predictions: np.ndarray,
    metric: str,
    *,
    average: str | None = "macro",
    labels: Sequence[int] | None = None,
) -> float:
    """One task metric.

    accuracy    share of rows predicted exactly (multi-label: all flags right)
    precision, recall, f1    by `average` "macro", "micro" or "weighted", or the mean over the label numbers `labels`
    stance_f1   mean F1 of `labels` (against and in favour); the others count through their confusions
    jaccard     mean over rows of |truth ∩ prediction| / |truth ∪ prediction|, 1 where both are empty
    pearson, spearman, mae    of numbers, or of label numbers where labels are a scale

    ValueError for shapes that differ, no rows, or a metric that does not fit the problem.
    """
    truths, predictions = _checked(truths, predictions, metric)
    if metric == "accuracy":
        return float(sk.accuracy_score(truths, predictions))
    if metric == "jaccard":
        return float(_row_values(truths, predictions, metric).mean())
    if metric == "mae":
        return float(sk.mean_absolute_error(truths, predictions))
    if metric in ("pearson", "spearman"):
        if np.ptp(truths) == 0 or np.ptp(predictions) == 0:
            return math.nan
        correlation: Callable[..., Any] = stats.pearsonr if metric == "pearson" else stats.spearmanr
        return float(correlation(truths, predictions).statistic)
    if metric == "stance_f1" and labels is None:
        raise ValueError("stance_f1 needs labels: the numbers of the two it means")
    chosen = _occurring(truths, predictions, labels)
    if not len(chosen):
        return 0.0
    averaged = "macro" if labels is not None else average
    return float(_MEASURES[metric](truths, predictions, labels=chosen, average=averaged, zero_division=0.0))


def _occurring(truths: np.ndarray, predictions: np.ndarray, labels: Sequence[int] | None) -> np.ndarray:
    """Label numbers that occur in truths or predictions, among `labels` where given."""
    if truths.ndim == 2:
        present = np.flatnonzero((truths.sum(0) + predictions.sum(0)) > 0)
    else:
        present = np.union1d(truths, predictions)
    return present if labels is None else present[np.isin(present, labels)]


def _checked(truths: np.ndarray, predictions: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    truths, predictions = np.asarray(truths), np.asarray(predictions)
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r}: expected one of {', '.join(METRICS)}")
    if truths.shape != predictions.shape or truths.ndim not in (1, 2) or not len(truths):
        raise ValueError(f"truths {truths.shape} and predictions {predictions.shape}: expected the same [N] or [N, C]")
    if truths.ndim == 2:
        if not (np.isin(truths, (0, 1)).all() and np.isin(predictions, (0, 1)).all()):
            raise ValueError("multi-label scores take flags 0 and 1: cut probabilities first, e.g. at 0.5")
        truths, predictions = truths.astype(np.int64), predictions.astype(np.int64)
    elif metric in ("accuracy", *_PRF) and not all(np.issubdtype(x.dtype, np.integer) for x in (truths, predictions)):
        raise ValueError(f"{metric} takes label numbers; found {truths.dtype} and {predictions.dtype}")
    if (metric == "jaccard") != (truths.ndim == 2) and metric not in ("accuracy", "precision", "recall", "f1"):
        raise ValueError(f"{metric} does not fit {'flags [N, C]' if truths.ndim == 2 else 'one value a row [N]'}")
    return truths, predictions


@dataclass(frozen=True)
class PerLabel:
    """Scores of one label; `support` = rows that have it, `predicted` = rows said to have it."""

    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


def per_label(truths: np.ndarray, predictions: np.ndarray, n_labels: int) -> list[PerLabel]:
    """Precision, recall and F1 of every label, 0 where there is nothing to divide by."""
    truths, predictions = _checked(truths, predictions, "f1")
    numbers = np.arange(n_labels)
    measured: Callable[..., Any] = sk.precision_recall_fscore_support
    scores = measured(truths, predictions, labels=numbers, average=None, zero_division=0.0)
    predicted = predictions.sum(0) if predictions.ndim == 2 else np.bincount(predictions, minlength=n_labels)
    columns = zip(*map(np.asarray, scores), predicted, strict=True)
    return [PerLabel(float(p), float(r), float(f), int(s), int(n)) for p, r, f, s, n in columns]


def confusion(truths: np.ndarray, predictions: np.ndarray, n_labels: int) -> np.ndarray:
    """Rows with each truth (down) and prediction (across), int [C, C]."""
    return sk.confusion_matrix(truths, predictions, labels=np.arange(n_labels))


def report(truths: np.ndarray, predictions: np.ndarray, problem: str, n_labels: int) -> dict[str, float]:
    """All scores that fit the problem, by name: f1_macro, precision_micro, accuracy, jaccard, pearson …"""
    if problem == REGRESSION:
        return {name: score(truths, predictions, name) for name in ("pearson", "spearman", "mae")}
    found = {"accuracy": score(truths, predictions, "accuracy")}
    if problem == MULTI:
        found["jaccard"] = score(truths, predictions, "jaccard")
    for name in ("f1", "precision", "recall"):
        for average in ("macro", "micro", "weighted"):
            found[f"{name}_{average}"] = score(truths, predictions, name, average=average)
    if problem == SINGLE and n_labels > 2:
        found |= {name: score(truths, predictions, name) for name in ("pearson", "spearman", "mae")}
    return found


@dataclass(frozen=True)
class Interval:
    """Percentile interval of a score over resampled rows, and its standard deviation."""

    low: float
    high: float
    sd: float


def bootstrap(
    truths: np.ndarray,
    predictions: np.ndarray,
    metric: str,
    *,
    average: str | None = "macro",
    labels: Sequence[int] | None = None,
    resamples: int = 1_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of `score` over R resamples of the N rows with replacement (Efron & Tibshirani 1993, chapter 13).

    The same seed gives the same interval. Resamples for which the score is undefined (nan) are left out; nan for all
    three where none is left.
    """
    values = resampled_scores(
        truths, predictions, metric, average=average, labels=labels, resamples=resamples, seed=seed
    )
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), float(values.std()))


def resampled_scores(
    truths: np.ndarray,
    predictions: np.ndarray,
    metric: str,
    *,
    average: str | None = "macro",
    labels: Sequence[int] | None = None,
    resamples: int = 1_000,
    seed: int = 0,
) -> np.ndarray:
    """`score` of each resample, float [R].

    A resample is how often each row was drawn, so every score but Spearman's is a function of weighted sums over rows:
    one matrix product serves all resamples.
    """
    truths, predictions = _checked(truths, predictions, metric)
    n = len(truths)
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, step := max(1, _CELLS_AT_ONCE // n)):
        many = min(step, resamples - start)
        drawn = rng.integers(0, n, (many, n)) + n * np.arange(many)[:, None]
        times_RN = np.bincount(drawn.ravel(), minlength=many * n).reshape(many, n).astype(np.float64)
        found.append(_weighted(times_RN, truths, predictions, metric, average, labels))
    return np.concatenate(found)


def _weighted(
    times_RN: np.ndarray,
    truths: np.ndarray,
    predictions: np.ndarray,
    metric: str,
    average: str | None,
    labels: Sequence[int] | None,
) -> np.ndarray:
    """Scores [R] of rows that count as often as `times_RN` says."""
    n = truths.shape[0]
    if metric in ("pearson", "spearman"):
        ranked = metric == "spearman"
        x, y = (_ranks(times_RN, v) if ranked else v[None].astype(np.float64) for v in (truths, predictions))
        return _correlation(times_RN, x, y)
    if metric in ("accuracy", "mae", "jaccard"):
        return times_RN @ _row_values(truths, predictions, metric) / n
    if truths.ndim == 1:
        numbers = np.arange(int(max(truths.max(), predictions.max())) + 1)
        truths, predictions = (v[:, None] == numbers for v in (truths, predictions))
    true_NC, said_NC = truths.astype(np.float64), predictions.astype(np.float64)
    hits_RC, true_RC, said_RC = (times_RN @ m for m in (true_NC * said_NC, true_NC, said_NC))
    return _prf(hits_RC, true_RC, said_RC, "f1" if metric == "stance_f1" else metric, average, labels)


def scores_with_column(
    truths: np.ndarray,
    flags: np.ndarray,
    label: int,
    columns_KN: np.ndarray,
    metric: str,
    *,
    average: str | None = "macro",
    labels: Sequence[int] | None = None,
) -> np.ndarray:
    """`score` [K] of multi-label flags [N, C] with the column of `label` replaced by each of K columns of flags."""
    truth_N = truths[:, label]
    others_true, others_said = (np.delete(each, label, axis=1) for each in (truths, flags))
    if metric == "accuracy":
        return ((others_true == others_said).all(1) & (columns_KN == truth_N)).mean(1)
    if metric == "jaccard":
        both_KN = (others_true & others_said).sum(1) + (columns_KN & truth_N)
        either_KN = (others_true | others_said).sum(1) + (columns_KN | truth_N)
        return np.where(either_KN, both_KN / np.maximum(either_KN, 1), 1.0).mean(1)
    k = len(columns_KN)
    hits_KC, true_KC, said_KC = (np.tile(m.sum(0).astype(float), (k, 1)) for m in (truths * flags, truths, flags))
    hits_KC[:, label], said_KC[:, label] = columns_KN @ truth_N, columns_KN.sum(1)
    return _prf(hits_KC, true_KC, said_KC, metric, average, labels)


def _row_values(truths: np.ndarray, predictions: np.ndarray, metric: str) -> np.ndarray:
    """What each row adds to a mean [N]."""
    if metric == "mae":
        return np.abs(truths.astype(np.float64) - predictions)
    if metric == "jaccard":
        either = (truths | predictions).sum(1)
        return np.where(either, (truths & predictions).sum(1) / np.maximum(either, 1), 1.0)
    same = truths == predictions
    return (same.all(1) if same.ndim == 2 else same).astype(np.float64)


def _prf(
    hits_RC: np.ndarray,
    true_RC: np.ndarray,
    said_RC: np.ndarray,
    metric: str,
    average: str | None,
    labels: Sequence[int] | None,
) -> np.ndarray:
    """Precision, recall or F1 [R] from counts of right, true and predicted rows of each label."""
    if labels is not None:
        chosen = [label for label in labels if label < hits_RC.shape[1]]  # beyond: occurs nowhere
        hits_RC, true_RC, said_RC = (m[:, chosen] for m in (hits_RC, true_RC, said_RC))
    elif average == "micro":
        hits_RC, true_RC, said_RC = (m.sum(1, keepdims=True) for m in (hits_RC, true_RC, said_RC))
    below_RC = {"precision": said_RC, "recall": true_RC}.get(metric, (true_RC + said_RC) / 2)
    value_RC = np.divide(hits_RC, below_RC, out=np.zeros_like(hits_RC), where=below_RC > 0)
    weight_RC = true_RC if labels is None and average == "weighted" else (true_RC + said_RC > 0).astype(np.float64)
    total_R = weight_RC.sum(1)
    return np.divide((value_RC * weight_RC).sum(1), total_R, out=np.zeros_like(total_R), where=total_R > 0)


def _ranks(times_RN: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean rank of each row's value among the rows of each resample [R, N]; equal values share theirs."""
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(distinct)))
    held_RG = np.add.reduceat(times_RN[:, order], starts, axis=1)
    return (held_RG.cumsum(1) - held_RG / 2)[:, group]  # up to a constant, which no correlation sees


def _correlation(times_RN: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation [R] of rows counted `times_RN` times; x and y [R or 1, N]. nan where one is constant."""
    n = times_RN.shape[1]
    x = x - (times_RN * x).sum(1, keepdims=True) / n
    y = y - (times_RN * y).sum(1, keepdims=True) / n
    xy, xx, yy = ((times_RN * product).sum(1) for product in (x * y, x * x, y * y))
    # Below this share of the squares a variance is rounding: the resample holds one value only.
    flat = (xx <= 1e-24 * np.abs(x).max(1) ** 2 * n) | (yy <= 1e-24 * np.abs(y).max(1) ** 2 * n)
    below = np.sqrt(xx * yy)
    return np.where(flat | (below == 0), np.nan, xy / np.where(below == 0, 1, below))
