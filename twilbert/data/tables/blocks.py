"""The reader of tables: pieces of a file → blocks of rows in bounded memory, each row or the reason why it is none.

TableFile ─ cut ─▶ Piece ─ bytes ▸ whole lines ▸ cells ─▶ Block (columns by name, faults by row)
"""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa

from twilbert.data.tables import cells, tass, workbook
from twilbert.data.tables.files import open_parquet
from twilbert.data.tables.layout import TableFile, raw_chunks, text_chunks
from twilbert.data.tables.lines import line_blocks
from twilbert.errors import TwilbertError

BLOCK_BYTES = 2**20
EMPTY_LINE, NOT_UTF8, NUL = "an empty line", "not UTF-8", "a NUL byte"
JSON_LINE = "\0json"
"""Name of the one column of a table of JSON records: their text."""
_PARQUET_ROWS = 32_768
_ROWS = 4_096  # of XML and workbooks
_SHOWN_REASONS = 3


@dataclass(frozen=True)
class Piece:
    """Consecutive records: those that start in bytes [start, stop) of a text, or Parquet row groups [start, stop)."""

    file: TableFile
    start: int
    stop: int


@dataclass
class Block(ABC):
    """Consecutive rows. `numbers`: the line (Parquet: row) of each, from 0 within the piece; `faults`: why a row, by
    its place among the rows, cannot be used; `lines`: how many lines the block is.
    """

    numbers: Sequence[int]
    faults: dict[int, str]
    lines: int

    @abstractmethod
    def records(self, names: Sequence[str | None]) -> Iterable[Sequence[Any]]:
        """Of each row the values of some columns as they are stored, None where there is none."""

    def column(self, name: str) -> list[Any]:
        """The values of a column as they are stored, None where there is none."""
        return [value for (value,) in self.records([name])]

    @abstractmethod
    def table(self) -> pa.Table:
        """All columns, those of faulty rows as far as they can be stored."""


def cut(file: TableFile, piece_bytes: int) -> list[Piece]:
    """Pieces of about `piece_bytes`; a file whose lines cannot be found from any byte on is one."""
    if file.format == "parquet":
        return _cut_parquet(file, piece_bytes)
    if not file.is_divisible:
        return [Piece(file, file.data_start, file.size)]
    starts = range(file.data_start, max(file.size, file.data_start + 1), piece_bytes)
    return [Piece(file, start, min(start + piece_bytes, file.size)) for start in starts]


def _cut_parquet(file: TableFile, piece_bytes: int) -> list[Piece]:
    with open_parquet(file.source.path) as opened:
        footer: Any = opened.metadata
        pieces, start, size = [], 0, 0
        for group in range(footer.num_row_groups):
            size += footer.row_group(group).total_byte_size
            if size >= piece_bytes or group == footer.num_row_groups - 1:
                pieces.append(Piece(file, start, group + 1))
                start, size = group + 1, 0
    return pieces


def read(file: TableFile) -> Iterator[Block]:
    """All rows of a file in order; TwilbertError when it cannot be read to its end."""
    for piece in cut(file, 2**62):
        yield from read_piece(piece)


