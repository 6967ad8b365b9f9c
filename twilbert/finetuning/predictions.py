"""What the chosen model says of a split's rows, as it is written and shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from twilbert.finetuning.train import predictions
from twilbert.model.problems import MULTI, REGRESSION
from twilbert.tasks.rows import Rows
from twilbert.tasks.task import Task


@dataclass(frozen=True)
class Judged:
    """Rows of a split with what the chosen model says of them: probabilities (or values), float32 [N, C]."""

    name: str
    rows: Rows
    probabilities: np.ndarray

    def predictions(self, task: Task) -> np.ndarray:
        """As `metrics` takes them."""
        return predictions(task.problem, self.probabilities)

    def truths(self, task: Task) -> np.ndarray:
        """As `metrics` takes them; only where there are labels."""
        assert self.rows.labels is not None
        return self.rows.labels.astype(np.int64) if task.problem == MULTI else self.rows.labels


def row_record(task: Task, judged: Judged, i: int) -> dict[str, Any]:
    """One row: id, texts, truth where known, prediction, probabilities."""
    rows, scores = judged.rows, judged.probabilities[i]
    record: dict[str, Any] = {"id": rows.ids[i], "text": rows.texts[i]}
    if rows.texts_b is not None:
        record["text_b"] = rows.texts_b[i]
    said = judged.predictions(task)[i]
    if rows.labels is not None:
        record["truth"] = _named(task, judged.truths(task)[i])
    record["predicted"] = _named(task, said)
    if task.problem != REGRESSION:
        record["probabilities"] = {label: round(float(p), 6) for label, p in zip(task.labels, scores, strict=True)}
    return record


def _named(task: Task, value: Any) -> Any:
    if task.problem == REGRESSION:
        return float(value)
    if task.problem == MULTI:
        return [label for label, flag in zip(task.labels, value, strict=True) if flag]
    return task.labels[int(value)]


def worst_errors(task: Task, judged: Judged) -> list[int]:
    """Rows that are wrong, those first that the model was surest of (regression: the farthest off)."""
    truths, said, scores = judged.truths(task), judged.predictions(task), judged.probabilities
    if task.problem == REGRESSION:
        badness = np.abs(truths - said)
        wrong = badness > 0
    elif task.problem == MULTI:
        badness = np.abs(truths - scores).max(1)
        wrong = (truths != said).any(1)
    else:
        badness = 1 - scores[np.arange(len(truths)), truths]
        wrong = truths != said
    order = np.argsort(-badness, kind="stable")
    return [int(i) for i in order if wrong[i]]
