"""The layout of an input file, found by reading its first megabyte: format, packing, encoding, line ends, separator,
header and columns. What can be known to be wrong before any work begins is refused here.

Another format has its place here: a branch of `inspect` that fills a `TableFile`, and a reader in blocks.py.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from twilbert import storage
from twilbert.data.tables import cells, tass, workbook
from twilbert.data.tables.files import Source, format_of, open_parquet, open_stream, packing_of
from twilbert.errors import TwilbertError, UsageError

LONGEST_LINE = 64 * 2**20  # bytes; more without a line break are no file of lines, and would fill the memory
DELIMITERS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar", " ": "space"}
_HEAD_BYTES = 2**20
_SAMPLE_LINES = 400
_BOM = codecs.BOM_UTF8
_ASSIGNMENT = re.compile(r"[\w.$]+\s*=\s*(?=[\[{])")  # JavaScript: window.YTD.tweets.part0 = [
_EXCEL_HINT = re.compile(r"sep=(.)")


@dataclass(frozen=True)
class TableFile:
    """A file and its layout.

    `names` are those of its columns: the header's, else column_1, column_2, …; of JSON the keys of its first records.
    `columns` are the names of the columns that a command reads, None where there is no such column.
    """

    source: Source
    format: str
    size: int  # bytes on disk
    names: tuple[str, ...] = ()
    columns: tuple[str | None, ...] = ()
    compression: str | None = None
    encoding: str = "utf-8"
    bare_cr: bool = False  # lines end in CR alone
    delimiter: str = "\t"
    quoted: bool = False  # cells may be quoted by RFC 4180
    has_header: bool = False
    header_lines: int = 0
    data_start: int = 0  # bytes, as UTF-8, before the first line of data: byte-order mark, header; of a sheet, rows
    sheet: str = ""  # of a workbook
    numeric: tuple[int, ...] = ()  # columns whose cells are whole numbers in all rows of the sample
    sample: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    @property
    def name(self) -> str:
        """What messages call the file."""
        return self.source.name

    @property
    def is_divisible(self) -> bool:
        """Whether its lines can be found from any byte on, so that a file can be read in pieces."""
        stored_as_read = self.compression is None and self.encoding == "utf-8" and not self.bare_cr
        return stored_as_read and self.format in ("text", "tsv", "jsonl") and not self.quoted

    @property
    def text_bytes(self) -> int:
        """Roughly the bytes of the unpacked file: a function of the input alone, used to choose sizes."""
        return self.size * (4 if self.compression or self.format == "parquet" else 1)

    def reading(self, columns: Sequence[str | None]) -> TableFile:
        """The file with the columns that a command reads; UsageError where one name stands twice."""
        for name in filter(None, columns):
            if self.names.count(name) > 1:
                raise UsageError(f"{self.name}: two columns are named {name!r}; rename one")
            if columns.count(name) > 1:
                raise UsageError(f"{self.name}: column {name!r} is asked for twice; name each column once")
        return dataclasses.replace(self, columns=tuple(columns), sample=())


def inspect(
    source: Source,
    known: Collection[str],
    form: str | None = None,
    *,
    delimiter: str | None = None,
    quoted: bool = False,
    always_header: bool = False,
) -> TableFile | None:
    """The layout of a file; None when it holds nothing.

    `form`: its format, else by its name and first bytes. `known`: column names by which a header is recognised.
    `delimiter`, `quoted`, `always_header`: the layout of a delimited file where it is agreed on and not looked for.
    UsageError when the file is no text, no readable Parquet, or cannot be opened.
    """
    packing = None
    try:
        size = storage.size(source.path)
        if not size:
            return None
        packing = packing_of(source)
        if packing == "parquet" or form == "parquet":
            return _inspect_parquet(source, size)
        form = form or format_of(source.name) or ""
        if packing == "xlsx" or form == "xlsx":
            return _inspect_workbook(source, size, known)
        file = TableFile(source, form, size, compression=packing)
        if form == "xml":
            return dataclasses.replace(file, names=tass.NAMES, has_header=True)
        file, head, is_whole = _inspect_text(file)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source.name}: not {error.encoding} text as its first bytes say; save it as UTF-8"
        ) from error
    except OSError as error:
        unpacked = f"unpacked as {packing}" if packing else "read"
        raise UsageError(f"{source.name}: cannot be {unpacked} ({error}); restore it, or allow its reading") from error
    if not head.strip():
        return None
    if file.format in ("", "jsonl") and (assignment := _ASSIGNMENT.match(head)):
        lines, head = assignment[0].count("\n"), head[assignment.end() :]
        start = file.data_start + len(assignment[0].encode())
        file = dataclasses.replace(file, format="jsonl", header_lines=lines, data_start=start)
    if not file.format:
        file = dataclasses.replace(file, format="jsonl" if head.lstrip()[:1] in ("{", "[") else "tsv")
    if file.format == "text":
        return dataclasses.replace(file, names=("text",), delimiter="\n")
    if file.format == "jsonl":
        return _inspect_json(file, head, is_whole)
    if delimiter is None:
        delimiter, quoted = _separator(file, head, known)
    file = dataclasses.replace(file, delimiter=delimiter, quoted=quoted)
    return _inspect_cells(file, head, known, always_header)


def raw_chunks(file: TableFile, start: int, size: int) -> Iterator[bytes]:
    """The unpacked bytes of a file from `start` on, as UTF-8 with LF line ends, about `size` at a time."""
    if file.is_divisible:
        with open_stream(file.source.path, None, start) as stream:
            yield from iter(lambda: stream.read(size), b"")
        return
    with open_stream(file.source.path, file.compression) as stream:
        chunks: Iterator[bytes] = iter(lambda: stream.read(size), b"")
        if file.encoding != "utf-8":
            chunks = _as_utf8(chunks, file.encoding)
        for chunk in chunks:
            rest, start = chunk[start:], max(0, start - len(chunk))
            if rest:
                yield rest.replace(b"\r", b"\n") if file.bare_cr else rest


def text_chunks(file: TableFile, start: int, size: int) -> Iterator[str]:
    """`raw_chunks` as text, which may end anywhere in a line; bytes that are no UTF-8 become surrogates."""
    return map(codecs.getincrementaldecoder("utf-8")("surrogateescape").decode, raw_chunks(file, start, size))


def _as_utf8(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """UTF-16 as UTF-8; half a surrogate pair stays invalid, and so does half a character at the end."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    for chunk in chunks:
        yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
    if decoder.getstate()[0]:
        yield b"\xff"


