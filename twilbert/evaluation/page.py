"""The pages of twilbert-evaluate --report: of pairs, of texts, of orders. Pure: numbers and tokens in, HTML out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twilbert import __version__, report
from twilbert.charts import Series, bar_chart, line_chart
from twilbert.data.objectives import ROP_REPLY_SECOND
from twilbert.evaluation import cards
from twilbert.evaluation.cards import ORDER_NAMES
from twilbert.evaluation.pairs import Judged, PairScores, SampleScores, binned
from twilbert.report import Html, Tile

_DECADES = (0, 1, 10, 100, 1_000, 10_000, 100_000)
_DECADE_NAMES = ("never", "1–9", "10–99", "100–999", "1k–9k", "10k–99k", "100k+")
_CALIBRATION_BINS = 10
_MOST_POSITION_BARS = 9


@dataclass(frozen=True)
class Pairs:
    """What an evaluation of pairs found."""

    scores: Mapping[str, Any]
    gathered: PairScores
    samples: SampleScores
    counts: np.ndarray  # how often each id occurs in the training data, int64 [V]
    judged: Sequence[Judged]
    curves: Sequence[Mapping[str, float]]  # rows of the run's metrics.jsonl


def of_pairs(seen: Pairs, token: Callable[[int], str]) -> str:
    """The page of an evaluation of held-out pairs; `token` names an id."""
    scores, judged = seen.scores, seen.samples.judged
    labels, shares = seen.samples.rop_labels[judged], seen.samples.reply_second[judged]
    sections = [report.tiles(_pair_tiles(scores, labels, shares)), _masked_words(seen)]
    if len(labels):
        sections.append(_reply_order(labels, shares, "both orders of each pair, their words masked as in training"))
    sections += _run_curves(seen.curves)
    if seen.judged:
        sections.append(cards.pairs(seen.judged, token))
    return _page("Held-out pairs", scores, sections)


def of_texts(
    scores: Mapping[str, Any],
    sums: np.ndarray,
    counts: np.ndarray,
    lines: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, float]],
) -> str:
    """The page of texts' pseudo-log-likelihoods: `sums` nats over `counts` tokens each, and some texts' `lines`."""
    per_token = f"{scores['log_likelihood_per_token']:.3f}"
    tiles = [
        Tile("Pseudo-log-likelihood", per_token, "nats a token, over all tokens"),
        Tile("Pseudo-perplexity", _big(scores["pseudo_perplexity"]), "its exponential"),
        Tile("Mean over texts", f"{scores['log_likelihood_per_text']:.3f}", "nats a token, each text counts alike"),
        Tile(
            "The original's P(X)", f"{scores['original_log_likelihood']:.3f}", "with [CLS] and [SEP] among the tokens"
        ),
        Tile("Texts", f"{scores['texts']:,}", f"{scores['tokens']:,} tokens; {scores['empty']:,} lines without text"),
    ]
    said = counts > 0
    sections = [report.tiles(tiles), _likelihood_charts(sums[said] / counts[said], counts[said])]
    sections += _run_curves(curves)
    if lines:
        sections.append(cards.texts(lines))
    return _page("Pseudo-log-likelihood of texts", scores, sections)


def of_orders(
    scores: Mapping[str, Any],
    labels: np.ndarray,
    shares: np.ndarray,
    lines: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, float]],
) -> str:
    """The page of pairs judged in the order they stand in; `shares`: probabilities that the second text replies."""
    tiles = [
        Tile("ROP accuracy", _percent(scores["rop_accuracy"]), f"{scores['rop_correct']} of {scores['rows']}"),
        Tile("ROP loss", f"{scores['rop_loss']:.3f}", "nats; guessing: 0.693"),
        Tile("Calibration error", _percent(calibration_error(labels, shares)), "confidence against accuracy"),
    ]
    sections = [report.tiles(tiles), _reply_order(labels, shares, "each row in its own order, nothing masked")]
    sections += _run_curves(curves)
    if lines:
        cells = [[line["first"], line["second"], cards.verdict(line["label"], line["reply_second"])] for line in lines]
        sections.append(report.section("Rows", report.table(["first", "second", "judged"], cells)))
    return _page("Reply order", scores, sections)


def _page(title: str, scores: Mapping[str, Any], sections: Sequence[Html]) -> str:
    model, data = (report.tag("code", scores[key]) for key in ("model", "data"))
    subtitle = report.join(["Model ", model, " on ", data])
    return report.page(f"TWilBERT: {title}", subtitle, sections, f"Made by twilbert-evaluate {__version__}.")


def _pair_tiles(scores: Mapping[str, Any], labels: np.ndarray, shares: np.ndarray) -> list[Tile]:
    unigram, free = scores["unigram_loss_at_mask"], scores["context_free_loss"]
    made = [
        Tile("MLM loss at [MASK]", f"{scores['mlm_loss_at_mask']:.3f}", f"nats; word frequencies alone: {unigram:.3f}"),
        Tile("MLM loss, all masked", f"{scores['mlm_loss']:.3f}", f"nats; without context: {free:.3f}"),
        Tile(
            "Perplexity at [MASK]",
            _big(scores["mlm_perplexity_at_mask"]),
            f"all masked: {_big(scores['mlm_perplexity'])}",
        ),
        Tile(
            "MLM accuracy at [MASK]",
            _percent(scores["mlm_accuracy_at_mask"]),
            f"all masked: {_percent(scores['mlm_accuracy'])}",
        ),
    ]
    if "rop_accuracy" in scores:
        made += [
            Tile(
                "ROP accuracy",
                _percent(scores["rop_accuracy"]),
                f"loss {scores['rop_loss']:.3f}; guessing: 50 %, 0.693",
            ),
            Tile(
                "ROP calibration error",
                _percent(calibration_error(labels, shares)),
                "confidence against accuracy",
            ),
        ]
    made.append(Tile("Pairs", f"{scores['pairs']:,}", f"and {scores['singles']:,} single tweets"))
    return [*made, Tile("Words masked", f"{scores['n_masked']:,}", f"{scores['n_at_mask']:,} by [MASK]")]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def _big(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}" if value < 1e9 else f"{value:.1e}"


def _masked_words(seen: Pairs) -> Html:
    """Accuracy at [MASK] by how often the word occurs in training, and by where in the sequence it stands."""
    frequency = np.zeros(seen.gathered.by_token.shape[1], np.int64)
    frequency[: len(seen.counts)] = seen.counts
    decade = np.searchsorted(_DECADES, frequency, side="right") - 1
    count, right = (np.bincount(decade, weights=row, minlength=len(_DECADES)) for row in seen.gathered.by_token)
    held = np.flatnonzero(count)
    by_frequency = bar_chart(
        "By how often the word occurs",
        [_DECADE_NAMES[i] for i in held],
        [right[i] / count[i] for i in held],
        "occurrences of the token",
        "accuracy, %",
        counts=[int(count[i]) for i in held],
        as_percent=True,
    )
    last = int(np.flatnonzero(seen.gathered.by_position[0]).max(initial=1))
    width = -(-last // _MOST_POSITION_BARS)
    edges = [*range(1, last + 1, width), last + 1]
    count, right = binned(seen.gathered.by_position, edges)
    by_position = bar_chart(
        "By position in the sequence",
        [str(low) for low in edges[:-1]],
        [r / n if n else None for n, r in zip(count, right, strict=True)],
        "position, from; [CLS] is 0",
        "accuracy, %",
        counts=count.tolist(),
        as_percent=True,
    )
    frequencies = seen.scores["frequencies"]
    note = f"Accuracy where the model saw [MASK]; hollow: fewer than 30 words. Frequencies: {frequencies}."
    return report.section("Masked words", report.grid([by_frequency, by_position]), note=note)


def calibration_error(labels: np.ndarray, shares: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3) over ten equal bins of confidence, 0.5 … 1; 0 to 1."""
    confidence = np.maximum(shares, 1 - shares)
    right = (shares > 0.5) == (labels == ROP_REPLY_SECOND)
    bins = np.minimum(((confidence - 0.5) * 2 * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=_CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / max(1, len(labels)))


def _reply_order(labels: np.ndarray, shares: np.ndarray, what: str) -> Html:
    """Calibration and confusion."""
    bins = np.minimum((shares * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=_CALIBRATION_BINS)
    mean, truth = (np.bincount(bins, weights=w, minlength=_CALIBRATION_BINS) for w in (shares, labels.astype(float)))
    held = np.flatnonzero(count)
    calibration = line_chart(
        "Calibration: how often the tweet really is first",
        [
            Series("samples in ten bins of probability", [(mean[i] / count[i], truth[i] / count[i]) for i in held]),
            Series("perfect", [(0, 0), (1, 1)], reference=True),
        ],
        "probability given to “tweet first”",
        "share that is so",
        x_range=(0, 1),
        y_range=(0, 1),
    )
    names = [f"{i / 10:.1f}" for i in range(_CALIBRATION_BINS)]
    spread = bar_chart("How sure it is", names, count.tolist(), "probability given to “tweet first”, from", "samples")
    judged = (shares > 0.5).astype(int)
    table = [[int(((labels == i) & (judged == j)).sum()) for j in (1, 0)] for i in (1, 0)]
    matrix = report.confusion([ORDER_NAMES[1], ORDER_NAMES[0]], table)
    confusion = report.tag("figure", report.join([report.tag("figcaption", "Confusion"), matrix]))
    return report.section(
        "Reply order", report.grid([calibration, spread, confusion]), note=f"{len(labels):,} samples: {what}."
    )


def _run_curves(rows: Sequence[Mapping[str, float]]) -> list[Html]:
    """The run's metrics over its steps; nothing where there are none."""

    def series(name: str, key: str) -> Series:
        return Series(name, [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)])

    def chart(title: str, unit: str, keys: Mapping[str, str]) -> Html | None:
        made = [series(name, key) for name, key in keys.items()]
        return line_chart(title, made, "step", unit) if any(s.points for s in made) else None

    charts = [
        chart("MLM loss", "nats", {"training": "train/mlm_loss", "held out": "valid/mlm_loss"}),
        chart("ROP accuracy", "share", {"training": "train/rop_accuracy", "held out": "valid/rop_accuracy"}),
        chart("MLM accuracy", "share", {"training": "train/mlm_accuracy", "held out": "valid/mlm_accuracy"}),
        chart("Learning rate", "", {"learning rate": "optim/learning_rate"}),
    ]
    drawn = [one for one in charts if one is not None]
    return [report.section("The run", report.grid(drawn), note="From the run's metrics.jsonl.")] if drawn else []


def _likelihood_charts(per_token: np.ndarray, counts: np.ndarray) -> Html:
    low, high = math.floor(per_token.min()), math.ceil(per_token.max())
    width = max(1, -(-(high - low) // 12))
    edges = np.arange(low, max(high, low + 1) + width, width)
    spread = np.histogram(per_token, edges)[0]
    names = [f"{edge}" for edge in edges[:-1]]
    histogram = bar_chart("Texts by their likelihood", names, spread.tolist(), "nats a token, from", "texts")
    order = np.array_split(np.argsort(counts, kind="stable"), min(8, len(counts)))
    ranges = [f"{counts[part[0]]}–{counts[part[-1]]}" for part in order]
    by_length = bar_chart(
        "By length of the text",
        ranges,
        [float((per_token[part] * counts[part]).sum() / counts[part].sum()) for part in order],
        "tokens of the text (equal numbers of texts)",
        "nats a token",
        counts=[int(counts[part].sum()) for part in order],
    )
    return report.section("Likelihood", report.grid([histogram, by_length]))
