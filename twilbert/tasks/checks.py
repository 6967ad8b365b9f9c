"""The one validator of a task's data: it may look at the test file when a run starts, and returns faults and counts.

Nothing of the test rows leaves this file but how many there are and what is wrong with them, so that no trial can learn
from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from twilbert.errors import UsageError
from twilbert.model.problems import MULTI, REGRESSION
from twilbert.tasks.rows import Rows, read_split, read_test
from twilbert.tasks.splits import conflicts
from twilbert.tasks.tables import is_file, missing_message
from twilbert.tasks.task import Task

LONG = 10_000  # characters; such a text is kept, and cut in tokens


@dataclass
class Findings:
    """faults: why nothing can be trained. notices: kept, and worth knowing. counts: split → what → number."""

    faults: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    test_labelled: bool | None = None
    """Whether test has labels; None where there is no test."""


def validate(task: Task) -> Findings:
    """Faults, notices and counts of all of a task's files.

    counts: `rows`, `empty` texts, texts of 10,000 characters or more (`long`), repeated ids; for train and dev also
    `label X`. A label that only test has, or that no row of train has, is a notice: it counts against the model.
    """
    found = Findings()
    paths = [path for path in map(task.path, ("train", "dev", "test")) if path is not None]
    if not all(map(is_file, paths)):
        found.faults.append(missing_message(task))
        return found
    read: dict[str, Rows] = {}
    for split, reader in (
        ("train", lambda: read_split(task, "train")),
        ("dev", lambda: read_split(task, "dev")),
        ("test", lambda: read_test(task)),
    ):
        try:
            rows = reader()
        except UsageError as error:
            if str(error) not in found.faults:  # dev drawn from train has train's faults
                found.faults.append(str(error))
            continue
        if rows is not None:
            read[split] = rows
            found.counts[split] = _counts(task, split, rows)
    if "test" in read:
        found.test_labelled = read["test"].labels is not None
    _judge(task, read, found)
    return found


def require(task: Task) -> Findings:
    """What `validate` found; UsageError with every fault where there is one."""
    found = validate(task)
    if found.faults:
        count = "1 fault" if len(found.faults) == 1 else f"{len(found.faults)} faults"
        raise UsageError(f"task {task.name}: {count}\n" + "\n".join(f"  {fault}" for fault in found.faults))
    return found


def _counts(task: Task, split: str, rows: Rows) -> dict[str, int]:
    both = [rows.texts, rows.texts_b or []]
    empty = sum(not text.strip() for text in rows.texts)
    if rows.texts_b is not None:
        pairs = zip(rows.texts, rows.texts_b, strict=True)
        empty = sum(not a.strip() and not b.strip() for a, b in pairs)
    counts = {
        "rows": len(rows),
        "empty": empty,
        "long": sum(len(text) >= LONG for texts in both for text in texts),
        "repeated ids": len(rows) - len(set(rows.ids)),
    }
    if split != "test" and task.problem != REGRESSION:
        for label, n in zip(task.labels, _label_counts(task, rows), strict=True):
            counts[f"label {label}"] = int(n)
    return counts


def _label_counts(task: Task, rows: Rows) -> np.ndarray:
    """Rows of each label [labels]."""
    assert rows.labels is not None
    if task.problem == MULTI:
        return rows.labels.sum(axis=0)
    return np.bincount(rows.labels, minlength=len(task.labels))


def _judge(task: Task, read: dict[str, Rows], found: Findings) -> None:
    """Faults and notices that take the labels, or more than one split, to see."""
    for split, rows in read.items():
        counts = found.counts[split]
        for what, kept in (("empty", "the text is empty"), ("long", f"the text has {LONG:,} characters or more")):
            if counts[what]:
                found.notices.append(f"{split}: {counts[what]:,} rows kept where {kept}")
        if split == "dev" and task.split is not None and not len(rows):
            found.faults.append(f"{task.path('train')}: too few rows to draw a dev of {task.split.dev}; add rows")
    if notice := conflicts(task, {split: rows for split, rows in read.items() if split != "test"}):
        found.notices.append(notice)
    if found.test_labelled is False:
        found.notices.append("test has no labels: predictions will be written instead of a score")
    if task.problem == REGRESSION:
        for split in ("train", "dev"):
            scores = read[split].labels if split in read else None
            if scores is not None and np.ptp(scores) == 0:
                path = task.path(split) or task.path("train")
                found.faults.append(f"{path}: every score is the same; nothing to learn or compare: add others")
        return
    seen = {split: _label_counts(task, rows) for split, rows in read.items() if rows.labels is not None}
    if "train" not in seen:
        return
    _judge_variety(task, seen, len(read["train"]), found)
    never = [label for label, n in zip(task.labels, seen["train"], strict=True) if not n]
    only_test = [label for label in never if "test" in seen and seen["test"][task.labels.index(label)]]
    if only_test:
        found.notices.append(f"label {', '.join(only_test)} stands in test and not in train: its rows count as errors")
    rest = [label for label in never if label not in only_test]
    if rest:
        found.notices.append(f"label {', '.join(rest)} has no row in train: no model can learn it")


def _judge_variety(task: Task, seen: dict[str, np.ndarray], rows: int, found: Findings) -> None:
    """One class only: nothing to learn from in train, little to choose by in dev."""
    train = seen["train"]
    constant = np.all((train == 0) | (train == rows)) if task.problem == MULTI else (train > 0).sum() < 2
    if constant:
        held = ", ".join(label for label, n in zip(task.labels, train, strict=True) if n) or "no label"
        found.faults.append(
            f"{task.path('train')}: every row has the same label ({held}); nothing to learn: add others"
        )
    elif "dev" in seen and task.problem != MULTI and (seen["dev"] > 0).sum() < 2:
        found.notices.append("dev has one label only: its score says little about which model is better")
