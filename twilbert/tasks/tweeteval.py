"""TweetEval's layout: X_text.txt has a text a line, X_labels.txt a number a line, mapping.txt the numbers' names."""

from __future__ import annotations

import re

from twilbert import storage
from twilbert.data.tables import blocks, layout
from twilbert.data.tables.files import Source
from twilbert.errors import UsageError
from twilbert.tasks.task import Task

_TEXTS = re.compile(r"_text\.txt(?=\.gz$|\.zst$|$)")
_MAPPING = "mapping.txt"


def is_texts(path: str) -> bool:
    """Whether a file is named as the texts of a split."""
    return _TEXTS.search(path) is not None


def labels_path(path: str) -> str:
    """The file of the labels of a split's texts."""
    return _TEXTS.sub("_labels.txt", path)


def read(task: Task, path: str, *, is_test: bool) -> dict[str, list[str]]:
    """The columns of a split under the names that the task gives them; of a test without labels no label column.

    A label is the name in mapping.txt, or the number where the task's labels are numbers.
    """
    texts = _lines(path)
    columns = {task.columns.id: [str(i + 1) for i in range(len(texts))]} if task.columns.id else {}
    columns[task.columns.text] = texts
    labels = labels_path(path)
    if is_test and (task.test_labelled is False or (task.test_labelled is None and not storage.exists(labels))):
        return columns
    if not storage.exists(labels):
        raise UsageError(f"{path}: its labels are missing; expected {labels}, a label a line")
    numbers = _lines(labels)
    if len(numbers) != len(texts):
        raise UsageError(
            f"{labels}: {len(numbers):,} labels for the {len(texts):,} texts of {path}; both need a line for each"
        )
    names = _mapping(storage.join(path.rpartition("/")[0], _MAPPING))
    known = {number: _known([*listed[:1], number, *listed[1:]], task) for number, listed in names.items()}
    assert isinstance(task.columns.label, str)
    columns[task.columns.label] = [known.get(number.strip(), number) for number in numbers]
    return columns


def _known(names: list[str], task: Task) -> str:
    """The first of a label's names that the task has, else the first."""
    return next((name for name in names if name in task.labels), names[0])


def _mapping(path: str) -> dict[str, list[str]]:
    """Number → its names; the emoji task has two for each. Empty where there is no file."""
    lines = _lines(path) if storage.exists(path) else []
    rows = [line.split("\t") if "\t" in line else line.split(maxsplit=1) for line in lines if line.strip()]
    return {number.strip(): [name.strip() for name in names] for number, *names in rows}


def _lines(path: str) -> list[str]:
    file = layout.inspect(Source(path, path), (), "text")
    if file is None:
        raise UsageError(f"{path}: empty; expected lines of text")
    lines: list[str] = []
    for block in blocks.read(file):
        for row, fault in sorted(block.faults.items())[:1]:
            raise UsageError(f"{path}: line {len(lines) + row + 1}: {fault}; save the file as UTF-8")
        lines += block.column("text")
    return lines
