"""The HTML page of one or several runs: scores, differences of their recipes, curves."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from twilbert.report import html
from twilbert.report.charts import N_COLOURS, Chart, Series, line_chart
from twilbert.report.html import Page, Tile
from twilbert.tracking.history import Pretraining
from twilbert.tracking.metrics import Curve

MOST_RUNS = N_COLOURS
"""As many runs as there are colours."""
_MOST_POINTS = 240  # of a line: the pixels of a phone
_SCORES = (
    # name, series, sign (1: greater is better, -1: less is better)
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


@dataclass(frozen=True)
class PretrainingRun(Pretraining, Page):
    """A run of twilbert-pretrain that a notebook shows as its page."""

    def html(self) -> str:
        """The page of twilbert-runs."""
        return of_runs([self])


def of_runs(runs: Sequence[Pretraining], reload_seconds: float | None = None) -> str:
    """Return the page of up to MOST_RUNS runs, which reloads itself every `reload_seconds` where they are given."""
    overview = [
        [name, status(run), _best_loss(run), run.hash, written_at(run)]
        for name, run in zip(names(runs), runs, strict=True)
    ]
    return html.render(
        "tracking/page.html.jinja",
        names=names(runs),
        run=runs[0] if len(runs) == 1 else None,
        tiles=_tiles(runs[0]),
        settings=[[key, _setting(value)] for key, value in runs[0].recipe.items()],
        overview=overview,
        scores=score_rows(runs),
        differences=difference_rows(runs),
        sections=_sections(runs),
        now=time.strftime("%Y-%m-%d %H:%M:%S"),
        reload_seconds=reload_seconds,
    )


def names(runs: Sequence[Pretraining]) -> list[str]:
    """Return the runs' names, or their paths where two have the same name."""
    plain = [run.name for run in runs]
    return [run.path if plain.count(run.name) > 1 else run.name for run in runs]


def status(run: Pretraining) -> str:
    """running at step 320 of 2,900 · failed at step 12 of 100: why."""
    at = f"at step {run.step:,}" + (f" of {run.max_steps:,}" if run.step < run.max_steps else "")
    return f"{run.state} {at}" + (f": {run.status.why}" if run.status.why else "")


def _best_loss(run: Pretraining) -> str:
    value = run.at("valid/loss", run.best_step)
    return "–" if value is None else f"{value:.3f} at step {run.best_step:,}"


def written_at(run: Pretraining) -> str:
    """Return when its numbers were last written, in local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed))


def difference_rows(runs: Sequence[Pretraining]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the [setting, value in each run] that differ: those that change results, and the others."""
    identity = {key for run in runs for key in run.identity}
    others = {key for run in runs for key in run.recipe} - identity - {"run.name"}
    return (
        _differing(identity, [{**run.recipe, **run.identity} for run in runs]),  # older identities lack newer keys
        _differing(others, [run.recipe for run in runs]),
    )


def _differing(keys: Iterable[str], settings: Sequence[Any]) -> list[list[str]]:
    rows = [[key, *(_setting(run[key]) if key in run else "–" for run in settings)] for key in sorted(keys)]
    return [row for row in rows if len(set(row[1:])) > 1]


def score_rows(runs: Sequence[Pretraining]) -> list[tuple[str, list[str], int | None]]:
    """Return (score, value at each run's best step, index of the best run or None) of every held-out score there is."""
    rows = []
    for name, series, sign in _SCORES:
        values = [run.at(series, run.best_step) for run in runs]
        signed = [-math.inf if value is None or not math.isfinite(value) else value * sign for value in values]
        best = max(signed)
        if math.isfinite(best):
            is_best_alone = signed.count(best) == 1 and sum(map(math.isfinite, signed)) > 1
            texts = ["" if value is None else f"{value:.3f}" for value in values]
            rows.append((name, texts, signed.index(best) if is_best_alone else None))
    return rows


