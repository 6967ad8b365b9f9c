"""The reader on generated tables: rows in = rows out + rows refused by line, and never a shifted column."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest

from twilbert.data.tables import blocks, layout
from twilbert.data.tables.files import Source

HEADER = ["n", "text", "label"]
PLAIN, SPECIAL = "ab 1ñ😀", '"""\n\n\r,;\t|\'\\\u2028\x85\x0b'
COUNTS = [300, pytest.param(10_000, marks=pytest.mark.slow)]


def read(path: Path, block_bytes: int) -> tuple[list[list[str]], dict[int, str], list[int]]:
    """Rows, faults by row, and the line of each row from 0."""
    file = layout.inspect(Source(str(path), str(path)), ["text"])
    assert file is not None and list(file.names) == HEADER
    rows, faults, numbers, first = [], {}, [], 0
    for block in blocks.read_piece(blocks.cut(file, 2**40)[0], block_bytes):
        faults |= {len(rows) + row: reason for row, reason in block.faults.items()}
        rows += [list(row) for row in block.records(file.names)]
        numbers += [first + number for number in block.numbers] if not file.quoted else block.numbers
        first += block.lines
    return rows, faults, list(numbers)


def text(rng: random.Random, alphabet: str) -> str:
    return "".join(rng.choices(alphabet, k=rng.randint(0, 10)))


@pytest.mark.parametrize("count", COUNTS)
def test_written_rows_are_read(count: int, tmp_path: Path):
    rng = random.Random(1)
    for case in range(count):
        rows = [[str(n), text(rng, PLAIN + SPECIAL), rng.choice("NP")] for n in range(rng.randint(2, 8))]
        stream = io.StringIO(newline="")
        writer = csv.writer(
            stream, delimiter=rng.choice(",;\t|"), lineterminator=rng.choice(["\n", "\r\n"]),
            quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        )  # fmt: skip
        writer.writerows([HEADER, *rows])
        encoding = rng.choice(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
        path = tmp_path / "t.csv"
        path.write_bytes(stream.getvalue().encode(encoding))
        got, faults, _ = read(path, rng.choice([7, 50, 2**20]))
        wanted = [[cell.replace("\r\n", "\n") for cell in row] for row in rows]
        assert not faults and got == wanted, (case, stream.getvalue())


@pytest.mark.parametrize("count", COUNTS)
def test_a_stray_quote_costs_no_other_row(count: int, tmp_path: Path):
    rng = random.Random(2)
    for case in range(count):
        rows = [[str(n), "x" + text(rng, PLAIN), rng.choice("NP")] for n in range(rng.randint(2, 8))]
        lines = [",".join(row) for row in rows]
        where = rng.randrange(len(lines))
        at = rng.randrange(len(lines[where]))
        lines[where] = lines[where][:at] + '"' + lines[where][at:]
        path = tmp_path / "t.csv"
        path.write_text("\n".join([",".join(HEADER), *lines]))
        got, faults, numbers = read(path, rng.choice([7, 50, 2**20]))
        assert numbers == list(range(len(rows))) and set(faults) <= {where}, (case, lines)
        assert got[:where] + got[where + 1 :] == rows[:where] + rows[where + 1 :], (case, lines)


@pytest.mark.parametrize("count", COUNTS)
def test_lines_of_tsv_wherever_it_is_cut(count: int, tmp_path: Path):
    rng = random.Random(3)
    for case in range(count):
        cells = [
            [text(rng, PLAIN + '",;') for _ in range(rng.choice([3, 3, 3, 2, 4]))] for _ in range(rng.randint(1, 8))
        ]
        end = rng.choice(["\n", "\r\n"])
        path = tmp_path / "t.tsv"
        path.write_bytes((end.join(["\t".join(row) for row in [HEADER, *cells]]) + end).encode())
        file = layout.inspect(Source(str(path), str(path)), ["text"])
        assert file is not None
        got, faults = [], 0
        for piece in blocks.cut(file, rng.choice([3, 20, 2**20])):
            for block in blocks.read_piece(piece, rng.choice([5, 2**20])):
                got += [list(row) for i, row in enumerate(block.records(file.names)) if i not in block.faults]
                faults += len(block.faults)
        assert got == [row for row in cells if len(row) == 3], (case, cells)
        assert faults == sum(len(row) != 3 for row in cells), (case, cells)
