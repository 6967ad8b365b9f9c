"""The page of a fine-tuning: labels, texts, titles and settings of users stay texts, whatever the problem."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tests.report.parsing import shows_texts_as_they_are
from twilbert.finetuning import page
from twilbert.finetuning.predictions import SplitPredictions
from twilbert.model.problems import MULTI, REGRESSION, SINGLE
from twilbert.tasks.rows import Rows
from twilbert.tasks.task import Task


def of_run(problem: str, text: str, *, pairs: bool) -> str:
    """A page with `text` in every place that a user fills; both rows are predicted wrong."""
    labels = (text, f"not {text}") if problem != REGRESSION else (text,)
    task = cast(Task, SimpleNamespace(name=text, title=text, labels=labels, problem=problem, metric=text))
    truths = {SINGLE: np.array([0, 1]), MULTI: np.array([[1, 0], [1, 1]], np.float32), REGRESSION: np.array([0.0, 1.0])}
    scores = {SINGLE: [[0.2, 0.8], [0.9, 0.1]], MULTI: [[0.2, 0.8], [0.9, 0.1]], REGRESSION: [[0.5], [0.25]]}
    rows = Rows([text, text], [text, text] if pairs else None, truths[problem], ["1", "2"], {}, [2, 3])
    split = SplitPredictions("dev", rows, np.array(scores[problem], np.float32))
    one = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 1, "predicted": 1}
    results: dict[str, Any] = {
        "metric": text, "class_metric": [text], "average": None, "model": text, "device": text, "chosen_seed": 0,
        "dev": {
            "mean": 0.5, "sd": 0.1, "n": 2, "rows": 2, "interval": {"low": 0.25, "high": 0.75}, "all": {text: 0.5},
            "labels": dict.fromkeys(labels, one),
        },
        "seeds": [
            {"seed": 0, "seconds": 1.0, "history": [dict.fromkeys(("epoch", "score", "train_loss", "dev_loss"), 1.0)]}
        ],
        "recipe": {"task": text, "head": {"own": text, text: None}},
    }  # fmt: skip
    return page.of_run(task, results, [split])


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("problem", [SINGLE, MULTI, REGRESSION])
def test_texts_of_users_are_shown_as_they_are(problem, pairs):
    shows_texts_as_they_are(lambda text: of_run(problem, text, pairs=pairs), 15)


def test_a_page_has_its_parts_and_the_surest_errors_first():
    html = of_run(SINGLE, "t", pairs=True)
    for part in (
        "Learning curves",
        "dev: scores",
        "dev: labels",
        "dev: confusion",
        "2 of 2 rows are wrong",
        "head.own",
    ):
        assert part in html
    assert html.index('<td>t</td><td class="number">0.90</td>') < html.index('<td class="number">0.80</td>')
    assert "dev: confusion" not in of_run(REGRESSION, "t", pairs=False)
