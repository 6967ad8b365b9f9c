"""Pieces of raw files → blocks of records, and the lines that are none, with the reason.

    piece ─ bytes ▸ whole lines ▸ cells ▸ accept ─▶ Block (lists of strings) ─▶ raw_spill

A block is some megabytes of input, so that memory does not grow with the file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from twilbert import storage
from twilbert.data.tables.files import Piece, open_parquet, open_stream
from twilbert.errors import TwilbertError

BLOCK_BYTES = 8 * 2**20
_PARQUET_ROWS = 32_768
_LONGEST_LINE = 64 * 2**20  # more without a line break is no file of lines, and would fill the memory


@dataclass
class Block:
    """Records of a stretch of input: four equal lists, and what became of the lines that are not in them.

    `orig_ids` and `reply_ids` hold None where ids are to be made from the texts; `reply_texts` None in single tweets.
    `rejects` are (line within the piece counted from 0, reason). records read = len(orig_ids) + blank + len(rejects).
    """

    orig_ids: list[str | None] = field(default_factory=list)
    orig_texts: list[str] = field(default_factory=list)
    reply_ids: list[str | None] = field(default_factory=list)
    reply_texts: list[str | None] = field(default_factory=list)
    rejects: list[tuple[int, str]] = field(default_factory=list)
    blank: int = 0
    lines: int = 0  # physical lines (Parquet: rows) in this stretch

    @property
    def records(self) -> int:
        """How many records were read: kept, blank and refused ones."""
        return len(self.orig_ids) + self.blank + len(self.rejects)


def read_blocks(piece: Piece, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The records of a piece, in order; TwilbertError when the file cannot be read to its end."""
    parse = {"tsv": _tsv, "jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[piece.file.format]
    try:
        yield from parse(piece, block_bytes)
    except (OSError, pa.ArrowInvalid) as error:
        raise TwilbertError(
            f"{piece.file.path}: cannot be read to its end ({error}); it is cut short or damaged: restore it"
        ) from error


def _accept(piece: Piece) -> Callable[[Block, int, str | None, str | None, str | None, str | None], None]:
    """The function that puts one record of a file into a block, or refuses it."""
    needs_orig_id = piece.file.columns[0] is not None
    needs_reply_id = piece.file.columns[2] is not None

    def accept(
        block: Block, line: int, orig_id: str | None, tweet: str | None, reply_id: str | None, reply: str | None
    ) -> None:
        if needs_orig_id:
            orig_id = orig_id.strip() if orig_id else ""
            if not orig_id:
                block.rejects.append((line, "no ORIG_ID"))
                return
        if not reply or reply.isspace():
            reply_id = reply = None
        elif needs_reply_id:
            reply_id = reply_id.strip() if reply_id else ""
            if not reply_id:
                block.rejects.append((line, "a reply without REPLY_ID"))
                return
        block.orig_ids.append(orig_id)
        block.orig_texts.append(tweet or "")
        block.reply_ids.append(reply_id)
        block.reply_texts.append(reply)

    return accept


def _byte_blocks(piece: Piece, block_bytes: int) -> Iterator[bytes]:
    """Whole lines of a piece, about `block_bytes` at a time; the last may lack its line break."""
    file = piece.file
    if file.compression or file.format == "csv":
        with open_stream(file.path, file.compression) as stream:
            stream.read(file.data_start)
            yield from _whole_lines(file.path, lambda: stream.read(block_bytes))
        return
    system, inner = storage.filesystem(file.path)
    with system.open_input_file(inner) as opened:
        left = piece.start if piece.start == file.data_start else _next_line(opened, piece.start)
        stop = file.size if piece.stop >= file.size else _next_line(opened, piece.stop)
        opened.seek(left)

        def read() -> bytes:
            return opened.read(max(0, min(block_bytes, stop - opened.tell())))

        yield from _whole_lines(file.path, read)


def _next_line(opened: pa.NativeFile, position: int) -> int:
    """Where the first line that starts at or after `position` starts (the file's end if none does)."""
    at = position - 1
    opened.seek(at)
    while chunk := opened.read(64 * 1024):
        found = chunk.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(chunk)
    return at


def _whole_lines(path: str, read: Callable[[], bytes]) -> Iterator[bytes]:
    carry: list[bytes] = []
    carried = 0
    while chunk := read():
        end = chunk.rfind(b"\n") + 1
        if end:
            yield b"".join([*carry, chunk[:end]])
            carry, carried = [], 0
        carry.append(chunk[end:])
        carried += len(chunk) - end
        if carried > _LONGEST_LINE:
            raise TwilbertError(f"{path}: no line break in {_LONGEST_LINE >> 20} MB; expected a file of lines")
    if carried:
        yield b"".join(carry)


def _lines(data: bytes, first: int, block: Block) -> list[str | None]:
    """Lines of a byte block, decoded; None where one was refused (no UTF-8, or a NUL byte)."""
    raw = data.removesuffix(b"\n")
    block.lines = raw.count(b"\n") + 1
    if b"\0" not in raw:
        try:
            text = raw.decode()
            return list((text.replace("\r\n", "\n").removesuffix("\r") if "\r" in text else text).split("\n"))
        except UnicodeDecodeError:
            pass  # some line is not UTF-8: find out which, below
    lines: list[str | None] = []
    for number, line in enumerate(raw.split(b"\n"), start=first):
        try:
            if b"\0" in line:
                raise ValueError("a NUL byte")
            lines.append(line.decode().removesuffix("\r"))
        except ValueError as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            block.rejects.append((number, reason))
            lines.append(None)
    return lines


def _tsv(piece: Piece, block_bytes: int) -> Iterator[Block]:
    accept = _accept(piece)
    pick, first = _picker(piece), 0
    for data in _byte_blocks(piece, block_bytes):
        block = Block()
        for number, line in enumerate(_lines(data, first, block), start=first):
            if line is None:
                continue
            cells = line.split("\t")
            record = pick(cells)
            if isinstance(record, str):
                if not line or line.isspace():
                    block.blank += 1
                else:
                    block.rejects.append((number, record))
            else:
                accept(block, number, *record)
        first += block.lines
        yield block


Cells = tuple[str | None, str | None, str | None, str | None]


def _picker(piece: Piece) -> Callable[[list[str]], Cells | str]:
    """The function that takes the four cells out of a line, or says why it cannot; missing last cells are no reply."""
    width = piece.file.width
    positions = [p if isinstance(p, int) else None for p in piece.file.columns]
    needed = max(p for p in positions[:2] if p is not None) + 1
    straight = positions == [0, 1, 2, 3]

    def pick(cells: list[str]) -> Cells | str:
        n = len(cells)
        if straight and n == 4:  # by far the most common: no look-ups
            return cells[0], cells[1], cells[2], cells[3]
        if n < needed or (width is not None and n > width):
            return f"{n} columns, expected {width or needed}"
        a, b, c, d = (cells[p] if p is not None and p < n else None for p in positions)
        return a, b, c, d

    return pick


def _csv(piece: Piece, block_bytes: int) -> Iterator[Block]:
    accept, pick = _accept(piece), _picker(piece)

    def physical() -> Iterator[str]:
        for data in _byte_blocks(piece, block_bytes):
            # Bytes that are no UTF-8 travel as surrogates, so that only their own record is refused.
            text = data.removesuffix(b"\n").decode("utf-8", errors="surrogateescape")
            yield from (line + "\n" for line in text.split("\n"))

    reader = csv.reader(physical(), strict=True)
    block, size = Block(), 0
    while True:
        first = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            block.rejects.append((first, f"not RFC 4180: {error}"))
            continue
        size += sum(map(len, cells)) + 4
        record = pick(cells)
        if not any(cells):
            block.blank += 1
        elif isinstance(record, str):
            block.rejects.append((first, record))
        elif fault := _text_fault("".join(cells)):
            block.rejects.append((first, fault))
        else:
            accept(block, first, *record)
        if size > block_bytes:
            yield block
            block, size = Block(), 0
    yield block


def _text_fault(text: str) -> str | None:
    """Why a string cannot be stored as text, or None."""
    if "\0" in text:
        return "a NUL byte"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "not UTF-8"
    return None


def _jsonl(piece: Piece, block_bytes: int) -> Iterator[Block]:
    accept = _accept(piece)
    keys, first = piece.file.columns, 0
    for data in _byte_blocks(piece, block_bytes):
        block = Block()
        for number, line in enumerate(_lines(data, first, block), start=first):
            if line is None:
                continue
            if not line or line.isspace():
                block.blank += 1
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                block.rejects.append((number, "not JSON"))
                continue
            if not isinstance(value, dict):
                block.rejects.append((number, "not a JSON object"))
                continue
            values = [value.get(key) if key is not None else None for key in keys]
            for position in (0, 2):
                if type(values[position]) is int:
                    values[position] = str(values[position])
            if not all(v is None or isinstance(v, str) for v in values):
                block.rejects.append((number, "an id or text that is neither text nor (ids) a whole number"))
            elif "\\" in line and (fault := _text_fault("".join(v for v in values if v))):
                block.rejects.append((number, fault))
            else:
                accept(block, number, *values)
        first += block.lines
        yield block


def _parquet(piece: Piece, _: int) -> Iterator[Block]:
    accept = _accept(piece)
    names = [str(name) for name in piece.file.columns if name is not None]
    first = 0
    with open_parquet(piece.file.path) as opened:
        groups = list(range(piece.start, piece.stop))
        for batch in opened.iter_batches(_PARQUET_ROWS, row_groups=groups, columns=list(dict.fromkeys(names))):
            block = Block(lines=batch.num_rows)
            lists = [_strings(batch, name) for name in piece.file.columns]
            for number, values in enumerate(zip(*lists, strict=True), start=first):
                bad = [v for v in values if isinstance(v, bytes)]
                fault = "not UTF-8" if bad else _text_fault("".join(v for v in values if v))
                if fault:
                    block.rejects.append((number, fault))
                else:
                    accept(block, number, *values)
            first += batch.num_rows
            yield block


def _strings(batch: pa.RecordBatch, name: int | str | None) -> list:
    """A column as strings (None: null); bytes where a value is not UTF-8."""
    if name is None:
        return [None] * batch.num_rows
    column = batch.column(str(name))
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    try:
        return column.cast(pa.large_string()).to_pylist()
    except (UnicodeDecodeError, pa.ArrowInvalid):
        pass  # a value is not UTF-8: keep it apart, below

    def decoded(value: bytes | None) -> str | bytes | None:
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            return value

    return [decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]
