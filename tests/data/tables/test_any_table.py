"""The reader on generated tables: rows in = rows out + rows refused by line, and never a shifted column."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twilbert.data.tables import blocks, layout
from twilbert.data.tables.files import Source

HEADER = ["n", "text", "label"]
PLAIN, SPECIAL = "ab 1ñ😀", '"""\n\n\r,;\t|\'\\\u2028\x85\x0b'
COUNTS = pytest.mark.parametrize("count", [60, pytest.param(2_000, marks=pytest.mark.slow)])  # in all 300, and 10,000
PLAIN_TEXTS = st.text(PLAIN, max_size=10)
ANY_TEXTS = st.text(st.sampled_from(PLAIN + SPECIAL), max_size=10) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff"), max_size=10
)
BLOCKS = st.integers(1, 60) | st.just(2**20)
END = st.sampled_from(["\n", "\r\n"])


def check(count: int, **strategies: Any) -> Callable[[Callable[..., None]], None]:
    """Run a function on `count` examples, always the same ones."""

    def run(function: Callable[..., None]) -> None:
        checks = list(HealthCheck)
        options = settings(
            max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=checks
        )
        options(given(**strategies)(function))()

    return run


def table(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[list[str]]]:
    """Rows of 2 to 8 texts, numbered."""
    cells = st.lists(st.tuples(texts, st.sampled_from("NP")), min_size=2, max_size=8)
    return cells.map(lambda rows: [[str(n), *row] for n, row in enumerate(rows)])


def read(path: Path, block_bytes: int, piece_bytes: int = 2**40) -> tuple[list[list[str]], dict[int, str], list[int]]:
    """Rows, faults by row, and the line of each row from 0."""
    file = layout.inspect(Source(str(path), str(path)), ["text"])
    assert file is not None and list(file.names) == HEADER
    rows, faults, numbers, first = [], {}, [], 0
    for piece in blocks.cut(file, piece_bytes):
        before = first
        for block in blocks.read_piece(piece, block_bytes):
            faults |= {len(rows) + row: reason for row, reason in block.faults.items()}
            rows += [list(row) for row in block.records(file.names)]
            numbers += [before + number for number in block.numbers]
            first += block.lines
    return rows, faults, list(numbers)


@COUNTS
def test_written_rows_are_read(count: int, tmp_path: Path):
    path = tmp_path / "t.csv"

    @check(
        count, rows=table(ANY_TEXTS), delimiter=st.sampled_from(",;\t|"), end=END, block=BLOCKS,
        quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    )  # fmt: skip
    def _(rows, delimiter, end, block, quoting, encoding):
        stream = io.StringIO(newline="")
        csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows([HEADER, *rows])
        path.write_bytes(stream.getvalue().encode(encoding))
        got, faults, _ = read(path, block)
        wanted = [[cell.replace("\r\n", "\n") for cell in row] for row in rows]
        assert not faults and got == wanted


@COUNTS
def test_a_stray_quote_costs_no_other_row(count: int, tmp_path: Path):
    path = tmp_path / "t.csv"

    @check(count, rows=table(PLAIN_TEXTS.map("x{}".format)), where=st.integers(0), at=st.integers(0), block=BLOCKS)
    def _(rows, where, at, block):
        lines = [",".join(row) for row in rows]
        where %= len(lines)
        at %= len(lines[where])
        lines[where] = lines[where][:at] + '"' + lines[where][at:]
        path.write_text("\n".join([",".join(HEADER), *lines]))
        got, faults, numbers = read(path, block)
        assert numbers == list(range(len(rows))) and set(faults) <= {where}
        assert got[:where] + got[where + 1 :] == rows[:where] + rows[where + 1 :]


@COUNTS
def test_lines_of_tsv_wherever_it_is_cut_into_pieces(count: int, tmp_path: Path):
    path = tmp_path / "t.tsv"
    cells = st.lists(st.text(PLAIN + '",;', max_size=10), min_size=2, max_size=4)

    @check(count, rows=st.lists(cells, min_size=1, max_size=8), end=END, piece=BLOCKS, block=BLOCKS)
    def _(rows, end, piece, block):
        path.write_bytes((end.join(["\t".join(row) for row in [HEADER, *rows]]) + end).encode())
        got, faults, _ = read(path, block, piece)
        assert [row for number, row in enumerate(got) if number not in faults] == [r for r in rows if len(r) == 3]
        assert len(got) == len(rows) and len(faults) == sum(len(row) != 3 for row in rows)


@COUNTS
def test_a_file_cut_short_anywhere_loses_its_end_alone(count: int, tmp_path: Path):
    @check(
        count, rows=table(PLAIN_TEXTS), form=st.sampled_from(["csv", "tsv"]), end=END, at=st.integers(0), block=BLOCKS,
        encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    )  # fmt: skip
    def _(rows, form, end, at, block, encoding):
        separator = "," if form == "csv" else "\t"
        path = tmp_path / f"t.{form}"
        whole = end.join(separator.join(row) for row in [HEADER, *rows]).encode(encoding)
        head = len((separator.join(HEADER) + end).encode(encoding))
        path.write_bytes(whole[: head + at % (len(whole) - head + 1)])
        got, faults, numbers = read(path, block)
        assert numbers == list(range(len(got))) and set(faults) <= {len(got) - 1} and len(got) <= len(rows)
        assert got[:-1] == rows[: max(0, len(got) - 1)]
        if got and len(got) - 1 not in faults:
            last, whole_row = got[-1], rows[len(got) - 1]
            assert last[:-1] == whole_row[:-1] and whole_row[-1].startswith(last[-1])


@COUNTS
def test_json_lines_that_are_none_are_refused_by_line(count: int, tmp_path: Path):
    path = tmp_path / "t.jsonl"
    records = table(ANY_TEXTS).map(lambda rows: [dict(zip(HEADER, row, strict=True)) for row in rows])
    junk = st.sampled_from([b"{", b"[1]", b'{"text": "\xff"}', b"3", b'"a"', b"{}}", b'{"n": 1', b"nan"])

    @check(
        count, rows=records, junk=st.lists(st.tuples(st.integers(0, 8), junk), max_size=4), escaped=st.booleans(),
        end=END, piece=BLOCKS, block=BLOCKS,
    )  # fmt: skip
    def _(rows, junk, escaped, end, piece, block):
        lines: list[Any] = list(rows)
        for at, line in junk:
            lines.insert(1 + at % len(lines), line)
        data = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=escaped).encode() for line in lines]
        path.write_bytes(b"".join(line + end.encode() for line in data))
        got, faults, numbers = read(path, block, piece)
        assert numbers == list(range(len(lines)))
        assert set(faults) == {number for number, line in enumerate(lines) if isinstance(line, bytes)}
        sound = [row for number, row in enumerate(got) if number not in faults]
        assert sound == [list(row.values()) for row in rows]
