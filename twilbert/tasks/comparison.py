"""Whether one model is ahead of another on the same rows: paired tests, corrected for how many there are.

Letters: S seeds of a model, N rows, C labels, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twilbert.tasks import metrics

AHEAD, BEHIND, NOT_TOLD_APART = "ahead", "behind", "not told apart"


@dataclass(frozen=True)
class Comparison:
    """The first model's score less the second's, turned so that more is better."""

    difference: float
    low: float
    """Ends of the 95 % interval of the difference."""
    high: float
    p: float
    """Two-sided p-value of no difference."""

    def verdict(self, p: float | None = None, level: float = 0.05) -> str:
        """Return "ahead", "behind" or "not told apart"; `p`: the p-value after correction, where there are several."""
        if (self.p if p is None else p) > level:
            return NOT_TOLD_APART
        return AHEAD if self.difference > 0 else BEHIND


def paired_bootstrap(
    truths: np.ndarray,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    metric: str,
    *,
    average: str | None = "macro",
    labels: Sequence[int] | None = None,
    resamples: int = 2_000,
    seed: int = 0,
) -> Comparison:
    """Compare two models by the predictions of their seeds, each as `metrics.score` takes them.

    A resample draws rows with replacement, the same for both models (Efron & Tibshirani 1993; Koehn 2004), and seeds of
    each. Seeds are few: the deviation of a drawn mean is scaled by √(S / (S - 1)), without which it is too small. With
    one seed a model's own spread is not seen, and the answer is about these two trainings alone.
    """
    rng = np.random.default_rng(seed + 1)
    means, resampled = [], []
    for predictions in (first, second):
        scores_SR = np.stack([
            metrics.resampled_scores(
                truths, one, metric, average=average, labels=labels, resamples=resamples, seed=seed
            )
            for one in predictions
        ])  # fmt: skip
        resampled.append(_with_seeds(scores_SR, rng))
        means.append(
            np.mean([metrics.score(truths, one, metric, average=average, labels=labels) for one in predictions])
        )
    sign = -1.0 if metric in metrics.LOWER_IS_BETTER else 1.0
    differences_R = sign * (resampled[0] - resampled[1])
    differences_R = differences_R[~np.isnan(differences_R)]
    difference = float(sign * (means[0] - means[1]))
    if not len(differences_R) or np.isnan(difference):
        return Comparison(difference, np.nan, np.nan, 1.0)
    low, high = np.quantile(differences_R, [0.025, 0.975])
    tail = min((differences_R <= 0).sum(), (differences_R >= 0).sum())
    p = min(1.0, 2.0 * (tail + 1) / (len(differences_R) + 1))
    return Comparison(difference, float(low), float(high), float(p))


def _with_seeds(scores_SR: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean over drawn seeds [R] of the scores of resampled rows."""
    n_seeds, resamples = scores_SR.shape
    mean_R = scores_SR.mean(0)
    if n_seeds == 1:
        return mean_R
    drawn_SR = rng.integers(0, n_seeds, (n_seeds, resamples))
    drawn_R = np.take_along_axis(scores_SR, drawn_SR, 0).mean(0)
    return mean_R + (n_seeds / (n_seeds - 1)) ** 0.5 * (drawn_R - mean_R)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number (Holm 1979), in the same order.

    Calling significant what stays ≤ 0.05 is wrong anywhere among them with a probability of at most 0.05.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
