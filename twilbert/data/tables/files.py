"""Raw input files: which there are, what each one holds, and how they are cut into pieces of work.

All that can be known to be wrong before any work begins is found here: a missing file, a binary one, columns of
other names. Formats: TSV (never quoted), CSV (RFC 4180), JSON lines, Parquet; text may be gzip or zstd.
"""

from __future__ import annotations

import csv
import glob
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from twilbert import storage
from twilbert.errors import UsageError

COLUMNS = ("orig_id", "orig_text", "reply_id", "reply_text")
_HEAD_BYTES = 64 * 1024
_FORMATS = {"tsv": "tsv", "txt": "tsv", "csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet"}
_SUFFIXES = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RawFile:
    """One input file, looked at: `columns[i]` is the position (TSV, CSV) or name of COLUMNS[i], None: there is none."""

    path: str
    format: str
    compression: str | None
    columns: tuple[int | str | None, ...]
    width: int | None  # TSV, CSV: cells a line may have; None: any number
    data_start: int  # bytes before the first line of data: byte-order mark, header
    header_lines: int
    size: int  # bytes on disk

    @property
    def makes_ids(self) -> bool:
        """Whether ids must be made from the texts, because the file has none."""
        return self.columns[0] is None or (self.columns[3] is not None and self.columns[2] is None)

    @property
    def text_bytes(self) -> int:
        """Roughly how many bytes the file holds when unpacked: a pure function of the input, used to choose sizes."""
        return self.size * (4 if self.compression or self.format == "parquet" else 1)


@dataclass(frozen=True)
class Piece:
    """Consecutive records: those that start in bytes [start, stop) of a text, or Parquet row groups [start, stop)."""

    file: RawFile
    start: int
    stop: int
    first_row: int = 0  # Parquet: rows before `start`


def find(inputs: Sequence[str]) -> list[str]:
    """Paths of all files that files, folders and globs name, in a fixed order; UsageError for one that names none."""
    found: list[str] = []
    for name in inputs:
        path = storage.absolute(name)
        if storage.is_folder(path):
            inside = _in_folder(path)
            if not inside:
                raise UsageError(f"{name}: no .tsv, .csv, .jsonl or .parquet file in this folder")
            found += inside
        elif storage.exists(path):
            found.append(path)
        elif any(mark in name for mark in "*?[") and storage.is_local(path):
            every = glob.glob(path, recursive=True)  # noqa: PTH207 (Path.glob knows no absolute patterns)
            matched = sorted(match for match in every if not storage.is_folder(match))
            if not matched:
                raise UsageError(f"{name}: no file matches")
            found += matched
        else:
            raise UsageError(f"{name}: no such file or folder")
    return list(dict.fromkeys(found))


def _in_folder(path: str) -> list[str]:
    """Files of known formats under a folder; hidden ones and those that start with _ (_SUCCESS) are no data."""
    system, inner = storage.filesystem(path)
    names = []
    for info in system.get_file_info(fs.FileSelector(inner, recursive=True)):
        below = info.path[len(inner) :].strip("/")
        hidden = any(part.startswith((".", "_")) for part in below.split("/"))
        if info.type == fs.FileType.File and not hidden and _suffix(below) in _FORMATS:
            names.append(below)
    return [storage.join(path, name) for name in sorted(names)]


def _suffix(path: str) -> str:
    for packed in _SUFFIXES:
        path = path.removesuffix(packed)
    return path.rsplit("/", 1)[-1].rpartition(".")[2].lower()


def open_stream(path: str, compression: str | None) -> BinaryIO:
    """A stream of a file's unpacked bytes; a truncated one raises OSError while it is read."""
    system, inner = storage.filesystem(path)
    stream = system.open_input_stream(inner, compression=None)
    # Arrow's streams are file objects in all that is used here.
    return cast(BinaryIO, pa.CompressedInputStream(stream, compression) if compression else stream)


