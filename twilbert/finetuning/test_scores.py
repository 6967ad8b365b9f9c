"""The final scoring: the one place where test rows are read, once, after every training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from twilbert.data.cleaning import named
from twilbert.devices import find_device
from twilbert.finetuning.data import TaskData
from twilbert.finetuning.encoders import Base
from twilbert.finetuning.predictions import SplitPredictions
from twilbert.finetuning.train import Outcome, dev_score, logits, new_network, predictions, resolve_precision
from twilbert.finetuning.yardstick import Yardstick, yardsticks
from twilbert.model.calibration import Calibration
from twilbert.model.classifier import probabilities
from twilbert.model.problems import REGRESSION
from twilbert.recipe.finetuning import FinetuneRecipe
from twilbert.tasks import calibration as calibrating
from twilbert.tasks import metrics
from twilbert.tasks.comparison import paired_bootstrap
from twilbert.tasks.rows import Rows, read_split, read_test
from twilbert.tasks.splits import cleaned_texts
from twilbert.tasks.task import Task


@dataclass(frozen=True)
class FinalScores:
    """The scores of a fine-tuning, its chosen training, and that one's predictions."""

    scores: dict[str, Any]
    """Entries of results.json."""
    chosen: Outcome
    splits: list[SplitPredictions]
    """dev, and test where there is one."""
    calibration: Calibration | None


def best_by_dev(task: Task, outcomes: Sequence[Outcome]) -> Outcome:
    """Return the training with the best dev score; the first of equals."""
    best = outcomes[0]
    for outcome in outcomes[1:]:
        if metrics.better(task.metric, outcome.best.score, best.best.score):
            best = outcome
    return best


def score(base: Base, task: Task, data: TaskData, recipe: FinetuneRecipe, outcomes: Sequence[Outcome]) -> FinalScores:
    """Score all trainings; reads the test rows, so nothing may be trained or chosen after it."""
    chosen = best_by_dev(task, outcomes)
    dev = SplitPredictions("dev", read_split(task, "dev"), chosen.probabilities)
    calibration = fit_calibration(task, dev) if recipe.calibrate else None
    splits = [dev.calibrated(task, calibration)]
    scores: dict[str, Any] = {
        "metric": task.metric,
        "average": task.averaging,
        "class_metric": task.class_metric,
        "dev": _spread([outcome.best.score for outcome in outcomes]) | _details(task, splits[0]),
        "seeds": [_of_seed(outcome) for outcome in outcomes],
        "chosen_seed": chosen.seed,
    }
    train, compared, of_seeds = read_split(task, "train"), splits[0], [outcome.probabilities for outcome in outcomes]
    test = read_test(task)
    if test is not None:
        every = _test_probabilities(base, task, data, recipe, outcomes, test)
        uncalibrated = SplitPredictions("test", test, every[outcomes.index(chosen)])
        splits.append(uncalibrated.calibrated(task, calibration))
        if test.labels is not None:
            scores["test"] = _test_scores(task, data, train, test, every, splits[1])
            for entry, probabilities_NC in zip(scores["seeds"], every, strict=True):
                entry["test"] = number(dev_score(task, test.labels, probabilities_NC))
            compared, of_seeds = splits[1], every
    if calibration is not None:
        pairs = [(dev, splits[0])] if compared is splits[0] else [(dev, splits[0]), (uncalibrated, splits[1])]
        scores["calibration"] = calibration.to_dict() | {
            "effect": {before.name: _effect(task, before, after) for before, after in pairs}
        }
    scores["yardsticks"] = [
        _against(task, one, compared, of_seeds) for one in yardsticks(task, train, splits[0].rows, data.text)
    ]
    return FinalScores(scores, chosen, splits, calibration)


def _test_probabilities(
    base: Base, task: Task, data: TaskData, recipe: FinetuneRecipe, outcomes: Sequence[Outcome], test: Rows
) -> list[np.ndarray]:
    device = find_device(recipe.training.device)
    bf16 = resolve_precision(recipe.training, device) == "bf16"
    sequences = base.encode(test.texts, test.texts_b, data.text)
    every = []
    for outcome in outcomes:
        network = new_network(base, recipe, task, outcome.seed)
        network.load_state_dict(outcome.state)
        network.to(device, torch.bfloat16 if bf16 else torch.float32)
        every.append(probabilities(task.problem, logits(network, sequences, device)).numpy())
    return every


def _test_scores(
    task: Task, data: TaskData, train: Rows, test: Rows, every: list[np.ndarray], chosen: SplitPredictions
) -> dict[str, Any]:
    """Mean and sd over seeds, the chosen model's interval, and all again without rows whose text is in train."""
    assert test.labels is not None
    scores = _spread([dev_score(task, test.labels, one) for one in every]) | _details(task, chosen)
    train_texts = set(_cleaned(data, train))
    is_new = np.array([texts not in train_texts for texts in _cleaned(data, test)])
    scores["rows_also_in_train"] = int((~is_new).sum())
    if is_new.any() and not is_new.all():
        scores["without_rows_in_train"] = _spread([dev_score(task, test.labels[is_new], one[is_new]) for one in every])
    return scores


