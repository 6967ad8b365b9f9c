"""A task's file as columns of cells, whatever its format, and why it is not the file that the task expects."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

from twilbert import storage
from twilbert.data.tables import blocks, layout, tass
from twilbert.data.tables.cells import STRAY_QUOTE
from twilbert.data.tables.files import Source, format_of
from twilbert.data.tables.layout import DELIMITERS, TableFile
from twilbert.errors import TwilbertError, UsageError
from twilbert.tasks import tweeteval
from twilbert.tasks.task import Columns, Task, registered

SplitName = Literal["train", "dev", "test"]
_TAB = "\t"
_SHOWN = 5  # faulty lines named one by one
_EXACT = 2**53  # whole numbers from there on are not all floats
_NAMED_COLUMNS = ("jsonl", "parquet", "xml", "xlsx")  # formats without separators


@dataclass(frozen=True)
class Table:
    """A file's cells by column, and the line on which each row begins."""

    columns: dict[str, list[str]]
    lines: list[int]
    labels_in: str | None = None
    """The file of the labels, where they have one of their own."""

    def without(self, name: str) -> Table:
        """The table without a column."""
        return Table({key: cells for key, cells in self.columns.items() if key != name}, self.lines)


def read_table(task: Task, split: SplitName) -> Table:
    """A split's file as cells; UsageError for a file that is missing, not text, empty, or of another layout.

    A delimited file has the task's delimiter and quoting, or those that its header shows; JSON lines, Parquet,
    Excel, TASS XML and TweetEval's pairs of files are recognised. An XML test file without values has no label column.
    """
    path = task.path(split)
    assert path is not None
    if not is_file(path):
        raise UsageError(missing_message(task))
    needed = task.needed_columns(split)
    file = _inspected(task, path, needed)
    if file is None:
        raise UsageError(f"{path}: empty; expected a header with {_named(needed)}, then rows")
    absent = [name for name in needed if name not in file.names]
    if absent and tweeteval.is_texts(path) and task.columns.text_b is None and isinstance(task.columns.label, str):
        columns = tweeteval.read(task, path, is_test=split == "test")
        lines = list(range(1, len(columns[task.columns.text]) + 1))
        return Table(columns, lines, tweeteval.labels_path(path))
    if absent:
        raise UsageError(_absent_message(task, file, absent))
    twice = sorted({name for name in file.names if file.names.count(name) > 1})
    if twice:
        raise UsageError(f"{path}: {_named(twice)} stands twice in the header; rename one")
    table = _read_cells(task, split, file.reading(needed))
    label = task.columns.label
    if file.format == "xml" and split == "test" and not task.test_labelled and isinstance(label, str):
        table = table if any(table.columns.get(label, ())) else table.without(label)
    return table


def _inspected(task: Task, path: str, needed: list[str]) -> TableFile | None:
    """The file's layout: the task's, else tabs and no quoting where its header is such, else what the header shows."""
    source, form, quoted = Source(path, path), format_of(path), task.quoting == "csv"
    if form in _NAMED_COLUMNS:
        file = layout.inspect(source, needed, form, always_header=True)
        return _with_default_names(task, file) if file and file.format == "xml" else file

    def delimited(mark: str, quoted: bool) -> TableFile | None:
        kind = "csv" if quoted else "tsv"
        return layout.inspect(source, needed, kind, delimiter=mark, quoted=quoted, always_header=True)

    file = delimited(task.delimiter or _TAB, quoted)
    if file is None or task.delimiter is not None or set(needed) <= set(file.names):
        return file
    other = layout.inspect(source, needed, "csv", always_header=True)
    if other is None or not set(needed) <= set(other.names):
        return other if other and len(other.names) > len(file.names) else file  # for the message
    return delimited(other.delimiter, task.quoting != "none")


def _with_default_names(task: Task, file: TableFile) -> TableFile:
    """TASS XML with ID, TEXT and CLASS as names of its columns, as far as the task names no others."""
    own, default = task.columns, Columns()
    pairs = ((tass.ID, own.id, default.id), (tass.TEXT, own.text, default.text), (tass.LABEL, own.label, default.label))
    renamed = {name: chosen for name, chosen, usual in pairs if chosen == usual}
    return dataclasses.replace(file, names=tuple(str(renamed.get(name, name)) for name in file.names))


