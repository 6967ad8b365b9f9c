"""Reads runs from their folders, during training and afterwards: status, curves, scores, model."""

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
from twilbert.tracking.run_folder import IDENTITY, PUBLISHED, Identity, Published, Status, step_of

if TYPE_CHECKING:
    from twilbert.inference.model import Model

_NUMBERS = {"training.max_steps": None, "training.global_batch_size": 0, "training.hang_timeout": 30}
"""Settings used in computations, with their values where a recipe lacks them."""


@dataclass(frozen=True)
class Run:
    """A training in a folder."""

    path: str
    metrics: Mapping[str, Curve]
    """Series → [(step, value), …], each step once: of a pre-training train/ valid/ optim/ speed/ data/ pkm/, over
    optimiser steps; of a sweep STUDY/TRIAL, the score on dev over epochs."""
    models: Mapping[str, str]
    """Name → model folder: of a pre-training "model", of a sweep each study's best."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    def curve(self, series: str) -> Curve:
        """Return the [(step, value), …] of one series; UsageError with similar names where it was not logged."""
        if series not in self.metrics:
            near = difflib.get_close_matches(series, self.metrics, 3, 0.5) or list(self.metrics)[:8]
            raise UsageError(f"{self.path}: no series {series!r}; there are {', '.join(near) or 'none yet'}")
        return self.metrics[series]

    def model(self, name: str | None = None, device: str | None = None, trust_remote_code: bool = False) -> Model:
        """Load the trained model by `twilbert.load`; UsageError where there is none yet, or several and no `name`."""
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
    """Dotted path → value, of its latest start."""
    identity: Mapping[str, Any]
    """Dotted path → value of all that changes its results, fingerprints of the data included."""
    changed: float
    """When its numbers were last written, in seconds since 1970."""

    @property
    def hash(self) -> str:
        """The hash of its identity, which ends a run's default name."""
        return loading.short_hash(dict(self.identity))

    @property
    def state(self) -> str:
        """running, finished, stopped or failed."""
        return self.status.state

    @cached_property
    def step(self) -> int:
        """The last logged step; 0 before the first."""
        return _last_step(self.metrics)

    @property
    def max_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return int(self.recipe["training.max_steps"])

    def last(self, series: str) -> float | None:
        """Return the newest value of a series; None where it was not logged."""
        return self.metrics[series][-1][1] if series in self.metrics else None

    def at(self, series: str, step: int | None) -> float | None:
        """Return the value of a series at that step; None where it was not logged."""
        return None if step is None else dict(self.metrics.get(series, ())).get(step)

    @cached_property
    def best_step(self) -> int | None:
        """The step with the least held-out loss, whose weights are the run's model; None before an evaluation."""
        losses = [(value, step) for step, value in self.metrics.get("valid/loss", ()) if value == value]
        return int(min(losses)[1]) if losses else None

    @classmethod
    def read(cls, path: str) -> Self:
        """Read the run in that folder; UsageError that says what else is there where it is no run."""
        path = storage.absolute(path)
        if not is_run(path):
            raise UsageError(f"{path}: {what_it_is(path)}")
        log, recipe_file, model = (storage.join(path, name) for name in (METRICS_FILE, "recipe.yaml", "model"))
        identity = read_record(storage.join(path, IDENTITY), Identity).identity
        recipe = _read_recipe(recipe_file)
        metrics = curves_of(read_metrics(log))
        models = {"model": model} if storage.exists(storage.join(model, CONFIG_NAME)) else {}
        status = run_folder.read_status(
            path,
            last_step=_last_step(metrics),
            max_steps=recipe["training.max_steps"],
            hang_timeout=recipe["training.hang_timeout"],
        )
        return cls(path, metrics, models, status, recipe, identity, storage.modified(log if metrics else recipe_file))


def _last_step(metrics: Mapping[str, Curve]) -> int:
    return int(max((curve[-1][0] for curve in metrics.values()), default=0))


def _read_recipe(path: str) -> dict[str, Any]:
    """Return dotted path → value of a run's recipe, of any version; TwilbertError where its numbers are none."""
    values = read_yaml(path)
    recipe = _NUMBERS | flattened(values if isinstance(values, dict) else {})
    wrong = [key for key in _NUMBERS if type(recipe[key]) not in (int, float)]
    if wrong:
        raise TwilbertError(f"{path}: {wrong[0]} is not a number, so not the recipe of a run; restore it")
    return recipe


def is_run(path: str) -> bool:
    """Whether a pre-training has been started there."""
    return all(storage.exists(storage.join(path, name)) for name in (IDENTITY, "recipe.yaml"))


def find(name: str, runs: str = "runs") -> Pretraining:
    """Read the run in the folder `name`, or of that name under `runs`; UsageError that says what is there instead."""
    for path in (name, storage.join(runs, name)):
        if is_run(path):
            return Pretraining.read(path)
    names = runs_in(runs)
    known = f"runs in {storage.absolute(runs)}: {', '.join(names)}" if names else f"no run in {storage.absolute(runs)}"
    raise UsageError(f"{storage.absolute(name)}: {what_it_is(storage.absolute(name))}\n{known}")


def runs_in(folder: str) -> list[str]:
    """Return the names of the runs in a folder; none where it is no folder."""
    names = []
    for name in storage.list_dir(folder) if storage.is_folder(folder) else []:
        try:
            names += [name] if is_run(storage.join(folder, name)) else []
        except OSError as error:
            cli.say(f"skipped: {error}")
    return names


def all_in(folder: str) -> list[Pretraining]:
    """Return the runs in a folder, the last written first; a damaged one is reported and skipped."""
    runs = []
    for name in runs_in(folder):
        try:
            runs.append(Pretraining.read(storage.join(folder, name)))
        except TwilbertError as error:
            cli.say(f"skipped: {error}")
    return sorted(runs, key=lambda run: -run.changed)


def newest_run(runs: str) -> str:
    """Return the folder of the newest finished run; UsageError with the commands that make one."""
    runs = storage.absolute(runs)
    finished = []
    for path in (storage.join(runs, name) for name in storage.list_dir(runs)):
        recipe, config = storage.join(path, "recipe.yaml"), storage.join(path, "model", CONFIG_NAME)
        if not (storage.exists(recipe) and storage.exists(config)):
            continue
        try:
            if run_folder.trained_steps(path) >= _read_recipe(recipe)["training.max_steps"]:
                finished.append((storage.modified(config), path))
        except TwilbertError as error:
            cli.say(f"skipped: {error}")
    if not finished:
        raise UsageError(
            f"no --model, and no finished run under {runs}; name a model, or make a small one:\n"
            "  twilbert-sample pairs --out sample\n"
            "  twilbert-prepare sample/pairs.tsv --out corpus\n"
            "  twilbert-vocab corpus --out tokenizer --vocab-size 8000\n"
            "  twilbert-pretrain recipes/tiny.yaml"
        )
    return max(finished)[1]


def what_it_is(path: str) -> str:
    """Return what is at a path that is no run, and what to do with it."""
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
    if runs := runs_in(path):
        return f"a folder of runs; name those to compare: {', '.join(runs[:8])}{', …' if len(runs) > 8 else ''}"
    if CONFIG_NAME in names:
        return "a model folder without its run; twilbert-evaluate scores it"
    return "not a run of pre-training (no identity.json and recipe.yaml)"


def held_out_scores(model: str) -> dict[str, float]:
    """Return the held-out scores of the step whose weights a run's or checkpoint's model folder holds, and that step.

    Empty where the folder is in no run, or that step was not evaluated.
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
