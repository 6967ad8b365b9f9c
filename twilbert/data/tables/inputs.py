"""Files of texts with any other columns beside them: what each holds, and which of its columns the texts are.

    TSV · CSV · JSON lines · Parquet · lines of text · standard input ─ inspect ─▶ TableFile ─ table_rows.py ─▶ rows

All that can be known to be wrong before any work begins is found here.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from twilbert.data.tables.files import open_parquet, open_stream
from twilbert.errors import UsageError

STANDARD_INPUT = "-"
FORMATS = ("text", "tsv", "csv", "jsonl", "parquet")
JSON_LINE = "\0json"
"""Name of the one column of a chunk of JSON lines: the lines as they stand."""
_SUFFIXES = {"txt": "text", "tsv": "tsv", "tab": "tsv", "csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl"}
_SUFFIXES["parquet"] = "parquet"
_TEXT_NAMES = ("text", "tweet", "texto", "sentence")
_HEAD_BYTES = 64 * 1024
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
BOM = b"\xef\xbb\xbf"
LONGEST_LINE = 64 * 2**20  # more bytes without a line break are no file of lines, and would fill the memory


@dataclass(frozen=True)
class TableFile:
    """An input, looked at. `columns` are the names of what it holds; `text` and `pair` are among them."""

    path: str
    format: str
    compression: str | None
    columns: tuple[str, ...]
    text: str
    pair: str | None
    has_header: bool
    head: bytes = b""
    """Standard input: what was read of it to look at it."""


def inspect(path: str, form: str | None = None, text: str | None = None, pair: str | None = None) -> TableFile:
    """Look at the first bytes of a file ("-": standard input); UsageError when its texts cannot be told, or are none.

    `form`: one of FORMATS, else by the file's name (standard input: lines of text). `text`, `pair`: names of the
    columns of the texts, or positions counted from 1 for a file without header; `text` is found by its usual names.
    """
    kind = form or ("text" if path == STANDARD_INPUT else _format_of(path))
    if kind not in FORMATS:
        raise UsageError(f"format {kind!r}: must be one of {', '.join(FORMATS)}")
    if kind == "parquet":
        return _inspect_parquet(path, text, pair)
    file = TableFile(path, kind, _compression(path), (), "", None, False)
    file = replace(file, head=_read_head(file))
    body = file.head.removeprefix(BOM)
    if not body.strip():
        raise UsageError(f"{name_of(path)}: empty; expected texts as {kind}")
    if path != STANDARD_INPUT:
        file = replace(file, head=b"")
    if kind == "text":
        return _inspect_lines(file, text, pair)
    return _inspect_json(file, body, text, pair) if kind == "jsonl" else _inspect_cells(file, body, text, pair)


def name_of(path: str) -> str:
    """The input as messages call it."""
    return "standard input" if path == STANDARD_INPUT else path


def _format_of(path: str) -> str:
    name = path.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".zst")
    kind = _SUFFIXES.get(name.rpartition(".")[2].lower())
    if kind is None:
        raise UsageError(f"{path}: cannot tell the format from the name; say --format {'|'.join(FORMATS)}")
    return kind


def _compression(path: str) -> str | None:
    if path == STANDARD_INPUT:
        return None
    with open_stream(path, None) as stream:
        magic = stream.read(4)
    return next((name for start, name in _MAGIC.items() if magic.startswith(start)), None)


def _read_head(file: TableFile) -> bytes:
    if file.path == STANDARD_INPUT:
        head = b""
        while len(head) < _HEAD_BYTES and (more := sys.stdin.buffer.readline(_HEAD_BYTES)):
            head += more
            if head.strip():  # a line suffices, and the next may not be there yet
                break
        return head
    try:
        with open_stream(file.path, file.compression) as stream:
            return stream.read(_HEAD_BYTES)
    except OSError as error:
        raise UsageError(f"{file.path}: cannot be unpacked as {file.compression} ({error}); it is damaged") from error


def _inspect_lines(file: TableFile, text: str | None, pair: str | None) -> TableFile:
    if pair is not None or text not in (None, "text", "1"):
        raise UsageError(f"{name_of(file.path)}: lines of text have no columns; say --format tsv (or csv, jsonl)")
    return replace(file, columns=("text",), text="text")


def _inspect_cells(file: TableFile, body: bytes, text: str | None, pair: str | None) -> TableFile:
    decoded = body.decode("utf-8", errors="replace")
    first = next(row for row in cells(file.format, io.StringIO(decoded, newline="")) if any(row))
    if all(name is None or name.isdigit() for name in (text, pair)) and text is not None:
        positions = [int(name) for name in (text, pair) if name is not None]
        if not all(1 <= position <= len(first) for position in positions):
            raise UsageError(f"{name_of(file.path)}: has {len(first)} columns; give a position from 1 to {len(first)}")
        columns = tuple(f"column_{i}" for i in range(1, len(first) + 1))
        chosen = [columns[position - 1] for position in positions]
        return replace(file, columns=columns, text=chosen[0], pair=chosen[1] if pair else None)
    names = tuple(cell.strip() for cell in first)
    if len(names) == 1 and text is None and pair is None and names[0].casefold() not in _TEXT_NAMES:
        return replace(file, columns=("text",), text="text")  # one column and no name we know: there is no header
    found = [_find(file.path, names, wanted) for wanted in ((text, pair) if pair else (text,))]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{name_of(file.path)}: two columns are named {twice[0]!r}; rename one")
    return replace(file, columns=names, text=found[0], pair=found[1] if pair else None, has_header=True)


def _find(path: str, names: Iterable[str], wanted: str | None) -> str:
    folded = {name.strip().casefold(): name for name in reversed(list(names))}
    for name in _TEXT_NAMES if wanted is None else (wanted,):
        if name.casefold() in folded:
            return folded[name.casefold()]
    shown = ", ".join(repr(name[:40]) for name in itertools.islice(names, 20))
    missing = "no column of texts found" if wanted is None else f"no column {wanted!r}"
    raise UsageError(
        f"{name_of(path)}: {missing}; its columns are {shown}; name the texts' with --text-column NAME, or by position "
        "where there is no header: --text-column 1"
    )


def _inspect_json(file: TableFile, body: bytes, text: str | None, pair: str | None) -> TableFile:
    for line in body.split(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found = [_find(file.path, value, wanted) for wanted in ((text, pair) if pair else (text,))]
            return replace(file, columns=(JSON_LINE,), text=found[0], pair=found[1] if pair else None)
    raise UsageError(f'{name_of(file.path)}: no JSON object in its first lines; expected lines like {{"text": "…"}}')


def _inspect_parquet(path: str, text: str | None, pair: str | None) -> TableFile:
    if path == STANDARD_INPUT:
        raise UsageError("Parquet cannot be read from standard input; give the file")
    try:
        with open_parquet(path) as opened:
            schema = opened.schema_arrow
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{path}: not a readable Parquet file, perhaps cut short ({error})") from error
    found = [_find(path, schema.names, wanted) for wanted in ((text, pair) if pair else (text,))]
    for name in found:
        kind = schema.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(value) or pa.types.is_large_string(value)):
            raise UsageError(f"{path}: column {name!r} is {kind}, expected text; name another with --text-column")
    return TableFile(path, "parquet", None, tuple(schema.names), found[0], found[1] if pair else None, True)


def cells(form: str, lines: Iterable[str]) -> Iterator[list[str]]:
    """The cells of lines (with their ends): CSV by RFC 4180, whose quotes may span lines, TSV never quoted."""
    if form == "csv":
        csv.field_size_limit(LONGEST_LINE)
        yield from csv.reader(lines)
    else:
        yield from (line.rstrip("\r\n").split("\t") for line in lines)
