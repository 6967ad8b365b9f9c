"""The lines of a file, or of the part of it that starts in a range of bytes, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

from twilbert.data.tables.files import open_stream
from twilbert.data.tables.layout import LONGEST_LINE, TableFile, raw_chunks
from twilbert.errors import TwilbertError


def line_blocks(file: TableFile, first: int, stop: int, block_bytes: int) -> Iterator[tuple[list[str], bool]]:
    """Lines that start in bytes [first, stop), without their ends, and whether some hold a NUL or bytes that are no
    UTF-8, which become surrogates. TwilbertError for a line of 64 MB.
    """
    for data in _whole_lines(file, first, stop, block_bytes):
        data = data.removesuffix(b"\n")
        try:
            text, is_suspect = data.decode(), b"\0" in data
        except UnicodeDecodeError:
            text, is_suspect = data.decode(errors="surrogateescape"), True
        if "\r" in text:
            text = text.replace("\r\n", "\n").removesuffix("\r")
        yield text.split("\n"), is_suspect


def _whole_lines(file: TableFile, start: int, stop: int, block_bytes: int) -> Iterator[bytes]:
    """Whole lines, about `block_bytes` at a time; the last may lack its line break."""
    left = 2**62
    if file.is_divisible:
        start = start if start == file.data_start else _next_line(file, start)
        left = (file.size if stop >= file.size else _next_line(file, stop)) - start
    if left <= 0:
        return
    carry: list[bytes] = []
    carried = 0
    for chunk in raw_chunks(file, start, block_bytes):
        chunk, left = chunk[:left], left - len(chunk)
        end = chunk.rfind(b"\n") + 1
        if end:
            yield b"".join([*carry, chunk[:end]])
            carry, carried = [], 0
        carry.append(chunk[end:])
        carried += len(chunk) - end
        if carried > LONGEST_LINE:
            raise TwilbertError(f"{file.name}: no line break in {LONGEST_LINE >> 20} MB; expected a file of lines")
        if left <= 0:
            break
    if carried:
        yield b"".join(carry)


def _next_line(file: TableFile, position: int) -> int:
    """Where the first line that starts at or after `position` starts (the file's end if none does)."""
    at = position - 1
    with open_stream(file.source.path, None, at) as stream:
        while chunk := stream.read(64 * 1024):
            end = chunk.find(b"\n")
            if end >= 0:
                return at + end + 1
            at += len(chunk)
    return at