def _inspect_text(file: TableFile) -> tuple[TableFile, str, bool]:
    """The file with its encoding and line ends, the text of its head, which ends a line, and whether it is all."""
    file = dataclasses.replace(file, encoding=_encoding(file, _head(file, 4096)[0]))
    head, at_end = _head(file, _HEAD_BYTES)
    lines = head.removeprefix(_BOM).strip()
    if b"\n" not in lines and b"\r" in lines:
        file, head = dataclasses.replace(file, bare_cr=True), head.replace(b"\r", b"\n")
    if b"\0" in head and _is_binary(head):
        raise UsageError(f"{file.name}: a binary file; expected UTF-8 or UTF-16 text (TSV, CSV, JSON lines) or Parquet")
    if head.startswith(_BOM):
        file = dataclasses.replace(file, data_start=len(_BOM))
    if not at_end:
        head = head[: head.rfind(b"\n") + 1] or head
    return file, head[file.data_start :].decode(errors="surrogateescape"), at_end


def _head(file: TableFile, size: int) -> tuple[bytes, bool]:
    """At least `size` first bytes of the unpacked file with a line that holds something (of an array any), and whether
    they are all.
    """
    head, has_text, has_end = bytearray(), False, False
    for chunk in raw_chunks(file, 0, _HEAD_BYTES):
        head += chunk
        has_text |= not chunk.isspace()
        has_end |= b"\n" in chunk or b"\r" in chunk or head.startswith(b"[")
        if (len(head) >= size and has_text and has_end) or len(head) > LONGEST_LINE:
            return bytes(head), False
    return bytes(head), True


