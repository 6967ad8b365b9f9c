"""One trial, in a worker process of Ray Tune; its task names no test file, so that it cannot read test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twilbert import storage
from twilbert.errors import TwilbertError
from twilbert.finetuning import resume
from twilbert.finetuning.data import TaskData
from twilbert.finetuning.encoders import Base
from twilbert.finetuning.train import Evaluation, Outcome, train
from twilbert.recipe.finetuning import FinetuneRecipe
from twilbert.tasks import metrics
from twilbert.tasks.task import Task
from twilbert.tuning import records
from twilbert.tuning.records import TrialPlan

_WORST = -1e9  # the scheduler's score for nan


@dataclass(frozen=True)
class Shared:
    """References to what all trials of a study read, in Ray's shared memory: one copy for each node."""

    task: Task
    """Without its test file."""
    base: Any
    data: Any

    def get(self) -> tuple[Base, TaskData]:
        """Return the objects; their arrays are read-only views of shared memory."""
        import ray

        base, data = ray.get([self.base, self.data])
        return base, data


@dataclass(frozen=True)
class Place:
    """The resources of a worker process."""

    threads: int
    gpu: bool

    def take(self, recipe: FinetuneRecipe) -> FinetuneRecipe:
        """Set this process's threads; return the recipe for its device: the CPU where it was given no GPU."""
        torch.set_num_threads(self.threads)
        if self.gpu or recipe.training.device is not None:
            return recipe
        return recipe.model_copy(update={"training": recipe.training.model_copy(update={"device": "cpu"})})


def without_test(task: Task) -> Task:
    """Return the task without its test file."""
    return task.model_copy(update={"files": task.files.model_copy(update={"test": None}), "test_labelled": None})


def run_trial(
    config: Mapping[str, Any], plans: Mapping[str, TrialPlan], shared: Mapping[str, Shared], place: Place
) -> None:
    """Train the trial that config names and report each dev evaluation: Ray Tune's trainable."""
    from ray import tune

    plan = plans[config["trial"]]

    def report(one: Evaluation) -> None:
        tune.report({"score": oriented(plan.metric, one.score), "epoch": one.epoch, "evaluation": asdict(one)})

    state = records.read(plan.folder)
    if state.status != "open":  # its process died after its end, before Tune knew of it
        for evaluation in state.evaluations:
            report(evaluation)
        return
    study, evaluations = shared[plan.study], []

    def on_evaluation(evaluation: Evaluation) -> None:
        evaluations.append(evaluation)
        records.write_evaluations(plan.folder, evaluations)
        report(evaluation)

    def on_best(_: Evaluation, probabilities: np.ndarray, weights: dict[str, Tensor]) -> None:
        resume.write_weights(storage.join(plan.folder, resume.WEIGHTS), probabilities, weights)

    records.start(plan.folder)
    base, data = study.get()
    recipe = place.take(plan.recipe)
    try:
        train(base, data, study.task, recipe, recipe.training.seed, on_evaluation, on_best)
    except TwilbertError as error:  # the settings' fault: another start would end alike
        records.end(plan.folder, "failed", str(error))
        return
    records.end(plan.folder, "finished")


def train_seed(shared: Shared, plan: TrialPlan, seed: int, place: Place) -> Outcome:
    """Train the trial's settings with another seed."""
    base, data = shared.get()
    return train(base, data, shared.task, place.take(plan.recipe), seed, lambda _: None)


def oriented(metric: str, score: float) -> float:
    """Return the score, negative where less is better: a number to maximise."""
    if np.isnan(score):
        return _WORST
    return -score if metric in metrics.LOWER_IS_BETTER else score
