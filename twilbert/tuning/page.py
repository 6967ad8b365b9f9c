"""The page and the tables of a sweep. Pure: results.json in, rows and HTML out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twilbert import report
from twilbert.charts import Series, line_chart
from twilbert.finetuning.page import metric_name
from twilbert.finetuning.run import spread, told
from twilbert.report import Content, Html, Tile

_MOST_DRAWN = 24  # trials whose curves are drawn one by one
HEADERS = ("task", "model", "metric", "dev", "test", "trials", "best settings")


def of_sweep(results: Mapping[str, Any]) -> str:
    """The page of results.json."""
    studies = results["studies"]
    sections = [report.tiles(_tiles(studies)), _summary(studies)]
    if len({study["model"] for study in studies}) > 1:
        headers, rows = model_table(studies)
        note = "test scores (dev where there is no test): the mean, with the standard deviation of several seeds"
        sections.append(report.section("Models and tasks", report.table(headers, rows), note=note))
    sections += [_study(study) for study in studies]
    return report.page(
        f"{results['sweep']}: sweep",
        f"{len(studies)} studies, {sum(len(study['trials']) for study in studies)} trials",
        sections,
        f"twilbert {results['twilbert']}; trials saw train and dev; each test set was scored once, after every trial",
    )


def rows(studies: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line a study, under HEADERS."""
    return [
        [
            study["task"],
            study["model"],
            metric_name(study),
            told(study["dev"]),
            told(study["test"]),
            counted(study["trials"]),
            settings_told(study["best_settings"]),
        ]
        for study in studies
    ]


def model_table(studies: Sequence[Mapping[str, Any]]) -> tuple[list[Content], list[list[str]]]:
    """Tasks down, models across."""
    models = list(dict.fromkeys(study["model"] for study in studies))
    tasks = list(dict.fromkeys(study["task"] for study in studies))
    found = {(study["task"], study["model"]): study for study in studies}
    cells = []
    for task in tasks:
        of_task = [found.get((task, model)) for model in models]
        named = next(metric_name(study) for study in of_task if study is not None)
        cells.append([task, named, *(_cell(study) for study in of_task)])
    return ["task", "metric", *models], cells


def _cell(study: Mapping[str, Any] | None) -> str:
    scores = study and (study["test"] or study["dev"])
    return spread(scores) if scores else "–"


def counted(trials: Sequence[Mapping[str, Any]]) -> str:
    """16: 6 finished, 10 stopped; 1 started again."""
    states = [trial["status"] for trial in trials]
    parts = [f"{states.count(state)} {state}" for state in ("finished", "stopped", "failed", "open") if state in states]
    again = sum(trial["starts"] > 1 for trial in trials)
    return f"{len(trials)}: {', '.join(parts)}" + (f"; {again} started again" if again else "")


def settings_told(settings: Mapping[str, Any] | None) -> str:
    """learning_rate 0.0001, batch_size 32."""
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
        Tile("Studies", str(len(studies)), "a task with a model each"),
        Tile("Trials", f"{len(trials):,}", counted(trials).partition(": ")[2]),
        Tile("Training", f"{seconds:,.0f} s", "of all trials, one after another"),
    ]
    if len(studies) == 1 and studies[0]["test"]:
        tiles.insert(0, Tile(f"test {metric_name(studies[0])}", _cell(studies[0]), told(studies[0]["test"])))
    return tiles


def _summary(studies: Sequence[Mapping[str, Any]]) -> Html:
    body = report.table(HEADERS, rows(studies))
    return report.section("Results", body, note="score [95 % interval], or mean ± standard deviation of seeds")


def _study(study: Mapping[str, Any]) -> Html:
    trials = study["trials"]
    shown = sorted((t for t in trials if t["evaluations"]), key=lambda t: t["trial"] != study["best_trial"])
    series = [
        Series(
            f"trial {trial['trial']}" + (", the best" if trial["trial"] == study["best_trial"] else ""),
            [(epoch, score) for epoch, score in trial["evaluations"] if score is not None],
            reference=trial["trial"] != study["best_trial"],
        )
        for trial in shown[:_MOST_DRAWN]
    ]
    curves = line_chart(f"dev {study['metric']} of every trial", series, "epoch", study["metric"])
    paths = list(trials[0]["settings"])
    headers = ["trial", "dev", "state", "starts", "s", *(_short(path) for path in paths)]
    ranked = sorted(trials, key=lambda t: (t["trial"] != study["best_trial"], t["trial"]))
    body = [
        [
            t["trial"], "" if t["dev"] is None else f"{t['dev']:.4f}", t["error"] or t["status"], t["starts"],
            "" if t["seconds"] is None else f"{t['seconds']:.1f}", *(_value(t["settings"][path]) for path in paths),
        ]
        for t in ranked
    ]  # fmt: skip
    link = report.tag("a", "the best trial: confusion, labels, errors", href=f"{study['study']}/report.html")
    folded = report.fold(f"{len(trials)} trials, the best first", report.table(headers, body))
    title = study["task"] if study["study"] == study["task"] else f"{study['task']}: {study['model']}"
    parts = [curves, folded, report.tag("p", link)] if study["dev"] else [folded]
    return report.section(title, *parts, note=f"{study['title']}; dev {told(study['dev'])}; test {told(study['test'])}")
