"""The pages of twilbert-evaluate --report: of pairs, of texts, of orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twilbert.data.stream.masking import ROP_REPLY_SECOND
from twilbert.evaluation import cards
from twilbert.evaluation.pairs import PairScores, SamplePredictions, SampleScores, binned
from twilbert.report import html
from twilbert.report.charts import Chart, Series, bar_chart, line_chart

_DECADES = (0, 1, 10, 100, 1_000, 10_000, 100_000)
_DECADE_NAMES = ("never", "1–9", "10–99", "100–999", "1k–9k", "10k–99k", "100k+")
_CALIBRATION_BINS = 10
_MOST_POSITION_BARS = 9

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class PairEvaluation:
    """The results of an evaluation of pairs."""

    scores: Mapping[str, Any]
    sums: PairScores
    samples: SampleScores
    counts: np.ndarray  # how often each id occurs in the training data, int64 [V]
    examples: Sequence[SamplePredictions]
    curves: Rows  # of the run's metrics.jsonl


def of_pairs(evaluation: PairEvaluation, token: Callable[[int], str]) -> str:
    """Return the page of an evaluation of held-out pairs; `token` gives an id's token."""
    scored = evaluation.samples.is_scored
    labels, shares = evaluation.samples.rop_labels[scored], evaluation.samples.reply_second[scored]
    return html.render(
        "evaluation/pairs.html.jinja",
        scores=evaluation.scores,
        order=_order(labels, shares),
        words=_masked_words(evaluation),
        run=_run(evaluation.curves),
        pairs=cards.pairs(evaluation.examples, token),
    )


def of_texts(scores: Mapping[str, Any], sums: np.ndarray, counts: np.ndarray, lines: Rows, curves: Rows) -> str:
    """Return the page of texts' pseudo-log-likelihoods: `sums` nats over `counts` tokens each; some texts' `lines`."""
    full = counts > 0
    likelihood = _likelihood(sums[full] / counts[full], counts[full])
    template = "evaluation/texts.html.jinja"
    return html.render(template, scores=scores, likelihood=likelihood, run=_run(curves), texts=cards.texts(lines))


def of_orders(scores: Mapping[str, Any], labels: np.ndarray, shares: np.ndarray, lines: Rows, curves: Rows) -> str:
    """Return the page of pairs in given orders; `shares`: the model's probabilities that the second text replies."""
    rows = [
        (line["first"], line["second"], cards.predicted_order(line["label"], line["reply_second"])) for line in lines
    ]
    template = "evaluation/orders.html.jinja"
    return html.render(template, scores=scores, order=_order(labels, shares), run=_run(curves), rows=rows)


