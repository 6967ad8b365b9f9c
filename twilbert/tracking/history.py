"""Reads runs from their folders, while they go and afterwards: state, curves, scores, model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import twilbert
from twilbert import cli, storage
from twilbert.errors import TwilbertError, UsageError
from twilbert.hub.folder import CONFIG_NAME
from twilbert.parsing import read_record, read_yaml
from twilbert.recipe import loading
from twilbert.recipe.pretraining import flattened
from twilbert.tracking import run_folder
from twilbert.tracking.metrics import METRICS_FILE, Curve, curves_of, read_metrics
from twilbert.tracking.run_folder import IDENTITY, PUBLISHED, Identity, Published, RunFolder, Status, step_of


def newest_run(runs: str) -> str:
    """Folder of the newest run of pre-training that is finished; UsageError with the commands that make one."""
    found = []
    for name in storage.list_dir(runs):
        run = RunFolder(storage.join(storage.absolute(runs), name), name, "", {})
        recipe = storage.join(run.path, "recipe.yaml")
        if storage.exists(recipe) and storage.exists(storage.join(run.model, CONFIG_NAME)):
            try:
                is_finished = run.trained_steps >= loading.load(recipe).training.max_steps
            except TwilbertError as error:
                cli.say(f"{run.path}: passed over: {error}")
                continue
            if is_finished:
                found.append((storage.modified(storage.join(run.model, CONFIG_NAME)), run.path))
    if not found:
        raise UsageError(
            f"no --model, and no finished run under {storage.absolute(runs)}; name a model, or make a small one:\n"
            "  twilbert-sample pairs --out sample\n"
            "  twilbert-prepare sample/pairs.tsv --out corpus\n"
            "  twilbert-vocab corpus --out tokenizer --vocab-size 8000\n"
            "  twilbert-pretrain recipes/tiny.yaml"
        )
    return max(found)[1]


if TYPE_CHECKING:
    from twilbert.inference.model import Model

_NUMBERS = {"training.max_steps": None, "training.global_batch_size": 0, "training.hang_timeout": 30}
"""Settings that are computed with, and what they are where a recipe has none."""


@dataclass(frozen=True)
class Run:
    """A training that lies in a folder."""

    path: str
    metrics: Mapping[str, Curve]
    """Series → [(step, value), …], each step once: of a pre-training train/ valid/ optim/ speed/ data/ pkm/, over
    optimiser steps; of a sweep STUDY/TRIAL, the score on dev over epochs."""
    models: Mapping[str, str]
    """Name → model folder: of a pre-training "model", of a sweep each study's best."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    def curve(self, series: str) -> Curve:
        """The [(step, value), …] of one series; UsageError naming those that are like it where it was not logged."""
        if series not in self.metrics:
            near = difflib.get_close_matches(series, self.metrics, 3, 0.5) or list(self.metrics)[:8]
            raise UsageError(f"{self.path}: no series {series!r}; there are {', '.join(near) or 'none yet'}")
        return self.metrics[series]

    def model(self, name: str | None = None, device: str | None = None, trust_remote_code: bool = False) -> Model:
        """The trained model, loaded by `twilbert.load`; UsageError where there is none yet, or `name` must choose."""
        if name is None and len(self.models) == 1:
            (name,) = self.models
        if name is None or name not in self.models:
            known = ", ".join(self.models)
            raise UsageError(f"{self.path}: " + (f"which model? one of {known}" if known else "it has no model yet"))
        return twilbert.load(self.models[name], device, trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class Pretraining(Run):
    """A run of twilbert-pretrain."""

    status: Status
    recipe: Mapping[str, Any]
    """Dotted path → value, as it was last started."""
    identity: Mapping[str, Any]
    """Dotted path → value of all that changes the science, the data's fingerprints too."""
    changed: float
    """When its numbers were last written, in seconds since 1970."""

    @property
    def hash(self) -> str:
        """Of what changes the science: the end of a run's default name."""
        return loading.short_hash(dict(self.identity))

    @property
    def state(self) -> str:
        """running, finished, stopped or failed."""
        return self.status.state

    @cached_property
    def step(self) -> int:
        """The last one that was logged; 0 before the first."""
        return int(max((curve[-1][0] for curve in self.metrics.values()), default=0))

    @property
    def max_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return int(self.recipe["training.max_steps"])

    def last(self, series: str) -> float | None:
        """The newest value of a series, if it was logged."""
        return self.metrics[series][-1][1] if series in self.metrics else None

    def at(self, series: str, step: int | None) -> float | None:
        """The value of a series at that step, if it was logged."""
        return None if step is None else dict(self.metrics.get(series, ())).get(step)

    @cached_property
    def best_step(self) -> int | None:
        """The step with the least held-out loss, whose weights are the run's model; None before an evaluation."""
        losses = [(value, step) for step, value in self.metrics.get("valid/loss", ()) if value == value]
        return int(min(losses)[1]) if losses else None

    @classmethod
    def read(cls, path: str) -> Self:
        """The run in that folder; UsageError, with what the folder is, where it is none."""
        path = storage.absolute(path)
        if not is_run(path):
            raise UsageError(f"{path}: {what_it_is(path)}")
        identity = read_record(storage.join(path, IDENTITY), Identity).identity
        written = storage.join(path, "recipe.yaml")
        recipe = _read_recipe(written)
        log = storage.join(path, METRICS_FILE)
        metrics = curves_of(read_metrics(log))
        model = storage.join(path, "model")
        models = {"model": model} if storage.exists(storage.join(model, "config.json")) else {}
        last = int(max((curve[-1][0] for curve in metrics.values()), default=0))
        status = run_folder.read(
            path,
            last_step=last,
            max_steps=recipe["training.max_steps"],
            hang_timeout=recipe["training.hang_timeout"],
        )
        changed = storage.modified(log if metrics else written)
        return cls(path, metrics, models, status, recipe, identity, changed)


def _read_recipe(path: str) -> dict[str, Any]:
    """Dotted path → value of a run's recipe, of any version; TwilbertError where its numbers are none."""
    values = read_yaml(path)
    recipe = _NUMBERS | flattened(values if isinstance(values, dict) else {})
    wrong = [key for key in _NUMBERS if type(recipe[key]) not in (int, float)]
    if wrong:
        raise TwilbertError(f"{path}: no number {wrong[0]}, so not the recipe of a run; restore it")
    return recipe


def is_run(path: str) -> bool:
    """Whether a pre-training has been started there."""
    return all(storage.exists(storage.join(path, name)) for name in (IDENTITY, "recipe.yaml"))


def find(name: str, runs: str = "runs") -> Pretraining:
    """The run that `name` means: its folder, or its name under `runs`; UsageError that says what was found instead."""
    for path in (name, storage.join(runs, name)):
        if is_run(path):
            return Pretraining.read(path)
    held = runs_in(runs)
    known = f"runs in {storage.absolute(runs)}: {', '.join(held)}" if held else f"no run in {storage.absolute(runs)}"
    place = storage.absolute(name)
    raise UsageError(f"{place}: {what_it_is(place)}\n{known}")


def runs_in(folder: str) -> list[str]:
    """Names of the runs in a folder; none where it is no folder."""
    names = []
    for name in storage.list_dir(folder) if storage.is_folder(folder) else []:
        try:
            names += [name] if is_run(storage.join(folder, name)) else []
        except OSError as error:
            cli.say(f"passed over: {error}")
    return names


def all_in(folder: str) -> list[Pretraining]:
    """The runs in a folder of runs, the one that wrote last first; a damaged one is reported and skipped."""
    runs = []
    for name in runs_in(folder):
        try:
            runs.append(Pretraining.read(storage.join(folder, name)))
        except TwilbertError as error:
            cli.say(f"passed over: {error}")
    return sorted(runs, key=lambda run: -run.changed)


def what_it_is(path: str) -> str:
    """What lies there that is no run, and what to do with it."""
    if not storage.exists(path):
        return "no such run or folder"
    names = set(storage.list_dir(path)) if storage.is_folder(path) else set()
    if "sweep.yaml" in names:
        return "a sweep of twilbert-tune, not a run of pre-training; its page is report.html in that folder"
    if {"results.json", "report.html"} <= names:
        return "a fine-tuning, not a run of pre-training; its page is report.html in that folder"
    parent = path.rstrip("/").rpartition("/")[0]
    if is_run(parent):
        return f"a part of a run; give the run: {parent}"
    held = runs_in(path)
    if held:
        return (
            f"a folder of runs; name those to lay side by side: {', '.join(held[:8])}{', …' if len(held) > 8 else ''}"
        )
    if "config.json" in names:
        return "a model folder without its run; twilbert-evaluate scores it"
    return "not a run of pre-training (no identity.json and recipe.yaml)"


def held_out_scores(model: str) -> dict[str, float]:
    """The held-out evaluation of the step whose weights a run's or checkpoint's model folder holds, and that step.

    Empty where the folder lies in no run, or that step was not evaluated.
    """
    above = model.rpartition("/")[0]
    run, _, checkpoint = above.rpartition("/")
    published = storage.join(model, PUBLISHED)
    if storage.exists(published):
        run, checkpoint = above, read_record(published, Published).checkpoint
    step = step_of(checkpoint)
    if step is None:
        return {}
    scores: dict[str, float] = {}
    for row in read_metrics(storage.join(run, METRICS_FILE)):
        if row["step"] == step:
            scores |= {series: value for series, value in row.items() if series.startswith("valid/")}
    return {"step": step, **scores} if scores else {}
