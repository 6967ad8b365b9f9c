"""Rows of a task: texts, labels and ids as they stand in its files.

Texts are not cleaned here: who feeds a model does that, with the task's `remove_rt`. The test file is opened by
`read_test` alone, which belongs to the final scoring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from twilbert.errors import UsageError
from twilbert.tasks.labels import parse_labels
from twilbert.tasks.splits import drawn
from twilbert.tasks.tables import SplitName, read_table
from twilbert.tasks.task import Task


@dataclass(frozen=True)
class Rows:
    """N rows of a split. `labels`: label numbers int64 [N], flags float32 [N, labels] of a multi-label task, scores
    float32 [N] of a regression, None where the file has none. `columns`: every column of the file, as text. `lines`:
    the line (of a workbook or Parquet the row) on which each begins.
    """

    texts: list[str]
    texts_b: list[str] | None
    labels: np.ndarray | None
    ids: list[str]
    columns: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, at: np.ndarray) -> Rows:
        """The rows numbered `at`, in that order."""
        return Rows(
            [self.texts[i] for i in at],
            None if self.texts_b is None else [self.texts_b[i] for i in at],
            None if self.labels is None else self.labels[at],
            [self.ids[i] for i in at],
            {name: [cells[i] for i in at] for name, cells in self.columns.items()},
            [self.lines[i] for i in at],
        )


def read_split(task: Task, split: Literal["train", "dev"]) -> Rows:
    """Training or development rows; never opens the test file. UsageError that lists the faults of the file."""
    if split not in ("train", "dev"):
        raise UsageError(f"split {split!r}: expected train or dev; the test file is read by read_test alone")
    if task.split is None:
        return _rows(task, split)
    rows = _rows(task, "train")
    is_dev = drawn(task, rows)
    return rows.take(np.flatnonzero(is_dev if split == "dev" else ~is_dev))


def read_test(task: Task) -> Rows | None:
    """Test rows, for the final scoring alone; labels None where the file has none; None where the task has no test."""
    return None if task.files.test is None else _rows(task, "test")


def _rows(task: Task, split: SplitName) -> Rows:
    table = read_table(task, split)
    labels, faults = parse_labels(task, split, table)
    if faults:
        raise UsageError("\n".join(faults))
    columns, missing = task.columns, task.missing_text
    texts, texts_b = (
        None if name is None else ["" if cell == missing else cell for cell in table.columns[name]]
        for name in (columns.text, columns.text_b)
    )
    assert texts is not None
    ids = table.columns[columns.id] if columns.id else [str(i + 1) for i in range(len(texts))]
    return Rows(texts, texts_b, labels, ids, table.columns, table.lines)
