"""The chosen model's predictions for a split, as files and pages show them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twilbert.finetuning.train import predictions
from twilbert.model.calibration import Calibration
from twilbert.model.problems import MULTI, REGRESSION
from twilbert.tasks.calibration import at_temperature
from twilbert.tasks.rows import Rows
from twilbert.tasks.task import Task


@dataclass(frozen=True)
class SplitPredictions:
    """A split's rows with the probabilities (or values) that the chosen model gives them."""

    name: str
    rows: Rows
    probabilities: np.ndarray
    """float32 [N, C], calibrated."""
    calibration: Calibration | None = None

    def calibrated(self, task: Task, calibration: Calibration | None) -> SplitPredictions:
        """Return these predictions, uncalibrated so far, as the model will give them."""
        if calibration is None:
            return self
        scaled = at_temperature(self.probabilities, task.problem, calibration.temperature).astype(np.float32)
        return replace(self, probabilities=scaled, calibration=calibration)

    def predicted(self, task: Task) -> np.ndarray:
        """Return the predictions as `metrics` takes them."""
        return predictions(task, self.probabilities, self.calibration)

    def truths(self, task: Task) -> np.ndarray:
        """Return the labels, which there must be, as `metrics` takes them."""
        assert self.rows.labels is not None
        return self.rows.labels.astype(np.int64) if task.problem == MULTI else self.rows.labels


def row_record(task: Task, split: SplitPredictions, i: int) -> dict[str, Any]:
    """Return row i: id, texts, truth where known, prediction, probabilities."""
    rows, scores = split.rows, split.probabilities[i]
    record: dict[str, Any] = {"id": rows.ids[i], "text": rows.texts[i]}
    if rows.texts_b is not None:
        record["text_b"] = rows.texts_b[i]
    if rows.labels is not None:
        record["truth"] = _named(task, split.truths(task)[i])
    record["predicted"] = _named(task, split.predicted(task)[i])
    if task.problem != REGRESSION:
        record["probabilities"] = {label: round(float(p), 6) for label, p in zip(task.labels, scores, strict=True)}
    return record


def _named(task: Task, value: Any) -> Any:
    if task.problem == REGRESSION:
        return float(value)
    if task.problem == MULTI:
        return [label for label, flag in zip(task.labels, value, strict=True) if flag]
    return task.labels[int(value)]


def worst_errors(task: Task, split: SplitPredictions) -> list[int]:
    """Return the numbers of rows with a wrong prediction, the most confident first (regression: the farthest off)."""
    truths, predicted, scores = split.truths(task), split.predicted(task), split.probabilities
    if task.problem == REGRESSION:
        error = np.abs(truths - predicted)
        wrong = error > 0
    elif task.problem == MULTI:
        error = np.abs(truths - scores).max(1)
        wrong = (truths != predicted).any(1)
    else:
        error = 1 - scores[np.arange(len(truths)), truths]
        wrong = truths != predicted
    return [int(i) for i in np.argsort(-error, kind="stable") if wrong[i]]
