"""Excel workbooks (.xlsx) → rows of cells as text, by openpyxl, which the extra xlsx installs.

A whole number is written without a decimal point (1.0 is 1), whatever its format; an empty cell is an empty text.
"""

from __future__ import annotations

import contextlib
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from xml.etree.ElementTree import ParseError

from twilbert import storage
from twilbert.data.tables.files import REMEDY, Source
from twilbert.errors import UsageError

_MOST_DIGITS = 10**15  # spreadsheets keep 15 digits of a number
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError, IndexError, AttributeError, EOFError, ParseError,
    NotImplementedError,
)  # fmt: skip


def header(source: Source, is_known: Callable[[Sequence[str]], bool]) -> tuple[str, list[str], int]:
    """The sheet that holds the rows, the names of its columns, and the row after them, from 0; "" where none has any.

    The sheet is the one that has rows; of several, the one whose first row is of known names. UsageError when there
    is no such one, or the file is no workbook.
    """
    firsts: dict[str, tuple[list[str], int]] = {}
    with _opened(source) as book:
        for sheet in book.worksheets:
            for number, cells, _ in _rows(source, sheet):
                if any(cells):
                    firsts[sheet.title] = cells, number + 1
                    break
    chosen = list(firsts) if len(firsts) < 2 else [title for title, (cells, _) in firsts.items() if is_known(cells)]
    if not firsts:
        return "", [], 0
    if len(chosen) != 1:
        raise UsageError(
            f"{source.name}: {len(firsts)} sheets hold something ({', '.join(firsts)}); save the one with the rows as "
            "a workbook of its own, or as CSV"
        )
    return chosen[0], *firsts[chosen[0]]


def rows(source: Source, sheet: str, start: int) -> Iterator[tuple[int, list[str], dict[int, str]]]:
    """Each row from `start` on: its number from 0, its cells, and which of them cannot be used, and why."""
    with _opened(source) as book:
        for number, cells, faults in _rows(source, book[sheet]):
            if number >= start:
                yield number, cells, faults


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[Any]:
    system, inner = storage.filesystem(source.path)
    with system.open_input_file(inner) as stream:
        with _explained(source):
            parts = zipfile.ZipFile(stream).namelist()
            if not any(part.startswith("xl/") for part in parts):
                raise KeyError("no part of a workbook in it")
        try:
            import openpyxl
        except ImportError as error:
            raise UsageError(
                f'{source.name}: an Excel workbook, which needs openpyxl: pip install "twilbert[xlsx]"; or save it as '
                "CSV"
            ) from error
        warnings.filterwarnings("ignore", module="openpyxl")  # of formats and validations that are not read
        with _explained(source):
            book = openpyxl.load_workbook(stream, read_only=True, data_only=True)
        with contextlib.closing(book):
            yield book


@contextlib.contextmanager
def _explained(source: Source) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise UsageError(
            f"{source.name}: a zip archive or damaged Excel workbook, which cannot be read ({error}); {REMEDY}"
        ) from error


def _rows(source: Source, sheet: Any) -> Iterator[tuple[int, list[str], dict[int, str]]]:
    """Each row of a sheet without the empty cells at its end."""
    sheet.reset_dimensions()  # which other programs write wrongly
    with _explained(source):
        for number, row in enumerate(sheet.iter_rows()):
            cells, faults = [], {}
            for at, cell in enumerate(row):
                text, fault = _text(cell)
                cells.append(text)
                if fault:
                    faults[at] = fault
            while cells and not cells[-1]:
                cells.pop()
            yield number, cells, faults


def _text(cell: Any) -> tuple[str, str | None]:
    """A cell as text, and why it cannot be used."""
    from openpyxl.utils.escape import unescape

    value = cell.value
    if value is None:
        return "", None
    if isinstance(value, str):
        return unescape(value), f"the error value {value}" if cell.data_type == "e" else None
    if isinstance(value, bool):
        return str(value).lower(), None
    if not isinstance(value, int | float):
        return str(value), None
    fault = "a number of over 15 digits, rounded by the spreadsheet" if abs(value) >= _MOST_DIGITS else None
    return str(int(value)) if float(value).is_integer() else repr(value), fault