def inspect(path: str, renamed: Mapping[str, str] | None = None) -> RawFile | None:
    """Look at the first bytes of a file; None when it holds nothing.

    `renamed` maps COLUMNS to the file's own names, or to positions counted from 1 for a file without header.
    UsageError when it is no text, no readable Parquet, or its columns cannot be told.
    """
    renamed = dict(renamed or {})
    size = storage.size(path)
    if size == 0:
        return None
    with open_stream(path, None) as stream:
        magic = stream.read(4)
    kind = "parquet" if magic == b"PAR1" else _FORMATS.get(_suffix(path), "tsv")
    if kind == "parquet":
        return _inspect_parquet(path, renamed, size)
    compression = next((name for start, name in _MAGIC.items() if magic.startswith(start)), None)
    try:
        with open_stream(path, compression) as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: cannot be unpacked as {compression} ({error}); the file is damaged") from error
    if b"\0" in head and _looks_binary(head):
        raise UsageError(f"{path}: a binary file (or UTF-16 text); expected UTF-8 TSV, CSV, JSON lines, or Parquet")
    skipped = len(_BOM) if head.startswith(_BOM) else 0
    body = head[skipped:]
    if not body.strip():
        return None
    if kind == "jsonl":
        return RawFile(path, kind, compression, _json_columns(path, body, renamed), None, skipped, 0, size)
    columns, width, header_lines = _delimited_columns(path, kind, body, renamed)
    for _ in range(header_lines):
        end = head.find(b"\n", skipped)
        skipped = len(head) if end < 0 else end + 1
    if not compression and skipped == size:  # a header and nothing under it
        return None
    return RawFile(path, kind, compression, columns, width, skipped, header_lines, size)


def _looks_binary(head: bytes) -> bool:
    """Whether NUL bytes are no mere fault of a line: the first line has one, or most lines are no text."""
    lines = head.split(b"\n")

    def faulty(line: bytes) -> bool:
        return b"\0" in line or "\ufffd" in line.decode(errors="replace")

    return b"\0" in lines[0] or 2 * sum(map(faulty, lines)) > len(lines)


def _inspect_parquet(path: str, renamed: dict[str, str], size: int) -> RawFile:
    try:
        with open_parquet(path) as opened:
            schema = opened.schema_arrow
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{path}: not a readable Parquet file, perhaps cut short ({error})") from error
    columns = cast(tuple[str | None, ...], _by_name(path, schema.names, renamed))
    for column, name in zip(COLUMNS, columns, strict=True):
        if name is None:
            continue
        kind = schema.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        textual = pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_binary(value)
        if not textual and not (column.endswith("id") and pa.types.is_integer(value)):
            lost = " (floats have lost digits of the ids)" if pa.types.is_floating(value) else ""
            raise UsageError(f"{path}: column {name!r} is {kind}, expected text{lost}; store it as text")
    return RawFile(path, "parquet", None, columns, None, 0, 0, size)


def _by_name(path: str, names: Sequence[str], renamed: Mapping[str, str]) -> tuple[str | None, ...]:
    """The file's own names of COLUMNS; UsageError that lists what was found when there is no tweet text among them."""
    folded = {name.strip().casefold(): name for name in reversed(names)}
    columns = tuple(folded.get(renamed.get(column, column).casefold()) for column in COLUMNS)
    missing = [f"{c}={renamed[c]}" for c, got in zip(COLUMNS, columns, strict=True) if c in renamed and got is None]
    if columns[1] is None or missing:
        unknown = f"--columns {' '.join(missing)}: no such column; " if missing else ""
        raise UsageError(
            f"{path}: {unknown}columns found: {', '.join(repr(_short(n)) for n in names)}; expected ORIG_ID, "
            "ORIG_TEXT, REPLY_ID, REPLY_TEXT; name yours, e.g. --columns orig_text=parent reply_text=child, or by "
            "position where there is no header: orig_id=1 orig_text=2"
        )
    return columns


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:40] + "…"


