"""The page and the tables of a sweep, from its results.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from twilbert.finetuning.page import mean_and_sd, metric_name, score_with_spread
from twilbert.report import html
from twilbert.report.charts import Chart, Series, line_chart
from twilbert.report.html import Tile
from twilbert.tasks.comparison import Comparison, holm

_MOST_DRAWN = 24  # trials whose curves are drawn one by one
HEADERS = ("task", "model", "metric", "dev", "test", "yardstick", "verdict", "trials", "best settings")


def of_sweep(results: Mapping[str, Any]) -> str:
    """Render results.json."""
    studies = results["studies"]
    return html.render(
        "tuning/page.html.jinja",
        results=results,
        tiles=_tiles(studies),
        n_trials=sum(len(study["trials"]) for study in studies),
        headers=HEADERS,
        rows=rows(studies),
        models=model_table(studies) if len({study["model"] for study in studies}) > 1 else None,
        studies=[_study(study) for study in studies],
    )


def rows(studies: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a row for each study, under HEADERS; verdicts are corrected for their number (Holm)."""
    verdicts = _verdicts(studies)
    return [
        [
            study["task"],
            study["model"],
            metric_name(study),
            score_with_spread(study["dev"]),
            score_with_spread(study["test"]),
            *verdicts[number],
            trial_counts(study["trials"]),
            settings_text(study["best_settings"]),
        ]
        for number, study in enumerate(studies)
    ]


def _verdicts(studies: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(the linear yardstick's score, whether the study's model is ahead of it) of each study."""
    linear = [next(iter(study.get("yardsticks") or []), None) for study in studies]
    compared = {number: one for number, one in enumerate(linear) if one is not None and one["score"] is not None}
    corrected = dict(zip(compared, holm([one["p"] for one in compared.values()]), strict=True))
    verdicts = [("–", "–")] * len(studies)
    for number, one in compared.items():
        comparison = Comparison(
            *(math.nan if one[key] is None else one[key] for key in ("difference", "low", "high", "p"))
        )
        verdicts[number] = (f"{one['score']:.4f}", comparison.verdict(corrected[number]))
    return verdicts


def model_table(studies: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows: tasks down, models across."""
    models = list(dict.fromkeys(study["model"] for study in studies))
    tasks = {study["task"]: metric_name(study) for study in studies}
    scores = {(study["task"], study["model"]): _score(study) for study in studies}
    cells = [[task, metric, *(scores.get((task, model), "–") for model in models)] for task, metric in tasks.items()]
    return ["task", "metric", *models], cells


def _score(study: Mapping[str, Any]) -> str:
    scores = study["test"] or study["dev"]
    return mean_and_sd(scores) if scores else "–"


def trial_counts(trials: Sequence[Mapping[str, Any]]) -> str:
    """Return e.g. 16: 6 finished, 10 stopped; 1 started again."""
    states = [trial["status"] for trial in trials]
    parts = [f"{states.count(state)} {state}" for state in ("finished", "stopped", "failed", "open") if state in states]
    again = sum(trial["starts"] > 1 for trial in trials)
    return f"{len(trials)}: {', '.join(parts)}" + (f"; {again} started again" if again else "")


def settings_text(settings: Mapping[str, Any] | None) -> str:
    """Return e.g. learning_rate 0.0001, batch_size 32."""
    if settings is None:
        return "–"
    return ", ".join(f"{_short(path)} {_value(value)}" for path, value in settings.items())


def _short(path: str) -> str:
    section, _, key = path.partition(".")
    return section if key == "name" else key


def _value(value: Any) -> str:
    return "default" if value is None else str(value)


def _tiles(studies: Sequence[Mapping[str, Any]]) -> list[Tile]:
    trials = [trial for study in studies for trial in study["trials"]]
    seconds = sum(trial["seconds"] or 0 for trial in trials)
    tiles = [
        ("Studies", str(len(studies)), "each a task with a model"),
        ("Trials", f"{len(trials):,}", trial_counts(trials).partition(": ")[2]),
        ("Training", f"{seconds:,.0f} s", "of all trials, one after another"),
    ]
    if len(studies) == 1 and studies[0]["test"]:
        (study,) = studies
        tiles.insert(0, (f"test {metric_name(study)}", _score(study), score_with_spread(study["test"])))
    return tiles


def _study(study: Mapping[str, Any]) -> dict[str, Any]:
    """The template's values of one study."""
    trials = sorted(study["trials"], key=lambda trial: (trial["trial"] != study["best_trial"], trial["trial"]))
    paths = list(trials[0]["settings"])
    return {
        "title": study["task"] if study["study"] == study["task"] else f"{study['task']}: {study['model']}",
        "note": f"{study['title']}; dev {score_with_spread(study['dev'])}; test {score_with_spread(study['test'])}",
        "curves": _curves(study, trials) if study["dev"] else None,
        "name": study["study"],
        "headers": ["trial", "dev", "state", "starts", "s", *map(_short, paths)],
        "trials": [
            [
                t["trial"], "" if t["dev"] is None else f"{t['dev']:.4f}", t["error"] or t["status"], t["starts"],
                "" if t["seconds"] is None else f"{t['seconds']:.1f}", *(_value(t["settings"][path]) for path in paths),
            ]
            for t in trials
        ],
    }  # fmt: skip


def _curves(study: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw each trial's dev score over its epochs, the best trial highlighted."""
    lines = []
    for trial in [trial for trial in trials if trial["evaluations"]][:_MOST_DRAWN]:
        is_best = trial["trial"] == study["best_trial"]
        points = [(epoch, score) for epoch, score in trial["evaluations"] if score is not None]
        lines.append(Series(f"trial {trial['trial']}{', the best' if is_best else ''}", points, reference=not is_best))
    return line_chart(f"dev {study['metric']} of every trial", lines, "epoch", study["metric"])