def read_piece(piece: Piece, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The rows of a piece in order; TwilbertError when the file cannot be read to its end."""
    try:
        yield from _READERS.get(piece.file.format, _cell_blocks)(piece, block_bytes)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise TwilbertError(
            f"{piece.file.name}: cannot be read to its end ({error}); it is cut short or damaged: restore it"
        ) from error


def commonest(reasons: Counter[str]) -> str:
    """The most frequent reasons and their counts, most frequent first."""
    shown = ", ".join(f"{count:,} × {reason}" for reason, count in reasons.most_common(_SHOWN_REASONS))
    return shown + (f", {len(reasons) - _SHOWN_REASONS} other reasons" if len(reasons) > _SHOWN_REASONS else "")


# Text


@dataclass
class _CellBlock(Block):
    names: tuple[str, ...] = ()
    rows: list[list[str]] = field(default_factory=list)

    def records(self, names: Sequence[str | None]) -> Iterable[Sequence[Any]]:
        if tuple(names) == self.names:
            return self.rows
        at = [None if name is None else self.names.index(name) for name in names]
        return ([None if i is None else row[i] for i in at] for row in self.rows)

    def table(self) -> pa.Table:
        return pa.table({name: _stored(self.column(name)) for name in self.names})


def _cell_blocks(piece: Piece, block_bytes: int) -> Iterator[Block]:
    file, first, is_suspect = piece.file, 0, False
    carry: list[str] = []
    blocks = line_blocks(piece.file, piece.start, piece.stop, block_bytes)
    following = next(blocks, None)
    while following is not None:
        lines, has_suspects = following
        following = next(blocks, None)
        is_suspect |= has_suspects  # of a block before, too: a record may begin there
        lines = carry + lines if carry else lines
        split = cells.split_lines(
            lines, file.delimiter, file.quoted, width=len(file.names), numeric=file.numeric, at_end=following is None
        )
        carry = lines[split.lines :]
        numbers = range(first, first + len(split.rows)) if not file.quoted else [first + n for n in split.numbers]
        yield _checked(file, split.rows, numbers, split.faults, split.lines, is_suspect)
        first += split.lines


def _checked(
    file: TableFile, rows: list[list[str]], numbers: Sequence[int], faults: dict[int, str], lines: int, is_suspect: bool
) -> Block:
    """The rows, each with as many cells as there are columns; those that had others are faults."""
    width, keeps_empty = len(file.names), file.format == "text"
    for i, row in enumerate(rows):
        if len(row) != width:
            if not any(row) or (len(row) == 1 and row[0].isspace()):
                faults[i] = EMPTY_LINE
            else:
                faults.setdefault(i, f"{len(row)} cells, expected {width}")
            spare = [file.delimiter.join(row[width - 1 :])] if len(row) >= width else [""] * (width - len(row))
            rows[i] = row[: width - 1] + spare if len(row) >= width else row + spare
        elif width == 1 and not keeps_empty and (not row[0] or row[0].isspace()):
            faults[i] = EMPTY_LINE
    if is_suspect:
        for i, row in enumerate(rows):
            fault = text_fault("".join(row))
            if fault:
                faults[i] = fault
    return _CellBlock(numbers, faults, lines, file.names, rows)


def _tweets(piece: Piece, block_bytes: int) -> Iterator[Block]:
    tweets = tass.rows(piece.file.name, raw_chunks(piece.file, 0, block_bytes))
    while batch := list(itertools.islice(tweets, _ROWS)):
        faults = {i: fault for i, (_, _, fault) in enumerate(batch) if fault}
        yield _CellBlock([line for line, _, _ in batch], faults, 0, piece.file.names, [row for _, row, _ in batch])


def _sheet_rows(piece: Piece, block_bytes: int) -> Iterator[Block]:
    file = piece.file
    rows = workbook.rows(file.source, file.sheet, piece.start)
    while batch := list(itertools.islice(rows, _ROWS)):
        padded = [row + [""] * (len(file.names) - len(row)) if row else row for _, row, _ in batch]
        faults: dict[int, str] = {}
        for i, (_, _, wrong) in enumerate(batch):
            for at, fault in wrong.items():
                if at < len(file.names) and file.names[at] in file.columns:
                    faults[i] = f"column {file.names[at]}: {fault}"
        yield _checked(file, padded, [number for number, _, _ in batch], faults, 0, is_suspect=True)


def text_fault(text: str) -> str | None:
    """Why a string cannot be stored as text, or None."""
    if "\0" in text:
        return NUL
    try:
        text.encode()
    except UnicodeEncodeError:
        return NOT_UTF8
    return None


def _stored(values: Sequence[str]) -> pa.Array:
    """Strings as they can be stored: what was no UTF-8 becomes U+FFFD."""
    stored = (v if v.isascii() else v.encode(errors="surrogateescape").decode(errors="replace") for v in values)
    return pa.array(list(stored), pa.large_string())


# JSON


@dataclass
class JsonBlock(Block):
    """Rows of JSON: `values` are the objects, empty in faulty rows, and `texts` their text."""

    values: list[dict[str, Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def records(self, names: Sequence[str | None]) -> Iterable[Sequence[Any]]:
        return ([None if name is None else value.get(name) for name in names] for value in self.values)

    def table(self) -> pa.Table:
        return pa.table({JSON_LINE: _stored(self.texts)})


def _json_lines(piece: Piece, block_bytes: int) -> Iterator[Block]:
    first = 0
    for lines, _ in line_blocks(piece.file, piece.start, piece.stop, block_bytes):
        block = JsonBlock(range(first, first + len(lines)), {}, len(lines), [{}] * len(lines), lines)
        for i, line in enumerate(lines):
            block.values[i], fault = _json_record(line)
            if fault:
                block.faults[i] = fault
        first += len(lines)
        yield block


def _json_record(line: str) -> tuple[dict[str, Any], str | None]:
    if not line or line.isspace():
        return {}, EMPTY_LINE
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}, text_fault(line) or "not JSON"
    if not line.isascii() and (fault := text_fault(line)):
        return {}, fault
    return (value, None) if isinstance(value, dict) else ({}, "not a JSON object")


def _json_values(piece: Piece, block_bytes: int) -> Iterator[Block]:
    """The objects of an array, or objects that span lines."""
    chunks = text_chunks(piece.file, piece.start, block_bytes)
    block, size = JsonBlock([], {}, 0), 0
    for value, text, line in cells.json_values(piece.file.name, chunks):
        if not isinstance(value, dict):
            block.faults[len(block.values)] = "not a JSON object"
        elif not text.isascii() and (fault := text_fault(text)):
            block.faults[len(block.values)] = fault
        cast(list, block.numbers).append(line)
        block.values.append(value if isinstance(value, dict) else {})
        block.texts.append(text.replace("\r", "").replace("\n", " "))
        size += len(text)
        if size > block_bytes:
            yield block
            block, size = JsonBlock([], {}, 0), 0
    yield block


# Parquet


@dataclass
class _ParquetBlock(Block):
    batch: pa.Table = field(default_factory=lambda: pa.table({}))

    def records(self, names: Sequence[str | None]) -> Iterable[Sequence[Any]]:
        missing = [None] * len(self.batch)
        return zip(*(missing if name is None else self._values(name) for name in names), strict=True)

    def _values(self, name: str) -> list[Any]:
        column = self.batch.column(name)
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            return [value if value is None else value.decode(errors="surrogateescape") for value in column.to_pylist()]
        return column.to_pylist()

    def table(self) -> pa.Table:
        return self.batch


def _parquet_batches(piece: Piece, _: int) -> Iterator[Block]:
    first, file, groups = 0, piece.file, list(range(piece.start, piece.stop))
    with open_parquet(file.source.path) as opened:
        for batch in opened.iter_batches(_PARQUET_ROWS, row_groups=groups, columns=list(file.names)):
            table, faults = _readable(pa.Table.from_batches([batch]), [name for name in file.columns if name])
            yield _ParquetBlock(range(first, first + len(table)), faults, len(table), table)
            first += len(table)


def _readable(table: pa.Table, read: Sequence[str]) -> tuple[pa.Table, dict[int, str]]:
    """The table with text that is no UTF-8 replaced, and the rows where that was in a column of `read`."""
    faults: dict[int, str] = {}
    for at, name in enumerate(table.column_names):
        column: Any = table.column(at)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
            table = table.set_column(at, name, column)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            stored = column.cast(pa.large_binary()).to_pylist()
            texts = [None if value is None else value.decode(errors="replace") for value in stored]
            if name in read:
                broken = [v is not None and v.decode(errors="ignore").encode() != v for v in stored]
                faults |= {row: NOT_UTF8 for row, is_broken in enumerate(broken) if is_broken}
            table = table.set_column(at, name, pa.array(texts, column.type))
    return table, faults


_READERS: dict[str, Callable[[Piece, int], Iterator[Block]]] = {
    "jsonl": _json_lines,
    "json": _json_values,
    "parquet": _parquet_batches,
    "xml": _tweets,
    "xlsx": _sheet_rows,
}