def _read_cells(task: Task, split: SplitName, file: TableFile) -> Table:
    """All cells of a file as text; UsageError that names the lines that cannot be read."""
    columns: dict[str, list[str]] = {name: [] for name in file.names}
    lines: list[int] = []
    faults: list[tuple[int, str]] = []
    ignored = {blocks.EMPTY_LINE}
    lacks_label = f"{len(file.names) - 1} cells, expected {len(file.names)}"
    ends_with_label = split == "test" and file.names[-1] == task.columns.label
    if ends_with_label and task.test_labelled is False:
        ignored.add(lacks_label)
    first = file.header_lines + 1
    try:
        for block in blocks.read(file):
            empty = {row for row, fault in block.faults.items() if fault == blocks.EMPTY_LINE}
            for row, fault in sorted(block.faults.items()):
                if fault not in ignored:
                    faults.append((first + block.numbers[row], fault))
            lines += [first + line for row, line in enumerate(block.numbers) if row not in empty]
            for row, value in enumerate(block.column(task.columns.id)) if task.columns.id in file.names else ():
                if isinstance(value, float) and abs(value) >= _EXACT:
                    faults.append((first + block.numbers[row], f"the id {value!r}, rounded to a decimal number"))
            for name, cells in columns.items():
                cells += [_as_text(cell) for row, cell in enumerate(block.column(name)) if row not in empty]
            first += block.lines
    except TwilbertError as error:  # known before anything is trained
        raise UsageError(str(error)) from error
    if not lines:
        raise UsageError(f"{file.name}: a header and no rows; expected at least one row")
    if faults:
        shown = "; ".join(f"line {line}: {fault}" for line, fault in faults[:_SHOWN])
        kinds = {fault for _, fault in faults}
        no_labels = ends_with_label and kinds == {lacks_label}
        raise UsageError(
            f"{file.name}: {len(faults):,} of {len(lines):,} rows cannot be read ({shown}"
            f"{'; …' if len(faults) > _SHOWN else ''}); "
            + ("write test_labelled: false if test has no labels" if no_labels else _remedy(file, kinds))
        )
    return Table(columns, lines)


def _remedy(file: TableFile, faults: set[str]) -> str:
    if blocks.NOT_UTF8 in faults:
        return "save the file as UTF-8"
    if STRAY_QUOTE in faults:
        return "correct them, or set quoting: none where quotes are text"
    if file.format == "xml":
        return f"correct them; expected {tass.EXPECTED}"
    if file.format not in ("tsv", "csv"):
        return "correct them; a number of many digits is stored as text"
    unless = "" if file.quoted else ", unless cells are quoted: then set quoting: csv"
    return f"a text may not hold a {_name(file.delimiter)} or a line end{unless}"


def _as_text(value: Any) -> str:
    """A cell as text: missing ones (None, NaN) empty, whole numbers without a point (1.0 is 1)."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, bool | list | dict) else str(value)


def _absent_message(task: Task, file: TableFile, absent: list[str]) -> str:
    """A missing column: another separator than the task's, a first row of data, else the header as it is."""
    line = file.delimiter.join(file.names)
    for mark, name in DELIMITERS.items():
        if mark != file.delimiter and set(absent) <= {cell.strip('"') for cell in line.split(mark)}:
            return (
                f"{file.name}: columns are separated by a {name}, not by a {_name(file.delimiter)}; "
                f'set delimiter: "{mark if mark != _TAB else chr(92) + "t"}" in the task file, or leave it out'
            )
    cells = {cell.strip() for mark in DELIMITERS for cell in line.split(mark)}
    if not cells.isdisjoint({task.columns.id, task.columns.text}):
        return _absent(file, absent)
    if not cells.isdisjoint(task.labels) or any(cell.isdigit() for cell in cells):
        names = task.header or task.needed_columns("train")
        between = f" with {_name(file.delimiter)}s between them" if file.format in ("tsv", "csv") else ""
        return (
            f"{file.name}: its first line looks like data ({_named(list(file.names[:4]))}), so it has no header; "
            f"put one above it that names the columns in their order, e.g. {' '.join(names)}{between}"
        )
    return _absent(file, absent)


def _absent(file: TableFile, absent: list[str]) -> str:
    folded = {name.strip('" ').casefold(): name for name in reversed(file.names)}
    if all(name.casefold() in folded for name in absent):
        alike = ", ".join(f"{folded[name.casefold()]!r} for {name!r}" for name in absent)
        return f"{file.name}: the header has {alike}; write one of them, in the file or in the task file's columns"
    return (
        f"{file.name}: no column {_named(absent)} in the header; found {_named(list(file.names[:12]))}; "
        "correct the header, or name the columns in the task file (columns:; id: null where rows have none)"
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
    form = "cells may be quoted" if task.quoting == "csv" else "quotes are text"
    lines.append(
        f"  {_name(task.delimiter or _TAB)}-separated, {form}, header with {_named(task.needed_columns('train'))}"
    )
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


def _name(delimiter: str) -> str:
    return DELIMITERS.get(delimiter, repr(delimiter))


def _named(names: list[str]) -> str:
    return ", ".join(name if len(name) <= 60 else name[:60] + "…" for name in names)