def _tiles(run: Pretraining) -> list[Tile]:
    tiles = [("State", run.state, f"step {run.step:,} of {run.max_steps:,}")]
    for name, series, _ in _SCORES[1:2] + _SCORES[-1:]:
        value = run.at(series, run.best_step)
        if value is not None:
            tiles.append((f"{name}, held out", f"{value:.3f}", f"at step {run.best_step:,}, the best"))
    loss, speed, seconds = map(run.last, ("train/mlm_loss", "speed/tokens_per_second", "speed/step_seconds"))
    if loss is not None:
        tiles.append(("MLM loss, training", f"{loss:.3f}", f"nats, at step {run.step:,}"))
    if speed is not None:
        tiles.append(("Speed", f"{speed:,.0f}", "tokens a second, latest"))
    if seconds is not None and run.state == "running":
        tiles.append(("Left", _duration(seconds * (run.max_steps - run.step)), "of training, at this speed"))
    day, minute = written_at(run).split()
    return [*tiles, ("Last written", minute, day)]


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 2880 else f"{minutes / 1440:.1f} d"


def _sections(runs: Sequence[Pretraining]) -> list[tuple[str, list[Chart]]]:
    """Return the titles of sections that have charts, with those."""
    known = {series for charts in _CHARTS.values() for _, _, keys in charts for series in keys}
    others = sorted({series for run in runs for series in run.metrics} - known)
    groups = _CHARTS | {"Product-key memory": [(s, "", (s,)) for s in others if s.startswith("pkm/")]}
    groups |= {"Further": [(s, "", (s,)) for s in others if not s.startswith("pkm/")]}
    sections = []
    for title, entries in groups.items():
        charts = [
            c for entry in entries for c in (_of_one(runs[0], *entry) if len(runs) == 1 else _of_all(runs, *entry))
        ]
        if title == "Loss and accuracy":
            charts[1:1] = _by_samples(runs)
        if charts:
            sections.append((title, charts))
    return sections


def _of_one(run: Pretraining, title: str, unit: str, keys: Sequence[str]) -> list[Chart]:
    """Return a chart of one run: training and held-out pairs."""
    lines = [Series(_SPLITS.get(key.partition("/")[0], key), thin(run.metrics.get(key, []))) for key in keys]
    return _chart(title, lines, unit)


def _of_all(runs: Sequence[Pretraining], title: str, unit: str, keys: Sequence[str]) -> list[Chart]:
    """Return a chart of each series with a line for each run."""
    charts = []
    for key in reversed(keys):
        split = _SPLITS.get(key.partition("/")[0])
        curves = [thin(run.metrics.get(key, [])) for run in runs]
        charts += _chart(f"{title}, {split}" if split else title, _lines(runs, curves), unit)
    return charts


def _by_samples(runs: Sequence[Pretraining]) -> list[Chart]:
    """Return a chart of held-out MLM loss over samples, where runs differ in samples a step."""
    sizes = [run.recipe["training.global_batch_size"] for run in runs]
    if len(set(sizes)) < 2:
        return []
    curves = [
        [(step * size, value) for step, value in thin(run.metrics.get("valid/mlm_loss", []))]
        for run, size in zip(runs, sizes, strict=True)
    ]
    return _chart("MLM loss, held out, over samples", _lines(runs, curves), "nats", "samples")


def _lines(runs: Sequence[Pretraining], curves: Sequence[Curve]) -> list[Series]:
    """Return a line for each run, in the run's colour."""
    return [Series(name, curve, colour=i) for i, (name, curve) in enumerate(zip(names(runs), curves, strict=True), 1)]


def _chart(title: str, lines: Sequence[Series], unit: str, x_label: str = "step") -> list[Chart]:
    """Return a chart from step 0 on, so that all share their x axis; none where there are no points."""
    last = max((line.points[-1][0] for line in lines if line.points), default=0)
    return [line_chart(title, lines, x_label, unit, x_range=(0, last))] if last else []


def thin(curve: Curve, most: int = _MOST_POINTS) -> Curve:
    """Return a curve of at most `most` points: the means of neighbours, at the last one's step."""
    size = -(-len(curve) // most)
    if size <= 1:
        return list(curve)
    parts = [curve[i : i + size] for i in range(0, len(curve), size)]
    return [(part[-1][0], math.fsum(value for _, value in part) / len(part)) for part in parts]


def _setting(value: Any) -> str:
    text = "null" if value is None else str(value)
    return f"{text[:8]}…" if re.fullmatch("[0-9a-f]{16,}", text) else text  # of a fingerprint, the start
