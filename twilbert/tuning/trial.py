"""One trial, in a process of its own; it is given the task without its test file, and cannot read test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twilbert.errors import TwilbertError
from twilbert.finetuning.data import TaskData
from twilbert.finetuning.encoders import Base
from twilbert.finetuning.train import Evaluation, Outcome, train
from twilbert.recipe.finetuning import FinetuneRecipe
from twilbert.tasks import metrics
from twilbert.tasks.task import Task
from twilbert.tuning import records
from twilbert.tuning.records import TrialPlan

WORST = -1e9  # what is told to the scheduler of a score that is no number


@dataclass(frozen=True)
class Shared:
    """What all trials of a study read, once a node: references to objects in Ray's shared memory."""

    task: Task
    """Without its test file."""
    base: Any
    data: Any

    def get(self) -> tuple[Base, TaskData]:
        """Arrays in shared memory, read-only."""
        import ray

        base, data = ray.get([self.base, self.data])
        return base, data


@dataclass(frozen=True)
class Place:
    """What a process of the sweep may use."""

    threads: int
    gpu: bool

    def take(self, recipe: FinetuneRecipe) -> FinetuneRecipe:
        """Set this process up; the recipe for its device. A GPU that was not given is not used."""
        torch.set_num_threads(self.threads)
        if self.gpu or recipe.training.device is not None:
            return recipe
        return recipe.model_copy(update={"training": recipe.training.model_copy(update={"device": "cpu"})})


def without_test(task: Task) -> Task:
    """The task as trials and search may know it."""
    return task.model_copy(update={"files": task.files.model_copy(update={"test": None}), "test_labelled": None})


def run_trial(
    config: Mapping[str, Any], plans: Mapping[str, TrialPlan], shared: Mapping[str, Shared], place: Place
) -> None:
    """Ray Tune's trainable: trains the trial that config names, and tells Tune of every look at dev."""
    from ray import tune

    plan = plans[config["trial"]]

    def tell(seen: Evaluation) -> None:
        tune.report({"score": oriented(plan.metric, seen.score), "epoch": seen.epoch, "evaluation": asdict(seen)})

    state = records.read(plan.folder)
    if state.status != "open":  # its process died between its end and Tune's hearing of it
        for seen in state.evaluations:
            tell(seen)
        return
    study, evaluations = shared[plan.study], []

    def heard(seen: Evaluation) -> None:
        evaluations.append(seen)
        records.write_evaluations(plan.folder, evaluations)
        tell(seen)

    def keep(_: Evaluation, probabilities: np.ndarray, weights: dict[str, Tensor]) -> None:
        records.write_best(plan.folder, probabilities, weights)

    records.start(plan.folder)
    base, data = study.get()
    recipe = place.take(plan.recipe)
    try:
        train(base, data, study.task, recipe, recipe.training.seed, heard, keep)
    except TwilbertError as error:  # the settings' fault: another start would end alike
        records.end(plan.folder, "failed", str(error))
        return
    records.end(plan.folder, "finished")


def train_seed(shared: Shared, plan: TrialPlan, seed: int, place: Place) -> Outcome:
    """The plan's settings trained with another seed."""
    base, data = shared.get()
    return train(base, data, shared.task, place.take(plan.recipe), seed, lambda _: None)


def oriented(metric: str, score: float) -> float:
    """The score as something to maximise."""
    if np.isnan(score):
        return WORST
    return -score if metric in metrics.LOWER_IS_BETTER else score
