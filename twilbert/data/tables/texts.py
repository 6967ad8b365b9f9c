"""Texts in tables of any layout with any other columns beside them, and lines of plain text.

Every row of the input is a row of a chunk: one without a usable text says why in `errors`, and keeps its other columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from twilbert import cli, storage
from twilbert.data.tables import blocks, layout
from twilbert.data.tables.files import FORMATS, Source, format_of, packing_of, sources
from twilbert.data.tables.layout import TableFile
from twilbert.errors import UsageError

_NAMES = ("text", "tweet", "texto", "sentence", "full_text", "tweet_text", "content")
_SECOND = "second text: "


@dataclass
class Chunk:
    """Rows of the input with all their columns, their texts, and why a row has none."""

    table: pa.Table
    texts: list[str | None]
    pairs: list[str | None] | None
    errors: list[str | None]


def inspect(source: Source, form: str | None = None, text: str | None = None, pair: str | None = None) -> TableFile:
    """The layout of a file of texts; UsageError when it holds nothing or the column of the texts is not certain.

    `form`: one of FORMATS, else by the file's name (standard input: lines of text). `text`, `pair`: names of the
    columns of the texts, or positions counted from 1 for a file without header; `text` is found by its usual names.
    """
    if form is None:
        packing = packing_of(source)
        form = packing if packing in ("parquet", "xlsx") else format_of(source.name)
        form = form or ("text" if source.name == "standard input" else None)
    if form not in FORMATS:
        known = "|".join(FORMATS)
        raise UsageError(f"{source.name}: its name ends in none of the known formats; say --format {known}")
    file = layout.inspect(source, [text or _NAMES[0], *([] if text else _NAMES), *([pair] if pair else [])], form)
    if file is None:
        raise UsageError(f"{source.name}: empty; expected texts as {form}")
    if file.format == "text" and (pair is not None or text not in (None, "text", "1")):
        raise UsageError(f"{source.name}: lines of text have no columns; say --format tsv (or csv, jsonl)")
    columns = [_column(file, text), None if pair is None else _column(file, pair)]
    types = dict(zip(file.names, file.sample, strict=True)) if file.format == "parquet" else {}
    for name in filter(None, columns):
        if name in types and not (pa.types.is_string(types[name]) or pa.types.is_large_string(types[name])):
            raise UsageError(f"{source.name}: column {name!r} is {types[name]}, expected text; name another column")
    twice = [name for name in file.names if file.names.count(name) > 1]
    if twice:
        raise UsageError(f"{source.name}: two columns are named {twice[0]!r}; rename one")
    return file.reading(columns)


def _column(file: TableFile, wanted: str | None) -> str:
    """The name of the column that a name or position stands for; None: the texts'."""
    folded = {name.strip().casefold(): name for name in reversed(file.names)}
    for name in _NAMES if wanted is None else (wanted,):
        if name.casefold() in folded and (file.has_header or file.format == "text"):
            return folded[name.casefold()]
    is_table = file.format in ("tsv", "csv")
    if is_table and wanted is not None and wanted.isdigit():
        if not 1 <= int(wanted) <= len(file.names):
            raise UsageError(f"{file.name}: has {len(file.names)} columns; give a position from 1 to {len(file.names)}")
        return file.names[int(wanted) - 1]
    if is_table and wanted is None and len(file.names) == 1 and not re.fullmatch(r"[^\W\d]+_\w+", file.sample[0][0]):
        return file.names[0]  # one column whose first row is no name: there is no header
    missing = "no column of texts found" if wanted is None else f"no column {wanted!r}"
    raise UsageError(
        f"{file.name}: {missing}; its columns are {layout.column_list(file)}; name the texts' with --text-column NAME, "
        "or by position where there is no header: --text-column 1"
    )


def read(file: TableFile, rows: int) -> Iterator[Chunk]:
    """All rows of a file in order, at most `rows` in a chunk; TwilbertError when it cannot be read to its end."""
    text, pair = file.columns
    assert text is not None
    for block in blocks.read(file):
        chunk = checked(block.table(), block.column(text), None if pair is None else block.column(pair), block.faults)
        for start in range(0, len(chunk.texts), rows):
            stop = start + rows
            pairs = None if chunk.pairs is None else chunk.pairs[start:stop]
            yield Chunk(chunk.table.slice(start, rows), chunk.texts[start:stop], pairs, chunk.errors[start:stop])


def checked(table: pa.Table, texts: Sequence[Any], pairs: Sequence[Any] | None, faults: dict[int, str]) -> Chunk:
    """A chunk of texts that are usable, or the reason why they are not."""
    chunk = Chunk(table, [], None if pairs is None else [], [faults.get(row) for row in range(len(texts))])
    for sides, usable, what in ((texts, chunk.texts, ""), (pairs, chunk.pairs, _SECOND)):
        for row, value in enumerate(sides if sides is not None else ()):
            error = _text_fault(value)
            usable.append(value if error is None else None)  # pyright: ignore[reportOptionalMemberAccess]
            chunk.errors[row] = chunk.errors[row] or (error and what + error)
    return chunk


def blank_text(second: bool = False) -> str:
    """Return why a row without a text, or with one of which cleaning leaves nothing, has no result."""
    return f"{_SECOND if second else ''}no text"


def _text_fault(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        return "not a text"
    return blank_text() if not value or value.isspace() else blocks.text_fault(value)


def holds_pairs(path: str) -> bool:
    """Whether a path is a folder, or by its name a file of records rather than of lines."""
    return storage.is_folder(path) or format_of(path) not in ("text", None)


def text_lines(path: str) -> Iterator[list[str]]:
    """Lists of a text file's lines without their ends; "" for one that is no text, whose number is printed.

    UsageError when there is no such file, TwilbertError when it cannot be read to its end.
    """
    with sources([path]) as listed:
        for source in listed:
            file = layout.inspect(source, (), "text")
            if file and file.format != "text":
                raise UsageError(f"{source.name}: a table ({file.format}), not lines of text; save its texts as .txt")
            first = 1
            for block in blocks.read(file) if file else ():
                for row, reason in sorted(block.faults.items())[:10]:
                    cli.say(f"{source.name}: line {first + row}: {reason}, skipped")
                lines = block.column("text")
                yield (
                    ["" if row in block.faults else line for row, line in enumerate(lines)]
                    if block.faults
                    else list(lines)
                )
                first += block.lines
