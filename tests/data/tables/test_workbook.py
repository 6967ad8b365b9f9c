"""Workbooks as pairs and as texts: the same reader as of any table."""

from __future__ import annotations

from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twilbert.data.tables import blocks, pairs, texts
from twilbert.data.tables.files import Source, sources
from twilbert.data.tables.layout import TableFile
from twilbert.errors import UsageError


def write(path: Path, rows: list) -> Source:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in rows:
        book.active.append(row)
    book.save(path)
    return Source(str(path), path.name)


def cells(file: TableFile) -> list:
    return [row for block in blocks.read(file) for row in block.records(file.columns)]


def test_pairs_of_a_workbook_and_ids_that_it_has_rounded(tmp_path: Path):
    header = ["REPLY_TEXT", "ORIG_ID", "ORIG_TEXT", "REPLY_ID"]
    source = write(tmp_path / "p.xlsx", [header, ["sí", 1.0, "¿vienes?", 2], ["no", 1234567890123456789, "¿y tú?", 4]])
    file = pairs.inspect(source)
    assert file is not None and cells(file)[0] == ["1", "¿vienes?", "2", "sí"]
    (block,) = blocks.read(file)
    assert block.faults == {1: "column ORIG_ID: a number of over 15 digits, rounded by the spreadsheet"}
    with sources([str(tmp_path)]) as listed:
        assert [Path(found.path).name for found in listed] == ["p.xlsx"]


def test_texts_of_a_workbook_with_all_its_columns(tmp_path: Path):
    file = texts.inspect(
        write(tmp_path / "t.xlsx", [[None, None], ["n", "texto"], [1, "hola"], [None, None], [3, 4.5]])
    )
    chunks = list(texts.read(file, 100))
    assert [chunk.texts for chunk in chunks] == [["hola", None, "4.5"]]
    assert chunks[0].errors == [None, "an empty line", None]
    assert chunks[0].table.to_pylist()[0] == {"n": "1", "texto": "hola"}
    assert [number for block in blocks.read(file) for number in block.numbers] == [2, 3, 4]


@pytest.mark.parametrize("name", ["t.xlsx", "t.parquet"])
def test_a_table_is_no_file_of_lines(tmp_path: Path, name: str):
    if name == "t.xlsx":
        write(tmp_path / name, [["texto"], ["hola"]])
    else:
        pq.write_table(pa.table({"texto": ["hola"]}), tmp_path / name)
    with pytest.raises(UsageError, match=rf"{name}: a table \({name[2:]}\), not lines of text; save its texts as .txt"):
        list(texts.text_lines(str(tmp_path / name)))
