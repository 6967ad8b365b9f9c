"""The records of trials, written while they run, from which an interrupted sweep resumes.

TRIAL/  started.json       how many times it was started
        evaluations.json   all dev evaluations since its last start
        best.safetensors   weights at the best of them, and dev's probabilities
        ended.json         finished, stopped (by the scheduler) or failed, and why; missing: the trial is open
Weights of ended trials that are not the best of their study are removed. Every file holds its own SHA-256.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, TypeVar

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
    """The run's or folder's name."""
    random: bool
    """Trained from random weights, in the model's sizes."""
    prepared: Prepared
    plans: list[TrialPlan]


_STARTED, _EVALUATIONS, _ENDED = "started.json", "evaluations.json", "ended.json"
Status = Literal["finished", "stopped", "failed", "open"]
_Shape = TypeVar("_Shape")


@dataclass(frozen=True)
class TrialPlan:
    """The settings of a trial."""

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
        """study/number."""
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
    """The state of a trial, from its records."""

    status: Status
    starts: int
    evaluations: list[Evaluation]
    error: str | None = None

    def best(self, metric: str) -> Evaluation | None:
        """Return the best evaluation; the first of equals, as in training."""
        best: Evaluation | None = None
        for evaluation in self.evaluations:
            if metrics.better(metric, evaluation.score, None if best is None else best.score):
                best = evaluation
        return best


def read(folder: str) -> TrialState:
    """Return a trial's state: open before it was started. TwilbertError where one of its files is damaged."""
    names = storage.list_dir(folder)

    def record(name: str, shape: type[_Shape], default: _Shape) -> _Shape:
        remedy = f"delete {folder} to train that trial again"
        return checksums.read_json(storage.join(folder, name), shape, remedy) if name in names else default

    started, ended = record(_STARTED, _Started, _Started(0)), record(_ENDED, _Ended, _Ended("open", None))
    evaluations = record(_EVALUATIONS, _Evaluations, _Evaluations([])).evaluations
    return TrialState(ended.status, started.starts, evaluations, ended.error)


def start(folder: str) -> None:
    """Count a start and remove an earlier one's evaluations and weights: trials are trained from the beginning."""
    starts = read(folder).starts + 1
    checksums.write_json(storage.join(folder, _STARTED), asdict(_Started(starts)))
    write_evaluations(folder, [])
    storage.delete(storage.join(folder, resume.WEIGHTS))


def write_evaluations(folder: str, evaluations: list[Evaluation]) -> None:
    """Write all evaluations so far."""
    checksums.write_json(storage.join(folder, _EVALUATIONS), asdict(_Evaluations(evaluations)))


def end(folder: str, status: Status, error: str | None = None) -> None:
    """Write how the trial ended."""
    checksums.write_json(storage.join(folder, _ENDED), asdict(_Ended(status, error)))


def outcome(plan: TrialPlan) -> Outcome:
    """Return the result of an ended trial, with its weights."""
    state = read(plan.folder)
    best = state.best(plan.metric)
    assert best is not None
    probabilities, weights = resume.read_weights(storage.join(plan.folder, resume.WEIGHTS))
    early = state.evaluations[-1].epoch < plan.recipe.training.epochs
    return Outcome(plan.recipe.training.seed, best, state.evaluations, probabilities, weights, early)


def best_trial(plans: list[TrialPlan]) -> TrialPlan | None:
    """Return the ended trial of a study with the best dev score, the first of equals; None where none was evaluated."""
    best: TrialPlan | None = None
    best_score: float | None = None
    for plan in plans:
        state = read(plan.folder)
        evaluation = state.best(plan.metric)
        if evaluation is None or state.status in ("open", "failed"):
            continue
        if metrics.better(plan.metric, evaluation.score, best_score):
            best, best_score = plan, evaluation.score
    return best


def drop_weights(plans: list[TrialPlan]) -> None:
    """Remove the weights of a study's ended trials but the best."""
    keep = best_trial(plans)
    for plan in plans:
        if plan is not keep and read(plan.folder).status != "open":
            storage.delete(storage.join(plan.folder, resume.WEIGHTS))


def reopen_damaged(plans: list[TrialPlan]) -> bool:
    """Return whether the weights of a study's best trial are lost or damaged; that trial is open again then."""
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
