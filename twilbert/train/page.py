"""The page of one run or several side by side: scores, what their recipes differ in, every curve. Runs in, HTML out."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from typing import Any

from twilbert import __version__, report
from twilbert.charts import N_COLOURS, Series, line_chart
from twilbert.report import Content, Html, Tile
from twilbert.train.history import Curve, Pretraining

MOST_RUNS = N_COLOURS
"""Runs that a page tells apart."""
_MOST_POINTS = 240  # of a line: as many as a phone has pixels for
_SCORES = (
    # name, series, the better one (1 the greater, -1 the lesser)
    ("loss", "valid/loss", -1),
    ("MLM loss", "valid/mlm_loss", -1),
    ("MLM loss at [MASK]", "valid/mlm_loss_at_mask", -1),
    ("MLM accuracy", "valid/mlm_accuracy", 1),
    ("MLM accuracy at [MASK]", "valid/mlm_accuracy_at_mask", 1),
    ("ROP loss", "valid/rop_loss", -1),
    ("ROP accuracy", "valid/rop_accuracy", 1),
)
# Section → charts: title, unit, series of the training and of the held-out pairs, or one alone.
_CHARTS: dict[str, list[tuple[str, str, tuple[str, ...]]]] = {
    "Loss and accuracy": [
        ("MLM loss", "nats", ("train/mlm_loss", "valid/mlm_loss")),
        ("MLM accuracy", "share", ("train/mlm_accuracy", "valid/mlm_accuracy")),
        ("ROP accuracy", "share", ("train/rop_accuracy", "valid/rop_accuracy")),
        ("ROP loss", "nats", ("train/rop_loss", "valid/rop_loss")),
        ("MLM loss at [MASK]", "nats", ("train/mlm_loss_at_mask", "valid/mlm_loss_at_mask")),
        ("MLM accuracy at [MASK]", "share", ("train/mlm_accuracy_at_mask", "valid/mlm_accuracy_at_mask")),
        ("Loss: MLM and ROP", "nats", ("train/loss", "valid/loss")),
    ],
    "Optimiser": [
        ("Learning rate", "", ("optim/learning_rate",)),
        ("Gradient norm", "", ("optim/grad_norm",)),
        ("Update norm", "", ("optim/update_norm",)),
        ("Skipped steps", "steps", ("optim/skipped_steps",)),
        ("Trust ratio, least", "", ("optim/trust_ratio_min",)),
        ("Trust ratio, median", "", ("optim/trust_ratio_median",)),
        ("Trust ratio, greatest", "", ("optim/trust_ratio_max",)),
    ],
    "Speed and data": [
        ("Tokens a second", "tokens/s", ("speed/tokens_per_second",)),
        ("Time of a step", "s", ("speed/step_seconds",)),
        ("Waiting for data", "share of time", ("speed/data_wait_share",)),
        ("Padding", "share of tokens", ("data/padding",)),
        ("Epochs", "epochs", ("data/epoch",)),
        ("Samples a second", "samples/s", ("speed/samples_per_second",)),
        ("Useful FLOPs a second", "FLOP/s", ("speed/flops",)),
        ("Useful share of the peak (MFU)", "share", ("speed/mfu",)),
        ("Peak memory of a GPU", "bytes", ("speed/peak_memory_bytes",)),
    ],
}
_SPLITS = {"train": "training", "valid": "held out"}
_DEFAULT = "–"


def of_runs(runs: Sequence[Pretraining], reload_seconds: float | None = None) -> str:
    """The page of up to MOST_RUNS runs; one that loads itself again every so many seconds where they are given."""
    if len(runs) == 1:
        sections = [report.tiles(_tiles(runs[0])), *_charts(runs), _settings(runs[0])]
        subtitle: Content = f"{told(runs[0])} · recipe {runs[0].hash} · {runs[0].path}"
    else:
        sections = [_overview(runs), _scores(runs), _differences(runs), *_charts(runs)]
        subtitle = "Runs of pre-training: how they score, what their recipes differ in, their curves"
    now = f"{time.strftime('%Y-%m-%d %H:%M:%S')}, twilbert {__version__}"
    again = f"; loaded anew every {reload_seconds:g} seconds" if reload_seconds else ""
    title = " · ".join(names(runs)) if len(runs) < 3 else f"{len(runs)} runs side by side"
    return report.page(title, subtitle, sections, f"As of {now}{again}.", reload_seconds=reload_seconds)


def names(runs: Sequence[Pretraining]) -> list[str]:
    """The runs' names, with their folders' where two are alike."""
    found = [run.name for run in runs]
    return [run.path if found.count(run.name) > 1 else run.name for run in runs]


def told(run: Pretraining) -> str:
    """running at step 320 of 2,900 · failed at step 12 of 100: why."""
    at = f"at step {run.step:,}" + (f" of {run.max_steps:,}" if run.step < run.max_steps else "")
    return f"{run.state} {at}" + (f": {run.told.why}" if run.told.why else "")


def best_told(run: Pretraining) -> str:
    """4.35 at step 600: the least held-out loss."""
    value = run.at("valid/loss", run.best_step)
    return _DEFAULT if value is None else f"{value:.3f} at step {run.best_step:,}"


def when(run: Pretraining) -> str:
    """When its numbers were last written, in local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed))


