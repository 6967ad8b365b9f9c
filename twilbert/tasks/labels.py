"""The labels of a task's rows, from the cells of its files; cells that are no labels are refused, with the remedy."""

from __future__ import annotations

import json

import numpy as np

from twilbert.model.problems import MULTI, REGRESSION
from twilbert.tasks.tables import SplitName, Table
from twilbert.tasks.task import Task

_SHOWN = 5  # wrong values named one by one
_MOST_LABELS = 50  # that a remedy lists
_PLACEHOLDERS = {"", "notinline", "unknown", "?", "-", "none", "null", "nan", "na", "n/a"}


def parse_labels(task: Task, split: SplitName, table: Table) -> tuple[np.ndarray | None, list[str]]:
    """(labels as in `Rows`, faults with their lines). None without a fault: this test file has no labels."""
    column = task.columns.label
    names = [column] if isinstance(column, str) else list(column)
    if split == "test" and (task.test_labelled is False or not set(names) <= set(table.columns)):
        return None, []
    cells = list(zip(*(table.columns[name] for name in names), strict=True))
    number = {label: i for i, label in enumerate(task.labels)}
    values, wrong = [], {}
    for line, cell in zip(table.lines, cells, strict=True):
        value = _label(task, cell, number)
        if value is None:
            wrong.setdefault(" ".join(cell), []).append(line)
        values.append(value)
    if wrong:
        return None, [f"{table.labels_in or task.path(split)}: {_label_fault(task, split, wrong, len(values))}"]
    if task.problem == MULTI or task.problem == REGRESSION:
        return np.array(values, dtype=np.float32), []
    return np.array(values, dtype=np.int64), []


def _label(task: Task, cells: tuple[str, ...], number: dict[str, int]) -> int | float | list[float] | None:
    """What a row's label cells mean, None where they mean nothing."""
    if task.problem == REGRESSION:
        try:
            value = float(cells[0])
        except ValueError:
            return None
        return value if np.isfinite(value) else None
    if task.problem != MULTI:
        return number.get(cells[0].strip())
    in_one = isinstance(task.columns.label, str)
    flags = cells[0].split(task.label_separator) if in_one else list(cells)
    if in_one and task.label_format == "names":
        held = {name.strip() for name in flags} - {""}
        return [float(label in held) for label in task.labels] if held <= number.keys() else None
    if len(flags) != len(number) or not {flag.strip() for flag in flags} <= {"0", "1"}:
        return None
    return [float(flag) for flag in flags]


def _label_fault(task: Task, split: SplitName, wrong: dict[str, list[int]], rows: int) -> str:
    if task.problem == REGRESSION:
        expected = "a number"
    elif task.problem == MULTI and (task.label_format == "flags" or not isinstance(task.columns.label, str)):
        expected = f"{len(task.labels)} flags, each 0 or 1" + (
            f", separated by {task.label_separator!r}" if isinstance(task.columns.label, str) else ""
        )
    else:
        expected = f"one of the task's labels ({', '.join(task.labels)})"
    shown = ", ".join(
        f"{value[:40]!r} on line {lines[0]}" + (f" and {len(lines) - 1:,} more" if len(lines) > 1 else "")
        for value, lines in list(wrong.items())[:_SHOWN]
    )
    more = f", and {len(wrong) - _SHOWN:,} other values" if len(wrong) > _SHOWN else ""
    all_wrong = sum(map(len, wrong.values())) == rows
    return f"label {shown}{more}: expected {expected}; {_remedy(task, split, wrong, all_wrong)}"


def _remedy(task: Task, split: SplitName, wrong: dict[str, list[int]], all_wrong: bool) -> str:
    """What to write, where the values show it."""
    if all("".join(value.split()).casefold() in _PLACEHOLDERS for value in wrong):
        if split == "test":
            which = "test has no labels" if all_wrong else "test is not to be scored; else leave these rows out"
            return f"write test_labelled: false in the task file if {which}"
        if "" in map(str.strip, wrong):
            return "these have no label: fill it in" + ("" if all_wrong else ", or leave these rows out")
        if task.problem == REGRESSION or not all_wrong:
            return "leave these rows out, or name the label in labels of the task file"
    if task.problem == REGRESSION and all(_is_number(value.replace(",", ".")) for value in wrong):
        return "write decimals with a point"
    if task.problem != REGRESSION and task.problem != MULTI:
        folded = {_folded(label): label for label in task.labels}
        alike = [(value, folded[_folded(value)]) for value in wrong if _folded(value) in folded]
        if alike and len(alike) == len(wrong):
            named = ", ".join(f"{value!r} from {label!r}" for value, label in alike[:_SHOWN])
            return f"{named} differs only by case or blanks: write one of them, in the file or in labels"
        if all_wrong and len(wrong) <= _MOST_LABELS:
            values = json.dumps(sorted(value.strip() for value in wrong), ensure_ascii=False)
            unlabelled = ", or test_labelled: false" if split == "test" else ""
            return f"to take the file's, write labels: {values} in the task file{unlabelled}"
        if len(task.labels) + len(wrong) <= _MOST_LABELS:
            values = json.dumps([*task.labels, *(value.strip() for value in wrong)], ensure_ascii=False)
            return f"correct the file, or labels in the task file; to have them all, write labels: {values}"
    return "correct the file, or labels in the task file"


def _folded(label: str) -> str:
    return " ".join(label.split()).casefold()


def _is_number(value: str) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except ValueError:
        return False
