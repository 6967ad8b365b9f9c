"""What is kept of each trial, written as it happens: the one account of a sweep, from which it goes on after any end.

TRIAL/  started.json       how many times it was started
        evaluations.json   every look at dev since its last start
        best.safetensors   weights at the best of them, and what they say of dev
        ended.json         finished, stopped (by the scheduler) or failed, and why; without it the trial is not over
Weights of ended trials that are not the best of their study are removed. Every file holds its own SHA-256.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal, TypeVar

import numpy as np
from torch import Tensor

from twilbert import cli, storage
from twilbert.data import checksums
from twilbert.errors import TwilbertError
from twilbert.finetuning import resume
from twilbert.finetuning.run import Prepared
from twilbert.finetuning.train import Evaluation, Outcome
from twilbert.recipe.finetuning import FinetuneRecipe
from twilbert.recipe.search_space import Drawn
from twilbert.tasks import metrics


@dataclass(frozen=True)
class Study:
    """One task with one model."""

    name: str
    model: str
    """As it is told: a run's or folder's name."""
    random: bool
    """From random weights of the model's sizes."""
    prepared: Prepared
    recipe: FinetuneRecipe
    """Without what is drawn."""
    plans: list[TrialPlan]


def number(value: float) -> float | None:
    """JSON knows no nan: None."""
    return None if math.isnan(value) else value


_STARTED, _EVALUATIONS, _ENDED = "started.json", "evaluations.json", "ended.json"
Status = Literal["finished", "stopped", "failed", "open"]
_Shape = TypeVar("_Shape")


@dataclass(frozen=True)
class TrialPlan:
    """A trial before it starts."""

    study: str
    task: str
    """The task's name."""
    number: int
    metric: str
    folder: str
    drawn: Drawn
    recipe: FinetuneRecipe

    @property
    def key(self) -> str:
        """study/number: its name wherever it is told."""
        return f"{self.study}/{self.number:03d}"


@dataclass(frozen=True)
class _Started:
    """started.json."""

    starts: int


@dataclass(frozen=True)
class _Evaluations:
    """evaluations.json; 0.2.0 wrote the list alone."""

    evaluations: list[Evaluation]


@dataclass(frozen=True)
class _Ended:
    """ended.json."""

    status: Status
    error: str | None


@dataclass(frozen=True)
class TrialState:
    """What is known of a trial."""

    status: Status
    starts: int
    evaluations: list[Evaluation]
    error: str | None = None

    def best(self, metric: str) -> Evaluation | None:
        """The best look at dev; the first of equals, as training keeps it."""
        found: Evaluation | None = None
        for seen in self.evaluations:
            if metrics.better(metric, seen.score, None if found is None else found.score):
                found = seen
        return found


def read(folder: str) -> TrialState:
    """A trial's state; open, with nothing, before it was started. TwilbertError where one of its files is damaged."""
    names = storage.list_dir(folder)

    def held(name: str, shape: type[_Shape], nothing: _Shape) -> _Shape:
        remedy = f"delete {folder} to train that trial again"
        return checksums.read_json(storage.join(folder, name), shape, remedy) if name in names else nothing

    started, ended = held(_STARTED, _Started, _Started(0)), held(_ENDED, _Ended, _Ended("open", None))
    seen = held(_EVALUATIONS, _Evaluations, _Evaluations([]))
    return TrialState(ended.status, started.starts, seen.evaluations, ended.error)


def start(folder: str) -> None:
    """Count a start and forget what an earlier one saw: a training begins at its beginning."""
    starts = read(folder).starts + 1
    checksums.write_json(storage.join(folder, _STARTED), asdict(_Started(starts)))
    write_evaluations(folder, [])
    storage.delete(storage.join(folder, resume.WEIGHTS))


def write_evaluations(folder: str, evaluations: list[Evaluation]) -> None:
    """All looks at dev so far."""
    checksums.write_json(storage.join(folder, _EVALUATIONS), asdict(_Evaluations(evaluations)))


def write_best(folder: str, probabilities: np.ndarray, state: dict[str, Tensor]) -> None:
    """Weights of the best evaluation so far."""
    resume.write_weights(storage.join(folder, resume.WEIGHTS), probabilities, state)


def end(folder: str, status: Status, error: str | None = None) -> None:
    """The trial is over."""
    checksums.write_json(storage.join(folder, _ENDED), asdict(_Ended(status, error)))


def outcome(plan: TrialPlan) -> Outcome:
    """What an ended trial came to, weights too."""
    state = read(plan.folder)
    best = state.best(plan.metric)
    assert best is not None
    probabilities, weights = resume.read_weights(storage.join(plan.folder, resume.WEIGHTS))
    early = state.evaluations[-1].epoch < plan.recipe.training.epochs
    return Outcome(plan.recipe.training.seed, best, state.evaluations, probabilities, weights, early)


def best_trial(plans: list[TrialPlan]) -> TrialPlan | None:
    """The ended trial of a study with the best dev score; the first of equals; None where none saw dev."""
    chosen: tuple[TrialPlan, float] | None = None
    for plan in plans:
        state = read(plan.folder)
        seen = state.best(plan.metric)
        if seen is None or state.status in ("open", "failed"):
            continue
        if metrics.better(plan.metric, seen.score, None if chosen is None else chosen[1]):
            chosen = (plan, seen.score)
    return None if chosen is None else chosen[0]


def drop_weights(plans: list[TrialPlan]) -> None:
    """Remove the weights of a study's ended trials but the best."""
    keep = best_trial(plans)
    for plan in plans:
        if plan is not keep and read(plan.folder).status != "open":
            storage.delete(storage.join(plan.folder, resume.WEIGHTS))


def reopen_damaged(plans: list[TrialPlan]) -> bool:
    """Whether the weights of a study's best trial are lost or damaged; it is open then, to be trained again."""
    best = best_trial(plans)
    if best is None:
        return False
    try:
        resume.read_weights(storage.join(best.folder, resume.WEIGHTS))
    except TwilbertError as error:
        cli.say(f"{error}: trial {best.number} is trained again")
        storage.delete(storage.join(best.folder, _ENDED))
        return True
    return False