def difference_rows(runs: Sequence[Pretraining]) -> tuple[list[list[str]], list[list[str]]]:
    """(what changes the science, the rest): [setting, its value in each run], where the runs differ."""
    science = sorted({key for run in runs for key in run.identity})
    rest = sorted({key for run in runs for key in run.recipe} - set(science) - {"run.name"})
    return (
        _differing(science, [{**run.recipe, **run.identity} for run in runs]),  # old identities lack newer keys
        _differing(rest, [run.recipe for run in runs]),
    )


def _differing(keys: Sequence[str], held: Sequence[Any]) -> list[list[str]]:
    rows = [[key, *(_said(values[key]) if key in values else _DEFAULT for values in held)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def score_rows(runs: Sequence[Pretraining]) -> list[tuple[str, list[str], int | None]]:
    """(score, its value at each run's best step, which run is best) for held-out pairs; none where none was scored."""
    rows = []
    for name, series, better in _SCORES:
        values = [run.at(series, run.best_step) for run in runs]
        known = [value * better for value in values if value is not None and math.isfinite(value)]
        if known:
            first = next(i for i, v in enumerate(values) if v is not None and v * better == max(known))
            best = first if len(known) > 1 and known.count(max(known)) == 1 else None
            rows.append((name, ["" if v is None else f"{v:.3f}" for v in values], best))
    return rows


def _tiles(run: Pretraining) -> list[Tile]:
    tiles = [Tile("State", run.state, f"step {run.step:,} of {run.max_steps:,}")]
    for name, series, _ in _SCORES[1:2] + _SCORES[-1:]:
        value = run.at(series, run.best_step)
        if value is not None:
            tiles.append(Tile(f"{name}, held out", f"{value:.3f}", f"at step {run.best_step:,}, the best"))
    loss, speed, seconds = map(run.last, ("train/mlm_loss", "speed/tokens_per_second", "speed/step_seconds"))
    if loss is not None:
        tiles.append(Tile("MLM loss, training", f"{loss:.3f}", f"nats, at step {run.step:,}"))
    if speed is not None:
        tiles.append(Tile("Speed", f"{speed:,.0f}", "tokens a second, lately"))
    if seconds is not None and run.state == "running":
        left = _duration(seconds * (run.max_steps - run.step))
        tiles.append(Tile("Left", left, "of training, at this speed"))
    return [*tiles, Tile("Last written", when(run)[11:], when(run)[:10])]


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return (
        f"{minutes:.0f} min"
        if minutes < 90
        else f"{minutes / 60:.1f} h"
        if minutes < 2880
        else f"{minutes / 1440:.1f} d"
    )


def _overview(runs: Sequence[Pretraining]) -> Html:
    cells = [
        [_named(i, name), told(run), best_told(run), run.hash, when(run)]
        for i, (name, run) in enumerate(zip(names(runs), runs, strict=True))
    ]
    return report.section("Runs", report.table(["run", "state", "best held-out loss", "recipe", "last written"], cells))


def _named(i: int, name: str) -> Html:
    """A run's name with its line's colour and dashes."""
    return report.tag("span", report.join([report.tag("i", "", kind=f"c{i + 1}"), name]), kind="legend name")


def _scores(runs: Sequence[Pretraining]) -> Html:
    rows = [
        [name, *(report.tag("b", value) if i == best else value for i, value in enumerate(values))]
        for name, values, best in score_rows(runs)
    ]
    if not rows:
        return report.section("Scores", note="Nothing was scored on held-out pairs yet.")
    note = "On held-out pairs, at each run's step with the least loss; the best in bold. Losses in nats."
    return report.section("Scores", report.table(["score", *names(runs)], rows), note=note)


def _differences(runs: Sequence[Pretraining]) -> Html:
    science, rest = difference_rows(runs)
    headers = ["setting", *names(runs)]
    body = (
        report.table(headers, science) if science else report.tag("p", "The same science: nothing that they compute.")
    )
    others = [report.fold("settings that change no result", report.table(headers, rest))] if rest else []
    return report.section("Differences", body, *others)


def _charts(runs: Sequence[Pretraining]) -> list[Html]:
    known = {series for charts in _CHARTS.values() for _, _, keys in charts for series in keys}
    further = sorted({series for run in runs for series in run.metrics} - known)
    groups = _CHARTS | {"Product-key memory": [(s, "", (s,)) for s in further if s.startswith("pkm/")]}
    groups |= {"Further": [(s, "", (s,)) for s in further if not s.startswith("pkm/")]}
    made = []
    for title, charts in groups.items():
        drawn = [chart for one in charts for chart in (_own(runs[0], *one) if len(runs) == 1 else _laid(runs, *one))]
        if title == "Loss and accuracy":
            drawn[1:1] = _by_samples(runs)
        if drawn:
            made.append(report.section(title, report.grid(drawn)))
    return made


def _own(run: Pretraining, title: str, unit: str, keys: Sequence[str]) -> list[Html]:
    """One run: training and held-out pairs in one chart."""
    lines = [Series(_SPLITS.get(key.partition("/")[0], key), thin(run.metrics.get(key, []))) for key in keys]
    return _chart(title, lines, unit)


def _laid(runs: Sequence[Pretraining], title: str, unit: str, keys: Sequence[str]) -> list[Html]:
    """Several: a chart for each series, a line for each run."""
    made = []
    for key in reversed(keys):
        split = _SPLITS.get(key.partition("/")[0])
        lines = [
            Series(name, thin(run.metrics.get(key, [])), colour=i + 1)
            for i, (name, run) in enumerate(zip(names(runs), runs, strict=True))
        ]
        made += _chart(f"{title}, {split}" if split else title, lines, unit)
    return made


def _by_samples(runs: Sequence[Pretraining]) -> list[Html]:
    """Held-out MLM loss over samples seen, where runs see different numbers of them a step."""
    sizes = [run.recipe["training.global_batch_size"] for run in runs]
    if len(set(sizes)) < 2:
        return []
    lines = [
        Series(
            name, [(step * size, value) for step, value in thin(run.metrics.get("valid/mlm_loss", []))], colour=i + 1
        )
        for i, (name, run, size) in enumerate(zip(names(runs), runs, sizes, strict=True))
    ]
    return _chart("MLM loss, held out, over samples", lines, "nats", "samples")


def _chart(title: str, lines: Sequence[Series], unit: str, x_label: str = "step") -> list[Html]:
    """From step 0 on, so that the charts of a page stand over one another; none where there are no points."""
    last = max((line.points[-1][0] for line in lines if line.points), default=0)
    return [line_chart(title, lines, x_label, unit, x_range=(0, last))] if last else []


def thin(curve: Curve, most: int = _MOST_POINTS) -> Curve:
    """A curve of at most `most` points: the means of neighbours, at the last one's step."""
    each = -(-len(curve) // most)
    if each <= 1:
        return list(curve)
    parts = [curve[i : i + each] for i in range(0, len(curve), each)]
    return [(part[-1][0], math.fsum(value for _, value in part) / len(part)) for part in parts]


def _settings(run: Pretraining) -> Html:
    rows = [[key, _said(value)] for key, value in run.recipe.items()]
    return report.section("Settings", report.fold("the whole recipe", report.table(["setting", "value"], rows)))


def _said(value: Any) -> str:
    text = "null" if value is None else str(value)
    return f"{text[:8]}…" if re.fullmatch("[0-9a-f]{16,}", text) else text  # fingerprints are told apart by less
