"""Text → cells or JSON values. A quote that is not closed costs its own line, never the lines after it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from twilbert.errors import TwilbertError

LONGEST_CELL = 2**20  # characters; a quote that is still open after more is a stray one
LONGEST_VALUE = 64 * 2**20
STRAY_QUOTE = 'a stray quote (a quoted cell needs a closing quote, and quotes inside it doubled: "")'
_WHITE = " \t\r\n"
_END = " "


class Split(NamedTuple):
    """Rows of cells, the line at which each begins, the faults of some (by row), and how many lines they are."""

    rows: list[list[str]]
    numbers: Sequence[int]
    faults: dict[int, str]
    lines: int


class _StrayQuoteError(Exception):
    pass


def split_lines(
    lines: Sequence[str],
    delimiter: str,
    quoted: bool,
    *,
    width: int | None = None,
    numeric: Sequence[int] = (),
    at_end: bool = True,
) -> Split:
    """Split lines into cells; with `quoted` by RFC 4180, where a quoted cell may span lines.

    `at_end`: no more lines follow; else those of a record that is still open are left for the next call. `width` and
    `numeric`: the cells of a row, and which are whole numbers, as far as they are known. A record whose every line is
    such a row by itself was joined by two stray quotes; it counts as one that never ends.
    """
    if not quoted:
        return Split([line.split(delimiter) for line in lines], range(len(lines)), {}, len(lines))
    rows: list[list[str]] = []
    numbers: list[int] = []
    faults: dict[int, str] = {}
    at = 0
    while at < len(lines):
        line, stop = lines[at], at + 1
        row: list[str] | None
        if '"' in line:
            try:
                row, stop = _record(lines, at, delimiter, at_end)
                if row is None:
                    break
                if stop > at + 1 and width is not None:
                    parts = [part.split(delimiter) for part in lines[at:stop]]
                    if len(row) != width or all(_is_row(cells, width, numeric) for cells in parts):
                        raise _StrayQuoteError
            except _StrayQuoteError:
                faults[len(rows)] = STRAY_QUOTE
                row, stop = line.split(delimiter), at + 1
        else:
            row = line.split(delimiter)
        rows.append(row)
        numbers.append(at)
        at = stop
    return Split(rows, numbers, faults, at)


def _is_row(cells: list[str], width: int, numeric: Sequence[int]) -> bool:
    return len(cells) == width > 1 and bool(numeric) and all(cells[i].strip('" ').isdigit() for i in numeric)


def _record(lines: Sequence[str], at: int, delimiter: str, at_end: bool) -> tuple[list[str] | None, int]:
    """The cells of the record that begins at line `at`, and the line after it; None: its end is not there yet."""
    cells: list[str] = []
    opened: list[str] | None = None
    size = 0
    line = lines[at]
    all_quoted = line[1:-1].split(f'"{delimiter}"')
    if line.startswith('"') and line.endswith('"') and line.count('"') == 2 * len(all_quoted):
        return all_quoted, at + 1  # what _scan would return, faster
    for number in range(at, len(lines)):
        opened = _scan(lines[number], delimiter, cells, opened)
        if opened is None:
            return cells, number + 1
        size += len(lines[number])
        if size > LONGEST_CELL:
            raise _StrayQuoteError
    if at_end:
        raise _StrayQuoteError
    return None, at


def _scan(line: str, delimiter: str, cells: list[str], opened: list[str] | None) -> list[str] | None:
    """Append a line's cells to `cells`; `opened`, and what is returned, are the lines of a quoted cell still open."""
    at, end = 0, len(line)
    while True:
        if opened is None and line.startswith('"', at):
            opened, at = [], at + 1
        if opened is None:
            stop = line.find(delimiter, at)
            stop = end if stop < 0 else stop
            cells.append(line[at:stop])
        else:
            stop = line.find('"', at)
            while stop >= 0 and line.startswith('""', stop):
                stop = line.find('"', stop + 2)
            if stop < 0:
                opened.append(line[at:])
                return opened
            opened.append(line[at:stop])
            cells.append("\n".join(opened).replace('""', '"'))
            opened, stop = None, stop + 1
            if stop < end and line[stop] != delimiter:
                raise _StrayQuoteError
        if stop == end:
            return None
        at = stop + 1


def json_values(name: str, chunks: Iterator[str]) -> Iterator[tuple[Any, str, int]]:
    """The values of a JSON array, or those that stand one after the other: each value, its text, its line from 0.

    TwilbertError naming the line where the text is no JSON: what follows it cannot be told apart.
    """
    decoder = json.JSONDecoder()
    text, at, line, depth, enough = "", 0, 0, 0, 0
    skipped = _WHITE + ",[];"
    for chunk in itertools.chain(chunks, (_END,)):
        text, at = text[at:] + chunk, 0
        if len(text) < enough and chunk is not _END:
            continue  # a long value is tried again when its text has doubled
        enough = 0
        while True:
            start = at
            while at < len(text) and text[at] in skipped:
                at += 1
            line += text.count("\n", start, at)
            depth += text.count("[", start, at) - text.count("]", start, at)
            if at == len(text):
                break
            try:
                value, stop = decoder.raw_decode(text, at)
            except RecursionError:
                raise TwilbertError(f"{name}: line {line + 1}: JSON nested too deeply") from None
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(text) - 8
                if is_cut and len(text) - at < LONGEST_VALUE:
                    enough = 2 * (len(text) - at)
                    break
                if is_cut:
                    raise TwilbertError(
                        f"{name}: line {line + 1}: a JSON value of over {LONGEST_VALUE >> 20} MB; write one to a line"
                    ) from None
                raise TwilbertError(
                    f"{name}: line {line + text.count(chr(10), at, error.pos) + 1}: {error.msg}; not JSON"
                ) from None
            if stop == len(text) and text[at] not in '{["':
                break  # a number may go on
            yield value, text[at:stop], line
            line += text.count("\n", at, stop)
            at = stop
    if text[at:].strip(skipped) or depth > 0:
        raise TwilbertError(f"{name}: line {line + 1}: JSON that is cut short; restore the file")