def _json_columns(path: str, body: bytes, renamed: dict[str, str]) -> tuple[str | None, ...]:
    """Columns by the keys of the first line that is a JSON object; its reply keys may be missing, as its reply may."""
    for line in body.split(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            names = [str(name) for name in value]
            reply_keys = {renamed.get(c, c) for c in ("reply_id", "reply_text")}
            columns = _by_name(path, [*names, *(key for key in sorted(reply_keys) if key not in names)], renamed)
            has_reply_id = columns[2] in names or columns[3] not in names
            return columns if has_reply_id else (*columns[:2], None, columns[3])
    raise UsageError(
        f'{path}: no JSON object in its first lines; expected lines like {{"orig_id": "1", "orig_text": …}}'
    )


def _delimited_columns(
    path: str, kind: str, body: bytes, renamed: dict[str, str]
) -> tuple[tuple[int | None, ...], int | None, int]:
    """Positions of COLUMNS in a TSV or CSV file, cells a line may have, physical lines of its header (0: none)."""
    text = body.decode("utf-8", errors="replace")
    rows: Iterator[list[str]]
    if kind == "csv":
        reader = csv.reader(io.StringIO(text, newline=""))
        rows = (row for row in reader)
    else:
        reader = None
        rows = (line.rstrip("\r").split("\t") for line in text.split("\n"))
    sample: list[list[str]] = []
    first_end = 0
    for number, row in enumerate(rows, start=1):
        if any(cell.strip() for cell in row):
            sample.append(row)
            if len(sample) == 1:
                first_end = reader.line_num if reader else number
        if len(sample) == 20:
            break
    names = [cell.strip() for cell in sample[0]]
    folded = {name.casefold() for name in names}
    if renamed.get("orig_text", "orig_text").casefold() in folded:
        found = _by_name(path, names, renamed)
        return tuple(None if name is None else names.index(name) for name in found), len(names), first_end
    if renamed and all(position.isdigit() for position in renamed.values()):
        positions = tuple(int(renamed[c]) - 1 if c in renamed else None for c in COLUMNS)
        if positions[1] is None or min(p for p in positions if p is not None) < 0:
            raise UsageError("--columns: positions count from 1, and orig_text must be among them")
        return positions, None, 0
    # Without a header the original's order is taken, but only where the first column really looks like ids.
    like_ours = sum(len(row) in (2, 4) and all(_like_id(cell) for cell in row[:3:2]) for row in sample)
    if not renamed and 2 * like_ours > len(sample):
        return (0, 1, 2, 3), 4, 0
    _by_name(path, names, renamed)  # raises: these are columns of other names
    raise AssertionError("a file whose columns are known came here")


def _like_id(cell: str) -> bool:
    """Whether a cell may be an id: one word that holds a digit (an empty one is a missing reply's)."""
    cell = cell.strip()
    return not cell or (len(cell.split()) == 1 and any(char.isdigit() for char in cell))


def cut(file: RawFile, piece_bytes: int) -> list[Piece]:
    """Pieces of about `piece_bytes`; packed files and CSV, whose quotes may span lines, are one piece each."""
    if file.format == "parquet":
        return _cut_parquet(file, piece_bytes)
    if file.compression or file.format == "csv":
        return [Piece(file, file.data_start, file.size)]
    starts = range(file.data_start, max(file.size, file.data_start + 1), piece_bytes)
    return [Piece(file, start, min(start + piece_bytes, file.size)) for start in starts]


def open_parquet(path: str) -> pq.ParquetFile:
    """A Parquet file of any storage; where its pages have checksums, they are compared as they are read."""
    system, inner = storage.filesystem(path)
    return pq.ParquetFile(inner, filesystem=system, page_checksum_verification=True)


def _cut_parquet(file: RawFile, piece_bytes: int) -> list[Piece]:
    with open_parquet(file.path) as opened:
        footer: Any = opened.metadata
        pieces, start, first_row, held, rows = [], 0, 0, 0, 0
        for group in range(footer.num_row_groups):
            held += footer.row_group(group).total_byte_size
            rows += footer.row_group(group).num_rows
            if held >= piece_bytes or group == footer.num_row_groups - 1:
                pieces.append(Piece(file, start, group + 1, first_row))
                start, first_row, held = group + 1, rows, 0
    return pieces