def fit_calibration(task: Task, dev: SplitPredictions) -> Calibration | None:
    """Return how the chosen training's probabilities are to be read, by its dev rows; None for a regression."""
    if task.problem == REGRESSION:
        return None
    return calibrating.fit(
        dev.probabilities, dev.truths(task), task.problem, task.metric, average=task.averaging,
        labels=task.metric_labels,
    )  # fmt: skip


def _metric(task: Task, truths: np.ndarray, predicted: np.ndarray) -> float:
    return metrics.score(truths, predicted, task.metric, average=task.averaging, labels=task.metric_labels)


def _effect(task: Task, before: SplitPredictions, after: SplitPredictions) -> dict[str, Any]:
    """The chosen model on a split before and after calibration: metric, calibration error, reliability."""
    effect: dict[str, Any] = {}
    for when, split in (("before", before), ("after", after)):
        truths, predicted = split.truths(task), split.predicted(task)
        score = _metric(task, truths, predicted)
        bins = calibrating.reliability(split.probabilities, truths, task.problem)
        effect[when] = {
            "score": number(score),
            "expected_calibration_error": bins.expected_error,
            "reliability": np.stack([bins.confidence, bins.accuracy, bins.rows], 1).round(6).tolist(),
        }
    return effect


def _cleaned(data: TaskData, rows: Rows) -> list[tuple[str, ...]]:
    return cleaned_texts(rows, named(data.text["cleaning"]), data.text["remove_rt"])


def _against(task: Task, one: Yardstick, split: SplitPredictions, of_seeds: Sequence[np.ndarray]) -> dict[str, Any]:
    """A yardstick's scores, and the trainings' comparison with it on test, or on dev where test has no labels."""
    predicted, truths = one.predict(split.rows), split.truths(task)
    score = _metric(task, truths, predicted)
    comparison = paired_bootstrap(
        truths, [predictions(task, each) for each in of_seeds], [predicted], task.metric,
        average=task.averaging, labels=task.metric_labels,
    )  # fmt: skip
    figures = {key: number(value) for key, value in asdict(comparison).items()}
    return {
        "name": one.name, "settings": one.settings, "seconds": round(one.seconds, 2), "dev": number(one.dev),
        "split": split.name, "score": number(score), **figures, "verdict": comparison.verdict(),
    }  # fmt: skip


def _details(task: Task, split: SplitPredictions) -> dict[str, Any]:
    """Scores of the chosen model: its metric with a bootstrap interval, all others, and those of each label."""
    truths, predicted, n_labels = split.truths(task), split.predicted(task), len(task.labels)
    interval = metrics.bootstrap(truths, predicted, task.metric, average=task.averaging, labels=task.metric_labels)
    scores: dict[str, Any] = {
        "rows": len(truths),
        "chosen": number(_metric(task, truths, predicted)),
        "interval": {key: number(value) for key, value in asdict(interval).items()} | {"level": 0.95},
        "all": {key: number(one) for key, one in metrics.report(truths, predicted, task.problem, n_labels).items()},
    }
    if task.problem != REGRESSION:
        per_label = metrics.per_label(truths, predicted, n_labels)
        scores["labels"] = {label: asdict(one) for label, one in zip(task.labels, per_label, strict=True)}
    return scores


@dataclass(frozen=True)
class Spread:
    """A score over seeds, in results.json."""

    mean: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class _Interval:
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Scores(Spread):
    """A split's scores in results.json: the entries that are read."""

    rows: int
    interval: _Interval
    rows_also_in_train: int = 0
    without_rows_in_train: Spread | None = None


@dataclass(frozen=True)
class AgainstYardstick:
    """The comparison with a yardstick in results.json: the entries that are read."""

    name: str
    split: str
    score: float | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: str


def _spread(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation (of a sample; None for one) over seeds."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": number(float(np.mean(values))), "sd": None if sd is None else number(sd), "n": len(values)}


def _of_seed(outcome: Outcome) -> dict[str, Any]:
    return {
        "seed": outcome.seed,
        "dev": number(outcome.best.score),
        "best_step": outcome.best.step,
        "best_epoch": round(outcome.best.epoch, 3),
        "stopped_early": outcome.stopped_early,
        "seconds": round(outcome.history[-1].seconds, 2),
        "skipped_steps": outcome.history[-1].skipped,
        "history": [{key: number(value) for key, value in asdict(one).items()} for one in outcome.history],
    }


def number(value: float) -> float | None:
    """Return the value for JSON, which has no nan: None."""
    return None if math.isnan(value) else value