def _masked_words(evaluation: PairEvaluation) -> list[Chart]:
    """Chart the accuracy at [MASK] by the word's frequency in training, and by its position in the sequence."""
    sums = evaluation.sums
    frequency = np.zeros(sums.by_token.shape[1], np.int64)
    frequency[: len(evaluation.counts)] = evaluation.counts
    decade = np.searchsorted(_DECADES, frequency, side="right") - 1
    count, right = (np.bincount(decade, weights=row, minlength=len(_DECADES)) for row in sums.by_token)
    nonempty = np.flatnonzero(count)
    by_frequency = bar_chart(
        "By how often the word occurs",
        [_DECADE_NAMES[i] for i in nonempty],
        [100 * right[i] / count[i] for i in nonempty],
        "occurrences of the token",
        "accuracy, %",
        counts=[int(count[i]) for i in nonempty],
    )
    last = int(np.flatnonzero(sums.by_position[0]).max(initial=1))
    edges = [*range(1, last + 1, -(-last // _MOST_POSITION_BARS)), last + 1]
    count, right = binned(sums.by_position, edges)
    by_position = bar_chart(
        "By position in the sequence",
        [str(low) for low in edges[:-1]],
        [100 * r / n if n else None for n, r in zip(count, right, strict=True)],
        "position, from; [CLS] is 0",
        "accuracy, %",
        counts=count.tolist(),
    )
    return [by_frequency, by_position]


def calibration_error(labels: np.ndarray, shares: np.ndarray) -> float:
    """Return the expected calibration error, 0 to 1 (Guo et al. 2017, eq. 3), over ten bins of confidence, 0.5 … 1."""
    confidence = np.maximum(shares, 1 - shares)
    right = (shares > 0.5) == (labels == ROP_REPLY_SECOND)
    bins = np.minimum(((confidence - 0.5) * 2 * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=_CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / max(1, len(labels)))


def _order(labels: np.ndarray, shares: np.ndarray) -> dict[str, Any] | None:
    """Return calibration and confusion of the reply order; None without samples that have one."""
    if not len(labels):
        return None
    bins = np.minimum((shares * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=_CALIBRATION_BINS)
    mean, truth = (np.bincount(bins, weights=w, minlength=_CALIBRATION_BINS) for w in (shares, labels.astype(float)))
    nonempty = np.flatnonzero(count)
    calibration = line_chart(
        "Calibration: how often the tweet really is first",
        [
            Series("samples in ten bins of probability", [(mean[i] / count[i], truth[i] / count[i]) for i in nonempty]),
            Series("perfect", [(0, 0), (1, 1)], reference=True),
        ],
        "probability given to “tweet first”",
        "share that is so",
        x_range=(0, 1),
        y_range=(0, 1),
    )
    names = [f"{i / 10:.1f}" for i in range(_CALIBRATION_BINS)]
    confidence = bar_chart(
        "How sure it is", names, count.tolist(), "probability given to “tweet first”, from", "samples"
    )
    predicted = (shares > 0.5).astype(int)
    return {
        "n": len(labels),
        "calibration_error": calibration_error(labels, shares),
        "charts": [calibration, confidence],
        "labels": cards.ORDER_NAMES[::-1],
        "confusion": [[int(((labels == i) & (predicted == j)).sum()) for j in (1, 0)] for i in (1, 0)],
    }


def _run(rows: Rows) -> list[Chart]:
    """Chart the run's metrics over its steps, those that it has."""

    def series(name: str, key: str) -> Series:
        return Series(name, [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)])

    split = {"training": "train", "held out": "valid"}
    charts = [
        line_chart(title, [series(name, key) for name, key in keys.items()], "step", unit)
        for title, unit, keys in (
            ("MLM loss", "nats", {name: f"{part}/mlm_loss" for name, part in split.items()}),
            ("ROP accuracy", "share", {name: f"{part}/rop_accuracy" for name, part in split.items()}),
            ("MLM accuracy", "share", {name: f"{part}/mlm_accuracy" for name, part in split.items()}),
            ("Learning rate", "", {"learning rate": "optim/learning_rate"}),
        )
    ]
    return [chart for chart in charts if chart.rows]


def _likelihood(per_token: np.ndarray, counts: np.ndarray) -> list[Chart]:
    """Chart the texts' likelihoods, and how they vary with length."""
    low, high = math.floor(per_token.min()), math.ceil(per_token.max())
    width = max(1, -(-(high - low) // 12))
    edges = np.arange(low, max(high, low + 1) + width, width)
    histogram = np.histogram(per_token, edges)[0].tolist()
    order = np.array_split(np.argsort(counts, kind="stable"), min(8, len(counts)))
    by_length = bar_chart(
        "By length of the text",
        [f"{counts[part[0]]}–{counts[part[-1]]}" for part in order],
        [float((per_token[part] * counts[part]).sum() / counts[part].sum()) for part in order],
        "tokens of the text (equal numbers of texts)",
        "nats a token",
        counts=[int(counts[part].sum()) for part in order],
    )
    names = [f"{edge}" for edge in edges[:-1]]
    return [bar_chart("Texts by their likelihood", names, histogram, "nats a token, from", "texts"), by_length]
