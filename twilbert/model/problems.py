"""The kinds of classification problem, by the names that transformers gives them (`problem_type`)."""

from __future__ import annotations

from typing import Literal, get_args

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
PROBLEMS: tuple[Problem, ...] = get_args(Problem)
SINGLE, MULTI, REGRESSION = PROBLEMS
