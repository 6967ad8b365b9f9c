"""The page of a fine-tuning: scores, learning curves, confusion, labels, errors, settings; and scores as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from twilbert.finetuning.predictions import SplitPredictions, row_record, worst_errors
from twilbert.model.problems import REGRESSION, SINGLE
from twilbert.recipe.pretraining import flattened
from twilbert.report import html
from twilbert.report.charts import Series, line_chart
from twilbert.report.html import Tile
from twilbert.tasks import metrics
from twilbert.tasks.comparison import AHEAD
from twilbert.tasks.task import Task

_MOST_CONFUSED = 12  # labels up to which a confusion matrix is drawn
_MOST_ERRORS = 25  # on the page


def of_run(task: Task, results: Mapping[str, Any], splits: Sequence[SplitPredictions]) -> str:
    """Render results.json and the chosen model's predictions."""
    charts = ((f"dev {task.metric}", "score", task.metric), ("Loss on train", "train_loss", "loss"))
    charts += (("Loss on dev", "dev_loss", "loss"),)
    return html.render(
        "finetuning/page.html.jinja",
        task=task,
        results=results,
        tiles=_tiles(results),
        curves=[line_chart(name, _lines(results["seeds"], key), "epoch", unit) for name, key, unit in charts],
        calibration=_calibration(results),
        yardstick_headers=YARDSTICK_HEADERS,
        yardsticks=yardstick_rows(results),
        splits=[_split(task, split, results[split.name]) for split in splits if split.rows.labels is not None],
        settings=[
            [key, "null" if value is None else str(value)] for key, value in flattened(results["recipe"]).items()
        ],
    )


def metric_name(results: Mapping[str, Any]) -> str:
    """Return the metric with its averaging: f1 macro, f1 of 1."""
    labels = results["class_metric"]
    if labels is not None:
        return f"{results['metric']} of {labels if isinstance(labels, str) else ', '.join(labels)}"
    return f"{results['metric']} {results['average']}" if results["average"] else results["metric"]


def score_with_spread(scores: Mapping[str, Any] | None) -> str:
    """Return a split's score: mean ± sd of several seeds, or one with its interval."""
    if scores is None or scores["mean"] is None:
        return "–"
    if scores["n"] > 1:
        return f"{mean_and_sd(scores)} (sd of {scores['n']} seeds)"
    interval = scores["interval"]
    if interval["low"] is None:
        return mean_and_sd(scores)
    return f"{mean_and_sd(scores)} [{interval['low']:.4f}, {interval['high']:.4f}]"


YARDSTICK_HEADERS = ("compared with", "split", "its score", "difference", "verdict")


def yardstick_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the model's comparison with each yardstick, under YARDSTICK_HEADERS; none for results of 0.2."""
    return [
        [one["name"], one["split"], _figure(one["score"]), difference_text(one), one["verdict"]]
        for one in results.get("yardsticks", [])
    ]


def difference_text(comparison: Mapping[str, Any]) -> str:
    """Return e.g. +0.0312 [+0.0105, +0.0520]: the model's score less the other's, and its 95 % interval."""
    if comparison["difference"] is None or comparison["low"] is None:
        return "–"
    return f"{comparison['difference']:+.4f} [{comparison['low']:+.4f}, {comparison['high']:+.4f}]"


def not_ahead(results: Mapping[str, Any]) -> str:
    """Return a sentence that names the yardsticks that the model is not ahead of; "" where it is ahead of all."""
    others = [one for one in results.get("yardsticks", []) if one["verdict"] != AHEAD]
    return "; ".join(
        f"NOT AHEAD of the {one['name']} on {one['split']} ({one['verdict']}: {difference_text(one)})" for one in others
    )


