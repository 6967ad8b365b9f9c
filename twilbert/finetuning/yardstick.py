"""The yardstick of every fine-tuning: TF-IDF of words and characters with a linear model, and the majority class.

Trained on the same rows and cleaning as the encoder, tuned on dev, in seconds on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC

from twilbert.data.cleaning import named
from twilbert.model.problems import MULTI, REGRESSION
from twilbert.tasks import metrics
from twilbert.tasks.rows import Rows
from twilbert.tasks.splits import cleaned_texts
from twilbert.tasks.task import Task

LINEAR, MAJORITY = "TF-IDF + linear model", "majority class"
_STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)  # inverse regularisation
_FEATURES = 300_000  # most frequent word and character n-grams of each kind


@dataclass(frozen=True)
class Yardstick:
    """A trained baseline: its settings, its dev score, and a function from rows to predictions as metrics take them."""

    name: str
    settings: str
    dev: float
    seconds: float
    predict: Callable[[Rows], np.ndarray]


def yardsticks(task: Task, train: Rows, dev: Rows, text: Mapping[str, Any]) -> list[Yardstick]:
    """Return the linear model that is best on dev, and for labels the majority class; `text`: how it is cleaned."""
    found = [_linear(task, train, dev, text)]
    return found if task.problem == REGRESSION else [*found, _majority(task, train, dev)]


class _Features:
    """TF-IDF of word 1- and 2-grams and character 2- to 5-grams within words, of each text."""

    def __init__(self, text: Mapping[str, Any]) -> None:
        self._text = text
        self._vectorizers: list[TfidfVectorizer] = []

    def fit(self, rows: Rows) -> Any:
        for _ in self._sides(rows):
            words = TfidfVectorizer(
                token_pattern=r"(?u)\S+", ngram_range=(1, 2), sublinear_tf=True, max_features=_FEATURES
            )
            characters = TfidfVectorizer(
                analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, max_features=_FEATURES
            )
            self._vectorizers += [words, characters]
        return self._stacked(rows, "fit_transform")

    def __call__(self, rows: Rows) -> Any:
        return self._stacked(rows, "transform")

    def _stacked(self, rows: Rows, method: str) -> Any:
        sides = [side for side in self._sides(rows) for _ in range(2)]
        parts = [getattr(each, method)(side) for each, side in zip(self._vectorizers, sides, strict=True)]
        return sparse.hstack(parts, format="csr")

    def _sides(self, rows: Rows) -> list[list[str]]:
        return [
            list(side)
            for side in zip(*cleaned_texts(rows, named(self._text["cleaning"]), self._text["remove_rt"]), strict=True)
        ]


def _linear(task: Task, train: Rows, dev: Rows, text: Mapping[str, Any]) -> Yardstick:
    began = time.monotonic()
    features = _Features(text)
    x_train, x_dev = features.fit(train), features(dev)
    truths, dev_truths = _labels(task, train), _labels(task, dev)
    best: tuple[float, str, Any] | None = None
    for settings, model in _candidates(task):
        model.fit(x_train, truths)
        score = _score(task, dev_truths, model.predict(x_dev))
        if metrics.better(task.metric, score, None if best is None else best[0]):
            best = score, settings, model
    assert best is not None
    chosen: Any = best[2]
    return Yardstick(
        LINEAR, best[1], best[0], time.monotonic() - began, lambda rows: np.asarray(chosen.predict(features(rows)))
    )


def _candidates(task: Task) -> Iterator[tuple[str, Any]]:
    """(settings as text, untrained model) of everything that is tried on dev."""
    for strength in _STRENGTHS:
        if task.problem == REGRESSION:
            yield f"ridge regression, strength {strength:g}", Ridge(alpha=1 / strength)
            continue
        for weight in (None, "balanced"):
            suffix = f", C={strength:g}{', balanced classes' if weight else ''}"
            for name, model in (
                ("linear SVM", LinearSVC(C=strength, class_weight=weight)),
                ("logistic regression", LogisticRegression(C=strength, class_weight=weight, solver="liblinear")),
            ):
                yield name + suffix, OneVsRestClassifier(model)


def _majority(task: Task, train: Rows, dev: Rows) -> Yardstick:
    truths, nothing = _labels(task, train), np.zeros((len(train), 1))
    if task.problem == MULTI:
        flags = (truths.mean(0) >= 0.5).astype(np.int64)

        def predict(rows: Rows) -> np.ndarray:
            return np.tile(flags, (len(rows), 1))
    else:
        model = DummyClassifier().fit(nothing, truths)

        def predict(rows: Rows) -> np.ndarray:
            return np.full(len(rows), model.predict(nothing[:1])[0])

    return Yardstick(MAJORITY, "", _score(task, _labels(task, dev), predict(dev)), 0.0, predict)


def _labels(task: Task, rows: Rows) -> np.ndarray:
    assert rows.labels is not None
    return rows.labels.astype(np.int64) if task.problem == MULTI else rows.labels


def _score(task: Task, truths: np.ndarray, predictions: np.ndarray | Sequence[float]) -> float:
    predicted = np.asarray(predictions)
    return metrics.score(truths, predicted, task.metric, average=task.averaging, labels=task.metric_labels)