def _encoding(file: TableFile, head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise UsageError(f"{file.name}: UTF-32 text; save it as UTF-8")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16-le" if head.startswith(codecs.BOM_UTF16_LE) else "utf-16-be"
    for encoding in ("utf-16-le", "utf-16-be") if b"\0" in head else ():  # without a mark: one gives Latin letters
        text = head.decode(encoding, errors="ignore")
        if 2 * sum(" " <= char < "\u0250" or char in "\t\r\n" for char in text) > len(text) and "\0" not in text:
            return encoding
    return "utf-8"


def _is_binary(head: bytes) -> bool:
    """Whether NUL bytes are no mere fault of a line: the first line has one, or most lines are no text."""
    lines = head.split(b"\n")
    return b"\0" in lines[0] or 2 * sum(b"\0" in x or "\ufffd" in x.decode(errors="replace") for x in lines) > len(
        lines
    )


def _separator(file: TableFile, head: str, known: Collection[str]) -> tuple[str, bool]:
    """The separator of columns and whether cells may be quoted, by the header and by many lines.

    A file named .tsv is never quoted, and has another separator only where a known name in its header shows it.
    """
    hint = _EXCEL_HINT.fullmatch(head.partition("\n")[0].rstrip("\r"))
    if hint:
        return hint[1], True
    own, quoted = ("\t", False) if file.format == "tsv" else (",", True)
    others = [mark for mark in DELIMITERS if mark not in (own, " ")]
    for mark in (own, *others):
        rows = _rows(head, mark, quoted or mark != own)
        if rows and len(rows[0]) > 1 and _is_known(rows[0], known):
            return mark, quoted or mark != own
    for mark in (own, *others) if quoted else ():
        rows = _rows(head, mark, quoted)
        if rows and len(rows[0]) > 1 and 10 * sum(len(row) == len(rows[0]) for row in rows) >= 9 * len(rows):
            return mark, quoted
    return own, quoted


def _rows(head: str, delimiter: str, quoted: bool) -> list[list[str]]:
    """The first rows that hold something."""
    return [row for row in _split(head, delimiter, quoted).rows if any(map(str.strip, row))]


def _split(head: str, delimiter: str, quoted: bool) -> cells.Split:
    lines = [line.removesuffix("\r") for line in head.split("\n", _SAMPLE_LINES)[:_SAMPLE_LINES]]
    return cells.split_lines(lines, delimiter, quoted)


def _is_known(row: Sequence[str], known: Collection[str]) -> bool:
    names = {name.casefold() for name in known if not name.isdigit()}  # a number is a position
    return not names.isdisjoint(cell.strip().casefold() for cell in row)


def _inspect_cells(file: TableFile, head: str, known: Collection[str], always_header: bool) -> TableFile:
    """The file with its header, its columns and a sample of its rows."""
    split = _split(head, file.delimiter, file.quoted)
    hint = int(file.quoted and bool(_EXCEL_HINT.fullmatch(file.delimiter.join(split.rows[0]))))
    at = [i for i, row in enumerate(split.rows) if i >= hint and any(map(str.strip, row))]
    if not at:
        raise UsageError(f"{file.name}: no rows in its first {len(head):,} characters; is it a table?")
    rows = [split.rows[i] for i in at]
    has_header = always_header or _is_known(rows[0], known) or looks_like_header(rows)
    width = len(rows[0]) if has_header else Counter(map(len, rows)).most_common(1)[0][0]
    names = [f"column_{i}" for i in range(1, width + 1)]
    lines = hint
    if has_header:
        names = [cell.strip() or name for cell, name in zip(rows[0], names, strict=True)]
        lines = [*split.numbers, split.lines][at[0] + 1]
    header = "".join(f"{line}\n" for line in head.split("\n", lines)[:lines])
    data = [row for row in rows[has_header:] if len(row) == width]
    numeric = tuple(i for i in range(width) if len(data) > 1 and all(row[i].strip().isdigit() for row in data))
    return dataclasses.replace(
        file,
        names=tuple(names),
        has_header=has_header,
        header_lines=lines,
        data_start=file.data_start + len(header.encode(errors="surrogateescape")),
        numeric=numeric,
        sample=tuple(rows),
    )


def looks_like_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names columns: it holds no number, where every row below it has one in the same column."""
    first, below = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    if not below or any(cell.strip().isdigit() for cell in first):
        return False
    return any(cell.strip() and all(row[i].strip().isdigit() for row in below) for i, cell in enumerate(first))


def _inspect_json(file: TableFile, head: str, is_whole: bool) -> TableFile:
    """The keys of the first records: of lines that are objects each, or of values that span lines (an array)."""
    is_array = head.lstrip().startswith("[")
    lines = [] if is_array else head.split("\n", _SAMPLE_LINES)[:_SAMPLE_LINES]
    values = [_json_object(line) for line in lines if line.strip()]
    objects = [value for value in values if value is not None]
    is_lines = 2 * len(objects) >= len(values) or any(value is not None for value in values[:2])
    if is_array or not is_lines:
        file, objects = dataclasses.replace(file, format="json"), []
        with contextlib.suppress(TwilbertError):  # the head may end within a value
            for value, _, _ in itertools.islice(cells.json_values(file.name, iter([head])), _SAMPLE_LINES):
                objects += [value] if isinstance(value, dict) else []
    if not objects and is_whole:  # else its first value may go on after them
        raise UsageError(
            f'{file.name}: no JSON object in its first lines; expected lines like {{"orig_id": "1", "orig_text": …}} '
            'or {"text": …}'
        )
    names = dict.fromkeys(name for value in objects for name in value)
    return dataclasses.replace(file, names=tuple(names), has_header=True)


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _inspect_parquet(source: Source, size: int) -> TableFile:
    try:
        with open_parquet(source.path) as opened:
            schema = opened.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{source.name}: not a readable Parquet file, perhaps cut short ({error})") from error
    types = tuple(field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in schema)
    return TableFile(source, "parquet", size, tuple(schema.names), has_header=True, sample=types)


def _inspect_workbook(source: Source, size: int, known: Collection[str]) -> TableFile | None:
    sheet, cells, start = workbook.header(source, lambda row: _is_known(row, known))
    names = tuple(cell.strip() or f"column_{i}" for i, cell in enumerate(cells, 1))
    return TableFile(source, "xlsx", size, names, has_header=True, data_start=start, sheet=sheet) if sheet else None


def column_list(file: TableFile) -> str:
    """The file's own column names for messages; of a file without header, its first row."""
    names = file.names if file.has_header or not file.sample else file.sample[0]
    return ", ".join(repr(name if len(name) <= 40 else name[:40] + "…") for name in names[:20])