def _calibration(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The template's values: the chosen model before and after calibration, a row a split, and its reliability."""
    fitted = results.get("calibration")
    if not fitted:
        return None
    effect = fitted["effect"]
    lines = [
        Series(f"{when} calibration", [(x, y) for x, y, _ in one["reliability"]])
        for when, one in list(effect.values())[-1].items()
    ]
    lines.append(Series("as sure as right", [(0.0, 0.0), (1.0, 1.0)], reference=True))
    keys = ("expected_calibration_error", "score")
    return {
        "headers": ["split", "calibration error before", "after", "score before", "after"],
        "rows": [
            [name, *(_figure(one[when][key]) for key in keys for when in ("before", "after"))]
            for name, one in effect.items()
        ],
        "temperature": f"{fitted['temperature']:.3f}",
        "thresholds": ", ".join(f"{x:.3f}" for x in fitted["thresholds"] or ()),
        "chart": line_chart(f"Share right by confidence, {list(effect)[-1]}", lines, "confidence", "share right"),
    }


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def mean_and_sd(scores: Mapping[str, Any]) -> str:
    """Return mean, or mean ± sd; – where there is none (a correlation with a constant)."""
    if scores["mean"] is None:
        return "–"
    return f"{scores['mean']:.4f}" + ("" if scores["sd"] is None else f" ± {scores['sd']:.4f}")


def _tiles(results: Mapping[str, Any]) -> list[Tile]:
    tiles = []
    for split in ("test", "dev"):
        scores = results.get(split)
        if scores is None or scores["mean"] is None:
            continue
        interval = scores["interval"]
        spread = "" if scores["sd"] is None else f" ±\u00a0{scores['sd']:.3f}"
        note = f"{scores['rows']:,} rows"
        if interval["low"] is not None:
            which = "" if scores["n"] == 1 else f"of seed {results['chosen_seed']}, "
            note += f"; 95 % interval {which}{interval['low']:.3f} to {interval['high']:.3f}"
        tiles.append((f"{split} {metric_name(results)}", f"{scores['mean']:.3f}{spread}", note))
    new_rows = (results.get("test") or {}).get("without_rows_in_train")
    if new_rows and new_rows["mean"] is not None:
        note = f"without rows whose text is in train: {results['test']['rows_also_in_train']:,}"
        tiles.append(("test, unseen texts", f"{new_rows['mean']:.3f}", note))
    seconds = sum(seed["seconds"] for seed in results["seeds"])
    return [*tiles, ("Training", f"{seconds:,.0f} s", f"{len(results['seeds'])} seeds on {results['device']}")]


def _lines(seeds: Sequence[Mapping[str, Any]], key: str) -> list[Series]:
    return [
        Series(f"seed {one['seed']}", [(e["epoch"], e[key]) for e in one["history"] if e[key] is not None])
        for one in seeds
    ]


def _split(task: Task, split: SplitPredictions, scores: Mapping[str, Any]) -> dict[str, Any]:
    """The template's values of one split."""
    counts = None
    if task.problem == SINGLE and len(task.labels) <= _MOST_CONFUSED:
        counts = metrics.confusion(split.truths(task), split.predicted(task), len(task.labels)).tolist()
    wrong = worst_errors(task, split)
    texts = {"text": "text"} if split.rows.texts_b is None else {"text": "text", "text_b": "second text"}
    return {
        "name": split.name,
        "n_rows": len(split.rows),
        "scores": [[name, "–" if value is None else f"{value:.4f}"] for name, value in scores["all"].items()],
        "labels": [
            [label, *(f"{one[key]:.3f}" for key in ("precision", "recall", "f1")), one["support"], one["predicted"]]
            for label, one in (scores["labels"] if task.problem != REGRESSION else {}).items()
        ],
        "confusion": counts,
        "n_wrong": len(wrong),
        "error_headers": ["true", "predicted", "sure", *texts.values()],
        "errors": [
            [_answer(one["truth"]), _answer(one["predicted"]), _confidence(one), *(one[key] for key in texts)]
            for one in map(partial(row_record, task, split), wrong[:_MOST_ERRORS])
        ],
    }


def _answer(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return f"{value:.3f}" if isinstance(value, float) else value


def _confidence(record: Mapping[str, Any]) -> str:
    if "probabilities" not in record:
        return f"{abs(record['truth'] - record['predicted']):.3f} off"
    return f"{max(record['probabilities'].values()):.2f}"
