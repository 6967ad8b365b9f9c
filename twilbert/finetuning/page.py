"""The page of a fine-tuning: scores, learning curves, confusion, labels, errors, settings. Numbers in, HTML out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twilbert import __version__, metrics, report
from twilbert.charts import Series, line_chart
from twilbert.finetuning.judged import Judged, row_record, worst_errors
from twilbert.report import Html, Tile
from twilbert.tasks import REGRESSION, SINGLE, Task

_MOST_CONFUSED = 12  # labels up to which a confusion matrix is drawn
_SHOWN = 25  # errors on the page


def of_run(task: Task, results: Mapping[str, Any], judged: Sequence[Judged]) -> str:
    """The page of results.json and the chosen model's judgements."""
    sections = [report.tiles(_tiles(results)), _curves(task, results["seeds"])]
    for split in judged:
        if split.rows.labels is not None:
            sections += _split(task, split, results[split.name])
    sections.append(_settings(results["recipe"]))
    return report.page(
        f"{task.name}: fine-tuning",
        f"{task.title or task.name} · {results['model']}",
        sections,
        f"twilbert {__version__}; test rows were read once, after training",
    )


def _tiles(results: Mapping[str, Any]) -> list[Tile]:
    tiles = []
    for split in ("test", "dev"):
        scores = results.get(split)
        if scores is None or scores["mean"] is None:
            continue
        interval = scores["interval"]
        spread = "" if scores["sd"] is None else f" ± {scores['sd']:.3f}"
        note = f"{scores['rows']:,} rows"
        if interval["low"] is not None:
            which = "" if scores["n"] == 1 else f"of seed {results['chosen_seed']}, "
            note += f"; 95 % interval {which}{interval['low']:.3f} to {interval['high']:.3f}"
        tiles.append(Tile(f"{split} {metric_name(results)}", f"{scores['mean']:.3f}{spread}", note))
    clean = (results.get("test") or {}).get("without_rows_in_train")
    if clean and clean["mean"] is not None:
        said = f"{results['test']['rows_also_in_train']:,} rows whose text stands in train left out"
        tiles.append(Tile("test, unseen texts", f"{clean['mean']:.3f}", said))
    seconds = sum(seed["seconds"] for seed in results["seeds"])
    tiles.append(Tile("Training", f"{seconds:,.0f} s", f"{len(results['seeds'])} seeds on {results['device']}"))
    return tiles


def metric_name(results: Mapping[str, Any]) -> str:
    """The metric with how it averages: f1 macro, f1 of 1."""
    chosen = results["class_metric"]
    if chosen is not None:
        return f"{results['metric']} of {chosen if isinstance(chosen, str) else ', '.join(chosen)}"
    return f"{results['metric']} {results['average']}" if results["average"] else results["metric"]


def _curves(task: Task, seeds: Sequence[Mapping[str, Any]]) -> Html:
    def series(key: str) -> list[Series]:
        return [
            Series(f"seed {one['seed']}", [(e["epoch"], e[key]) for e in one["history"] if e[key] is not None])
            for one in seeds
        ]

    losses = [line_chart("Loss on train", series("train_loss"), "epoch", "loss")]
    losses.append(line_chart("Loss on dev", series("dev_loss"), "epoch", "loss"))
    charts = [line_chart(f"dev {task.metric}", series("score"), "epoch", task.metric), *losses]
    return report.section("Learning curves", report.grid(charts))


def _split(task: Task, judged: Judged, scores: Mapping[str, Any]) -> list[Html]:
    named = judged.name
    rows = [[name, f"{value:.4f}" if value is not None else "–"] for name, value in scores["all"].items()]
    parts = [report.section(f"{named}: scores", report.table(["score", named], rows), note=f"{scores['rows']:,} rows")]
    if task.problem != REGRESSION:
        columns = ["label", "precision", "recall", "F1", "rows", "predicted"]
        cells = [
            [label, *(f"{one[key]:.3f}" for key in ("precision", "recall", "f1")), one["support"], one["predicted"]]
            for label, one in scores["labels"].items()
        ]
        parts.append(report.section(f"{named}: labels", report.table(columns, cells)))
    if task.problem == SINGLE and len(task.labels) <= _MOST_CONFUSED:
        counts = metrics.confusion(judged.truths(task), judged.predictions(task), len(task.labels)).tolist()
        parts.append(report.section(f"{named}: confusion", report.confusion(task.labels, counts)))
    parts.append(_errors(task, judged))
    return parts


def _errors(task: Task, judged: Judged) -> Html:
    worst = worst_errors(task, judged)
    records = [row_record(task, judged, i) for i in worst[:_SHOWN]]
    cells = [[_joined(r["truth"]), _joined(r["predicted"]), _sure(r), r["text"], r.get("text_b", "")] for r in records]
    two = judged.rows.texts_b is not None
    headers = ["true", "predicted", "sure", "text", *(["second text"] if two else [])]
    shown = report.table(headers, [row if two else row[:4] for row in cells])
    note = f"{len(worst):,} of {len(judged.rows):,} rows are wrong; the surest {len(records)} first"
    return report.section(f"{judged.name}: worst errors", report.fold("texts", shown), note=note)


def _joined(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return f"{value:.3f}" if isinstance(value, float) else value


def _sure(record: Mapping[str, Any]) -> str:
    if "probabilities" not in record:
        return f"{abs(record['truth'] - record['predicted']):.3f} off"
    return f"{max(record['probabilities'].values()):.2f}"


def _settings(recipe: Mapping[str, Any]) -> Html:
    rows = []
    for key, value in recipe.items():
        if isinstance(value, dict):
            rows += [[f"{key}.{inner}", _said(v)] for inner, v in value.items()]
        else:
            rows.append([key, _said(value)])
    return report.section("Settings", report.fold("the whole recipe", report.table(["setting", "value"], rows)))


def _said(value: Any) -> str:
    return "null" if value is None else str(value)
