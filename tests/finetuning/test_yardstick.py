"""The yardstick: a linear model learns what words decide, the majority class what is most frequent."""

from __future__ import annotations

import numpy as np
import pytest

from tests.make_finetuning import write_marked_task
from twilbert.data.cleaning import TWILBERT
from twilbert.finetuning.yardstick import LINEAR, MAJORITY, yardsticks
from twilbert.model.problems import MULTI, REGRESSION, SINGLE
from twilbert.tasks.rows import read_split
from twilbert.tasks.task import load_task


@pytest.mark.parametrize("problem", [SINGLE, MULTI, REGRESSION])
@pytest.mark.parametrize("two", [False, True])
def test_a_linear_model_learns_a_task_that_single_words_decide(tmp_path, problem, two):
    task = load_task(write_marked_task(tmp_path, problem=problem, two=two))
    train, dev = read_split(task, "train"), read_split(task, "dev")
    linear, *others = yardsticks(task, train, dev, {"cleaning": TWILBERT.name, "remove_rt": False})
    assert linear.name == LINEAR and [one.name for one in others] == ([] if problem == REGRESSION else [MAJORITY])
    assert linear.dev < 0.35 if problem == REGRESSION else linear.dev > 0.95, linear
    got, truths = linear.predict(dev), dev.labels
    assert truths is not None and got.shape == truths.shape
    for one in others:
        assert one.dev < 0.7
        assert np.array_equal(one.predict(dev)[0], one.predict(dev)[-1]), "the same for every row"
