"""Rows of a task: texts, labels and ids as they stand in its files.

Texts are not cleaned here: who feeds a model does that, with the task's `remove_rt`. The test file is opened by
`read_test` alone, which belongs to the final scoring.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from twilbert import storage
from twilbert.data.tables import blocks, layout
from twilbert.data.tables.cells import STRAY_QUOTE
from twilbert.data.tables.files import Source, format_of
from twilbert.data.tables.layout import DELIMITERS, TableFile
from twilbert.errors import TwilbertError, UsageError
from twilbert.model.problems import MULTI, REGRESSION
from twilbert.tasks.task import Task, registered

SplitName = Literal["train", "dev", "test"]
_SHOWN = 5  # faulty lines named one by one


@dataclass(frozen=True)
class Rows:
    """N rows of a split. `labels`: label numbers int64 [N], flags float32 [N, labels] of a multi-label task, scores
    float32 [N] of a regression, None where the file has none. `columns`: every column of the file, as text.
    """

    texts: list[str]
    texts_b: list[str] | None
    labels: np.ndarray | None
    ids: list[str]
    columns: dict[str, list[str]]

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
        )


@dataclass(frozen=True)
class Table:
    """A file's cells by column, and the line on which each row begins."""

    columns: dict[str, list[str]]
    lines: list[int]


def read_split(task: Task, split: Literal["train", "dev"]) -> Rows:
    """Training or development rows; never opens the test file. UsageError that lists the faults of the file."""
    if split not in ("train", "dev"):
        raise UsageError(f"split {split!r}: expected train or dev; the test file is read by read_test alone")
    if task.split is None:
        return _rows(task, split)
    rows = _rows(task, "train")
    drawn = _drawn(task, rows)
    return rows.take(np.flatnonzero(drawn if split == "dev" else ~drawn))


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
    return Rows(texts, texts_b, labels, ids, table.columns)


def _drawn(task: Task, rows: Rows) -> np.ndarray:
    """Which rows of train serve as dev, bool [N].

    Within each label the rows with the smallest hash of seed and text: independent of the order of the file, shares
    kept, and rows of equal text and label never on both sides. A label with two texts or more gives at least one.
    """
    assert task.split is not None and rows.labels is not None
    second = rows.texts_b or [""] * len(rows)
    keys = np.array(
        [
            int.from_bytes(hashlib.sha256(f"{task.split.seed}\0{a}\0{b}".encode()).digest()[:8], "big")
            for a, b in zip(rows.texts, second, strict=True)
        ],
        dtype=np.uint64,
    )
    groups = rows.labels if rows.labels.ndim == 1 and task.problem != REGRESSION else np.zeros(len(rows))
    drawn = np.zeros(len(rows), dtype=bool)
    for group in np.unique(groups):
        at = np.flatnonzero(groups == group)
        ordered = np.sort(keys[at])
        if ordered[0] == ordered[-1]:
            continue  # one text: it stays in train
        wanted = max(1, round(task.split.dev * len(at)))
        limit = ordered[wanted - 1]
        drawn[at] = keys[at] <= (limit if limit < ordered[-1] else ordered[0])
    return drawn


def read_table(task: Task, split: SplitName) -> Table:
    """A split's file as cells; UsageError for a file that is missing, not text, empty, or of another layout.

    A delimited file has the task's delimiter and quoting; JSON lines and Parquet are recognised.
    """
    path = task.path(split)
    assert path is not None
    if not is_file(path):
        raise UsageError(missing_message(task))
    needed = task.needed_columns(split)
    form, quoted = format_of(path), task.quoting == "csv"
    file = layout.inspect(
        Source(path, path), needed, form if form in ("jsonl", "parquet") else "csv" if quoted else "tsv",
        delimiter=task.delimiter, quoted=quoted, always_header=True,
    )  # fmt: skip
    if file is None:
        raise UsageError(f"{path}: empty; expected a header with {_named(needed)}, then rows")
    absent = [name for name in needed if name not in file.names]
    if absent:
        raise UsageError(_absent_message(task, file, absent))
    twice = sorted({name for name in file.names if file.names.count(name) > 1})
    if twice:
        raise UsageError(f"{path}: {_named(twice)} stands twice in the header; rename one")
    return _read_cells(task, file.reading(file.names))


