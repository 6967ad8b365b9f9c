"""The rows of an input file in order, a chunk at a time, in bounded memory.

    TableFile ─ bytes ▸ lines ▸ cells ▸ judge ─▶ Chunk, Chunk, …

Every row of the input is a row of a chunk: one without a usable text says why in `errors`, and keeps its other columns.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa

from twilbert.data.tables.files import open_parquet, open_stream
from twilbert.data.tables.inputs import BOM, JSON_LINE, LONGEST_LINE, STANDARD_INPUT, TableFile, cells, name_of
from twilbert.errors import TwilbertError

_BLOCK_BYTES = 2**20
_NO_TEXT, _NOT_UTF8 = "no text", "not UTF-8"


@dataclass
class Chunk:
    """Rows as they stood in the input, their texts, and why a row has none."""

    kept: pa.Table
    texts: list[str | None]
    pairs: list[str | None] | None
    errors: list[str | None]


def read(file: TableFile, rows: int) -> Iterator[Chunk]:
    """All rows of a file in order, at most `rows` in a chunk; TwilbertError when it cannot be read to its end."""
    try:
        if file.format == "parquet":
            yield from _parquet_chunks(file, rows)
            return
        make = {"text": _line_chunk, "jsonl": _json_chunk}.get(file.format, _cell_chunk)
        source = _lines(file)
        if file.format in ("tsv", "csv"):
            source = cells(file.format, (line + "\n" for line in source))
            source = itertools.islice(source, int(file.has_header), None)
        while taken := list(itertools.islice(source, rows)):
            yield make(file, cast(Any, taken))
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise TwilbertError(
            f"{name_of(file.path)}: cannot be read to its end ({error}); it is cut short or damaged: restore it"
        ) from error


def _blocks(file: TableFile) -> Iterator[bytes]:
    if file.path == STANDARD_INPUT:
        yield file.head
        arriving: Any = sys.stdin.buffer
        yield from iter(lambda: arriving.read1(_BLOCK_BYTES), b"")
        return
    with open_stream(file.path, file.compression) as stream:
        yield from iter(lambda: stream.read(_BLOCK_BYTES), b"")


def _lines(file: TableFile) -> Iterator[Any]:
    """Lines without their ends. Bytes that are no UTF-8 travel as surrogates, so that only their own row is refused."""
    carry, fresh = b"", True
    for block in _blocks(file):
        data = carry + (block.removeprefix(BOM) if fresh else block)
        fresh = False
        *whole, carry = data.split(b"\n")
        if len(carry) > LONGEST_LINE:
            raise TwilbertError(
                f"{name_of(file.path)}: no line break in {LONGEST_LINE >> 20} MB; expected a file of lines"
            )
        yield from (line.removesuffix(b"\r").decode(errors="surrogateescape") for line in whole)
    if carry:
        yield carry.removesuffix(b"\r").decode(errors="surrogateescape")


def _text(value: str | None) -> tuple[str | None, str | None]:
    """(the text, why there is none)."""
    if value is None or not value.strip():
        return None, _NO_TEXT
    try:
        value.encode()
    except UnicodeEncodeError:
        return None, _NOT_UTF8
    return value, None


def _strings(values: Sequence[str]) -> pa.Array:
    """Strings as they can be stored: what was no UTF-8 becomes U+FFFD."""
    return pa.array([value if value.isascii() else _stored(value) for value in values], pa.large_string())


def _stored(value: str) -> str:
    try:
        return value.encode(errors="surrogateescape").decode(errors="replace")
    except UnicodeEncodeError:  # half a character that was spelt out
        return value.encode(errors="replace").decode()


def _judged(kept: pa.Table, texts: list[Any], pairs: list[Any] | None, faults: list[str | None] | None) -> Chunk:
    chunk = Chunk(kept, [], None if pairs is None else [], list(faults or [None] * len(texts)))
    for number, value in enumerate(texts):
        text, error = _text(value)
        chunk.texts.append(text)
        chunk.errors[number] = chunk.errors[number] or error
    if pairs is not None:
        judged = [_text(value) for value in pairs]
        chunk.pairs = [text for text, _ in judged]
        for number, (_, error) in enumerate(judged):
            chunk.errors[number] = chunk.errors[number] or (error and f"second text: {error}")
    return chunk


def _line_chunk(file: TableFile, lines: list[str]) -> Chunk:
    kept = pa.table({"text": _strings(lines)})
    return _judged(kept, lines, None, None)


def _cell_chunk(file: TableFile, rows: list[list[str]]) -> Chunk:
    width, between = len(file.columns), "\t" if file.format == "tsv" else ","
    faults: list[str | None] = []
    for number, row in enumerate(rows):
        faults.append(f"{len(row)} columns, expected {width}" if len(row) > width else None)
        if len(row) > width:  # kept, where it can be seen, in the last column
            rows[number] = [*row[: width - 1], between.join(row[width - 1 :])]
        elif len(row) < width:
            rows[number] = row + [""] * (width - len(row))
    by_column = list(zip(*rows, strict=True))
    kept = {name: _strings(column) for name, column in zip(file.columns, by_column, strict=True)}
    at = file.columns.index
    pairs = None if file.pair is None else list(by_column[at(file.pair)])
    return _judged(pa.table(kept), list(by_column[at(file.text)]), pairs, faults)


def _json_chunk(file: TableFile, lines: list[str]) -> Chunk:
    texts, pairs, faults = [], [], []
    for line in lines:
        value, fault = _json_row(line, file)
        texts.append(value.get(file.text))
        pairs.append(value.get(file.pair) if file.pair else None)
        faults.append(fault)
    kept = pa.table({JSON_LINE: _strings(lines)})
    return _judged(kept, texts, pairs if file.pair else None, faults)


def _json_row(line: str, file: TableFile) -> tuple[dict[str, Any], str | None]:
    if not line.strip():
        return {}, "an empty line"
    try:
        value = json.loads(_utf8(line))
    except UnicodeError:
        return {}, _NOT_UTF8
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON: {error}"
    if not isinstance(value, dict):
        return {}, "not a JSON object"
    for name in (file.text, file.pair):
        if name and not isinstance(value.get(name), str | None):
            return {}, f"{name} is no text"
    return value, None


def _utf8(line: str) -> str:
    line.encode()
    return line


def _parquet_chunks(file: TableFile, rows: int) -> Iterator[Chunk]:
    with open_parquet(file.path) as opened:
        for batch in opened.iter_batches(rows):
            kept, broken = _readable(pa.Table.from_batches([batch]))
            wanted = (file.text, file.pair) if file.pair else (file.text,)
            faults = [_NOT_UTF8 if any(n in wanted for n in broken.get(i, ())) else None for i in range(len(kept))]
            pairs = None if file.pair is None else kept.column(file.pair).to_pylist()
            yield _judged(kept, kept.column(file.text).to_pylist(), pairs, faults)


def _readable(table: pa.Table) -> tuple[pa.Table, dict[int, list[str]]]:
    """The table with text that is no UTF-8 replaced, and which columns of which rows that was."""
    broken: dict[int, list[str]] = {}
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
            raw = column.cast(pa.large_binary()).to_pylist()
            clean = [None if value is None else value.decode(errors="replace") for value in raw]
            for row, (value, text) in enumerate(zip(raw, clean, strict=True)):
                if value is not None and text is not None and value != text.encode():
                    broken.setdefault(row, []).append(name)
            table = table.set_column(at, name, pa.array(clean, column.type))
    return table, broken
