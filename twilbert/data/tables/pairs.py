"""Tweets and their replies in tables of any layout: ORIG_ID, ORIG_TEXT, REPLY_ID, REPLY_TEXT by name or position."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from twilbert.data.tables import blocks, layout
from twilbert.data.tables.blocks import BLOCK_BYTES, Piece
from twilbert.data.tables.files import Source
from twilbert.data.tables.layout import TableFile
from twilbert.errors import UsageError

COLUMNS = ("orig_id", "orig_text", "reply_id", "reply_text")
_MISSING = {"", "\\n", "null", "nan", "none", "<na>", "n/a", "#n/a"}
_LONGEST_MISSING = 8  # characters, white space included
NO_WHOLE_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d*(?:[eE][+-]?\d+)?|[eE]\+\d+)")
LOST_DIGITS = "an id in scientific notation or with decimals, which has lost digits: export ids as text"
_NO_TEXT = "an id or text that is neither text nor (ids) a whole number"
_EXPECTED = (
    "expected ORIG_ID, ORIG_TEXT, REPLY_ID, REPLY_TEXT; name yours, e.g. --columns orig_text=parent reply_text=child, "
    "or by position where there is no header: orig_id=1 orig_text=2; tweets are joined to pairs by "
    "twilbert-prepare --format twitter"
)


@dataclass
class Pairs:
    """Records of a stretch of input: four equal lists, and what became of the lines that are not in them.

    `orig_ids` and `reply_ids` hold None where ids are to be made from the texts; `reply_texts` None in single tweets.
    `rejects` are (line within the piece counted from 0, reason). records read = len(orig_ids) + blank + len(rejects).
    """

    lines: int  # physical lines (Parquet: rows) in this stretch
    orig_ids: list[str | None] = field(default_factory=list)
    orig_texts: list[str] = field(default_factory=list)
    reply_ids: list[str | None] = field(default_factory=list)
    reply_texts: list[str | None] = field(default_factory=list)
    rejects: list[tuple[int, str]] = field(default_factory=list)
    blank: int = 0

    @property
    def records(self) -> int:
        """How many records were read: accepted, blank and refused ones."""
        return len(self.orig_ids) + self.blank + len(self.rejects)


def inspect(source: Source, renamed: Mapping[str, str] | None = None) -> TableFile | None:
    """The layout of a file of pairs, with its four columns; None when it holds nothing.

    `renamed` maps COLUMNS to the file's own names, or to positions counted from 1 for a file without header.
    UsageError when the columns of ids and texts are not certain.
    """
    renamed = dict(renamed or {})
    wanted = [renamed.get(column, column) for column in COLUMNS]
    file = layout.inspect(source, wanted)
    if file is not None and file.format == "text":
        file = layout.inspect(source, wanted, "tsv")
    if file is None or (file.format not in ("parquet", "json", "jsonl") and _has_no_data(file)):
        return None
    columns = _positions(file, renamed) or _by_name(file, renamed)
    file = file.reading(columns) if file.format != "parquet" else _checked_types(file, columns)
    return file


def _has_no_data(file: TableFile) -> bool:
    return file.has_header and len(file.sample) == 1


def notes(file: TableFile) -> list[str]:
    """What is unusual in the layout of a file of pairs, to be printed."""
    orig_id, _, reply_id, reply_text = (name in file.names for name in file.columns)
    notes = []
    if file.format in ("tsv", "csv") and file.delimiter != ("," if file.format == "csv" else "\t"):
        notes.append(f"columns are separated by a {layout.DELIMITERS.get(file.delimiter, repr(file.delimiter))}")
    if file.encoding != "utf-8":
        notes.append(file.encoding.upper())
    if not orig_id or (reply_text and not reply_id):
        notes.append("no ids, they are made from the texts (equal texts, equal ids)")
    elif not reply_text:
        notes.append("no column of replies, single tweets")
    return notes


def _positions(file: TableFile, renamed: Mapping[str, str]) -> list[str | None] | None:
    """Columns by the positions that were given, or of the layout without header; None: by name."""
    if file.format not in ("tsv", "csv"):
        return None
    if renamed and all(position.isdigit() for position in renamed.values()):
        places = [int(renamed[column]) if column in renamed else None for column in COLUMNS]
        if places[1] is None or not all(1 <= place <= len(file.names) for place in places if place is not None):
            raise UsageError(
                f"--columns: positions count from 1, orig_text must be among them, and {file.name} has "
                f"{len(file.names)} columns"
            )
        return [None if place is None else file.names[place - 1] for place in places]
    # Without a header the original's order is taken, but only where the rows really look like ids and texts.
    if file.has_header or renamed or len(file.names) not in (2, 4):
        return None
    rows = [row for row in file.sample if len(row) == len(file.names)]
    like_pairs = [all(map(_is_like_id, row[::2])) for row in rows]
    if not like_pairs[0] or 2 * sum(like_pairs) <= len(file.sample):
        return None
    return [*file.names, None, None][:4]


def _is_like_id(cell: str) -> bool:
    """Whether a cell may be an id: one word that holds a digit (an empty one is a missing reply's)."""
    cell = cell.strip()
    return is_missing(cell) or (len(cell.split()) == 1 and any(char.isdigit() for char in cell))


def _by_name(file: TableFile, renamed: Mapping[str, str]) -> list[str | None]:
    """The file's own names of COLUMNS; UsageError that lists its names where there is no tweet text among them."""
    names = file.names if file.has_header else [cell.strip() for cell in file.sample[0]]
    folded = {name.strip().casefold(): name for name in reversed(names)}
    columns = [folded.get(renamed.get(column, column).casefold()) for column in COLUMNS]
    missing = [f"{c}={renamed[c]}" for c, name in zip(COLUMNS, columns, strict=True) if c in renamed and name is None]
    if columns[1] is None or (missing and file.format not in ("json", "jsonl")):
        unknown = f"--columns {' '.join(missing)}: no such column; " if missing else ""
        raise UsageError(f"{file.name}: {unknown}columns found: {layout.column_list(file)}; {_EXPECTED}")
    if file.format in ("json", "jsonl"):  # a key may be missing in the first records
        return [name or renamed.get(column, column) for column, name in zip(COLUMNS, columns, strict=True)]
    return columns


def _checked_types(file: TableFile, columns: list[str | None]) -> TableFile:
    """A Parquet file of which these columns are read; UsageError where they are neither text nor (ids) integers."""
    types = dict(zip(file.names, file.sample, strict=True))
    for column, name in zip(COLUMNS, columns, strict=True):
        if name is None:
            continue
        kind = types[name]
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
        if not is_text and not (column.endswith("id") and pa.types.is_integer(kind)):
            lost = " (floats have lost digits of the ids)" if pa.types.is_floating(kind) else ""
            raise UsageError(f"{file.name}: column {name!r} is {kind}, expected text{lost}; store it as text")
    file = file.reading(columns)
    return dataclasses.replace(file, names=tuple(name for name in columns if name))


def is_missing(value: str | None) -> bool:
    r"""Whether a cell holds nothing, or what databases and data frames write in its place (\N, NULL, nan, None, …)."""
    if not value or value.isspace():
        return True
    return len(value) <= _LONGEST_MISSING and (value.strip().casefold() in _MISSING or value.strip() == "NA")


def read(piece: Piece, block_bytes: int = BLOCK_BYTES) -> Iterator[Pairs]:
    """The pairs of a piece, in order; TwilbertError when the file cannot be read to its end."""
    file = piece.file
    needs_orig_id, needs_reply_id = (file.columns[i] in file.names for i in (0, 2))
    is_typed = file.format in ("json", "jsonl", "parquet")
    for block in blocks.read_piece(piece, block_bytes):
        pairs = Pairs(block.lines)
        for row, (orig_id, tweet, reply_id, reply) in enumerate(block.records(file.columns)):
            fault = block.faults.get(row) if block.faults else None
            if is_typed and fault is None:
                orig_id, reply_id = _text_id(orig_id), _text_id(reply_id)
                fault = _value_fault(orig_id, tweet, reply_id, reply)
            if fault is None and not (orig_id and orig_id.isdigit()):
                orig_id, fault = _id(orig_id, needs_orig_id, "no ORIG_ID")
            if fault is None and (not reply or len(reply) <= _LONGEST_MISSING or reply.isspace()) and is_missing(reply):
                reply_id = reply = None
            elif fault is None and not (reply_id and reply_id.isdigit()):
                reply_id, fault = _id(reply_id, needs_reply_id, "a reply without REPLY_ID")
            if fault is None:
                pairs.orig_ids.append(orig_id)
                pairs.orig_texts.append(
                    "" if not tweet or (len(tweet) <= _LONGEST_MISSING and is_missing(tweet)) else tweet
                )
                pairs.reply_ids.append(reply_id)
                pairs.reply_texts.append(reply)
            elif fault == blocks.EMPTY_LINE:
                pairs.blank += 1
            else:
                pairs.rejects.append((block.numbers[row], fault))
        yield pairs


def _id(value: str | None, is_needed: bool, missing: str) -> tuple[str | None, str | None]:
    """The id, and why it is none."""
    if value is None or is_missing(value):
        return None, missing if is_needed else None
    value = value.strip()
    return value, LOST_DIGITS if NO_WHOLE_NUMBER.fullmatch(value) else None


def _text_id(value: Any) -> Any:
    return str(value) if type(value) in (int, float) else value


def _value_fault(*values: Any) -> str | None:
    if not all(value is None or isinstance(value, str) for value in values):
        return _NO_TEXT
    return blocks.text_fault("".join(value for value in values if value))