def _read_cells(task: Task, file: TableFile) -> Table:
    """All cells of a file as text; UsageError that names the lines that cannot be read."""
    columns: dict[str, list[str]] = {name: [] for name in file.names}
    lines: list[int] = []
    faults: list[tuple[int, str]] = []
    first = file.header_lines + 1
    try:
        for block in blocks.read(file):
            empty = {row for row, fault in block.faults.items() if fault == blocks.EMPTY_LINE}
            faults += [(first + block.numbers[row], block.faults[row]) for row in sorted(block.faults.keys() - empty)]
            lines += [first + line for row, line in enumerate(block.numbers) if row not in empty]
            for name, cells in columns.items():
                cells += [_as_text(cell) for row, cell in enumerate(block.column(name)) if row not in empty]
            first += block.lines
    except TwilbertError as error:  # known before anything is trained
        raise UsageError(str(error)) from error
    if not lines:
        raise UsageError(f"{file.name}: a header and no rows; expected at least one row")
    if faults:
        shown = "; ".join(f"line {line}: {fault}" for line, fault in faults[:_SHOWN])
        raise UsageError(
            f"{file.name}: {len(faults):,} of {len(lines):,} rows cannot be read ({shown}"
            f"{'; …' if len(faults) > _SHOWN else ''}); {_remedy(task, {fault for _, fault in faults})}"
        )
    return Table(columns, lines)


def _remedy(task: Task, faults: set[str]) -> str:
    if blocks.NOT_UTF8 in faults:
        return "save the file as UTF-8"
    if STRAY_QUOTE in faults:
        return "correct them, or set quoting: none where quotes are text"
    unless = "" if task.quoting == "csv" else ", unless cells are quoted: then set quoting: csv"
    return f"a text may not hold a {_name(task.delimiter)} or a line end{unless}"


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _absent_message(task: Task, file: TableFile, absent: list[str]) -> str:
    """A missing column: the wrong delimiter, where another would give the columns, else the header as it is."""
    line = task.delimiter.join(file.names)
    for mark, name in DELIMITERS.items():
        if mark != task.delimiter and set(absent) <= {cell.strip('"') for cell in line.split(mark)}:
            return (
                f"{file.name}: columns are separated by a {name}, not by a {_name(task.delimiter)}; "
                f'set delimiter: "{mark if mark != chr(9) else chr(92) + "t"}" in the task file'
            )
    return (
        f"{file.name}: no column {_named(absent)} in the header; found {_named(list(file.names[:12]))}; "
        "correct the header, or name the columns in the task file (columns:)"
    )


def is_file(path: str) -> bool:
    """Whether a file, and not a folder, is there."""
    return storage.exists(path) and not storage.is_folder(path)


def missing_message(task: Task) -> str:
    """Which files of a task are looked for and which are there, their layout, and where to get them."""
    splits: tuple[SplitName, ...] = ("train", "dev", "test")
    lines = [f"{task.name}: its data is not here; expected"]
    for split in splits:
        path = task.path(split)
        if path is not None:
            lines.append(f"  {split:5s} {path}" + ("" if is_file(path) else "   (missing)"))
    form = "quotes are text" if task.quoting == "none" else "cells may be quoted"
    lines.append(f"  {_name(task.delimiter)}-separated, {form}, header with {_named(task.needed_columns('train'))}")
    if task.ask:
        lines.append(f"  where to ask for it: {task.ask}")
    if task.unverified:
        lines.append(f"  unverified: {task.unverified}")
    if task.name in registered():
        lines.append(
            "  to go without one of them, copy the task file recipes/tasks/" + f"{task.name}.yaml and edit files"
        )
        lines.append(
            f"put it there, give another data_dir, or try generated data: twilbert-sample task {task.name} --out tasks"
        )
    else:
        lines.append("put it there, or correct files in the task file")
    return "\n".join(lines)


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
        return None, [_label_fault(task, split, wrong)]
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


def _label_fault(task: Task, split: SplitName, wrong: dict[str, list[int]]) -> str:
    if task.problem == REGRESSION:
        expected = "a number"
    elif task.problem == MULTI and (task.label_format == "flags" or not isinstance(task.columns.label, str)):
        expected = f"{len(task.labels)} flags, each 0 or 1" + (
            f", separated by {task.label_separator!r}" if isinstance(task.columns.label, str) else ""
        )
    else:
        expected = f"one of the task's labels ({', '.join(task.labels)})"
    told = ", ".join(
        f"{value[:40]!r} on line {lines[0]}" + (f" and {len(lines) - 1:,} more" if len(lines) > 1 else "")
        for value, lines in list(wrong.items())[:_SHOWN]
    )
    more = f", and {len(wrong) - _SHOWN:,} other values" if len(wrong) > _SHOWN else ""
    return f"{task.path(split)}: label {told}{more}: expected {expected}; correct the file, or labels in the task file"


def _name(delimiter: str) -> str:
    return DELIMITERS.get(delimiter, repr(delimiter))


def _named(names: list[str]) -> str:
    return ", ".join(name if len(name) <= 60 else name[:60] + "…" for name in names)
