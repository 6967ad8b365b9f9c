"""Texts of files as people have them: every row comes out once, under its own columns, or with the reason why not."""

from __future__ import annotations

import bz2
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twilbert.data.tables import texts
from twilbert.data.tables.cells import STRAY_QUOTE
from twilbert.data.tables.files import sources
from twilbert.errors import TwilbertError, UsageError

THREE = ["hola, ¿qué tal?", "mañana lluvia", "adiós a todos"]


def read(path: Path | str, **options) -> list[str | None]:
    """The text of each row, or the reason why it has none in angle brackets."""
    with sources([str(path)]) as listed:
        chunks = [chunk for one in listed for chunk in texts.read(texts.inspect(one, **options), 3)]
    rows = [(text, error) for chunk in chunks for text, error in zip(chunk.texts, chunk.errors, strict=True)]
    assert sum(len(chunk.table) for chunk in chunks) == len(rows)
    return [text if error is None else f"<{error}>" for text, error in rows]


def write(folder: Path, name: str, data: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


ROWS = "".join(f"{i};{text};2020-01-0{i}\r\n" for i, text in enumerate(THREE, start=1))
LAYOUTS: dict[str, tuple[str, str | bytes]] = {
    "semicolons in CSV": ("t.csv", "id;texto;fecha\r\n" + ROWS),
    "semicolons, byte-order mark": ("t.csv", "\ufeffid;texto;fecha\r\n" + ROWS),
    "Excel's hint": ("t.csv", "sep=;\r\nid;texto;fecha\r\n" + ROWS),
    "tabs in CSV": ("t.csv", ("id;texto;fecha\r\n" + ROWS).replace(";", "\t")),
    "bars in CSV": ("t.csv", ("id;texto;fecha\r\n" + ROWS).replace(";", "|")),
    "CR alone": ("t.tsv", ("id;texto;fecha\r\n" + ROWS).replace(";", "\t").replace("\r\n", "\r")),
    "CR alone in CSV": ("t.csv", ("id;texto;fecha\r\n" + ROWS).replace("\r\n", "\r")),
    "CR alone, no last end": ("t.txt", "\r".join(THREE)),
    "UTF-16": ("t.tsv", ("id;texto;fecha\r\n" + ROWS).replace(";", "\t").encode("utf-16")),
    "UTF-16, big end first": ("t.tsv", "\n".join(["\ufefftexto", *THREE]).encode("utf-16-be")),
    "UTF-16 without mark": ("t.txt", "\n".join(THREE).encode("utf-16-le")),
    "UTF-16, CR alone": ("t.txt", "\r".join(THREE).encode("utf-16")),
    "full_text alone": ("t.csv", "full_text\n" + "\n".join(f'"{text}"' for text in THREE)),
    "an index without name": ("t.csv", ",,text\n" + "".join(f'{i},,"{text}"\n' for i, text in enumerate(THREE))),
    "array": ("t.json", json.dumps([{"text": text} for text in THREE], indent=1)),
    "array of one line": ("t.jsonl", json.dumps([{"text": text} for text in THREE])),
    "objects that span lines": ("t.json", "\n".join(json.dumps({"text": text}, indent=2) for text in THREE)),
    "a first line over 64 KiB": (
        "t.jsonl", "\n".join(json.dumps({"raw": "z" * (text == THREE[0]) * 70_000, "text": text}) for text in THREE)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_separator_encoding_and_line_ends_are_found(case: str, tmp_path: Path):
    assert read(write(tmp_path, *LAYOUTS[case])) == THREE


STRAY, NUL = f"<{STRAY_QUOTE}>", "<a NUL byte>"
FAULTS: dict[str, tuple[str, str | bytes, list[str]]] = {
    "a quote never closed": ("t.csv", 'id,text\n1,uno\n2,"dos\n3,tres\n4,cuatro\n', ["uno", STRAY, "tres", "cuatro"]),
    "two stray quotes": (
        "t.csv", 'id,text,n\n1,uno,5\n2,"dos,5\n3,tres,5\n4,cuatro",5\n5,"cin\nco",5\n',
        ["uno", STRAY, "tres", 'cuatro"', "cin\nco"],
    ),
    "quotes around lines with commas": ("t.csv", 'id,text\n1,"a\nb, c"\n2,"d, e\n3,f"\n', ["a\nb, c", "d, e\n3,f"]),
    "quotes not doubled": (
        "t.csv", 'id,text\n1,"dijo "hola", y"\n2,"dijo \\"no\\", y"\n3,"""no"""\n', [STRAY, STRAY, '"no"']
    ),
    "quotes inside a cell": ("t.csv", 'id,text\n1,dijo "hola\n2,vale\n', ['dijo "hola', "vale"]),
    "CR inside a cell": ("t.csv", "id,text\n1,uno\rdos\n2,tres\n", ["uno\rdos", "tres"]),
    "too few and too many cells": (
        "t.csv", "id,text,n\n1,uno,2\n2,dos\n3\n4,a,b,c\n",
        ["uno", "<2 cells, expected 3>", "<1 cells, expected 3>", "<4 cells, expected 3>"],
    ),
    "a line end inside a TSV text": (
        "t.tsv", "id\ttext\tn\n1\tuno\t5\n2\tdos\ntres\t5\n3\tfin\t5\n",
        ["uno", "<2 cells, expected 3>", "<2 cells, expected 3>", "fin"],
    ),
    "NUL": ("t.txt", "hola\nuno\0dos\nfin\n", ["hola", NUL, "fin"]),
    "half of UTF-16": ("t.txt", "hola\nadiós\n".encode("utf-16")[:-1], ["hola", "adiós"]),
    "Latin-1": ("t.txt", "hola\nma\xf1ana\nfin\n".encode("latin-1"), ["hola", "<not UTF-8>", "fin"]),
    "delete notices": (
        "t.jsonl", '{"delete": {"status": 1}}\n{"text": "uno"}\n{"delete": 2}\n{"text": "dos"}\n',
        ["<no text>", "uno", "<no text>", "dos"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_costs_its_own_row(case: str, tmp_path: Path):
    name, data, expected = FAULTS[case]
    rows = read(write(tmp_path, name, data))
    if case == "half of UTF-16":
        assert rows[:1] == ["hola"] and rows[1].startswith("<")
    else:
        assert rows == expected


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        ("t.csv", "id,text,text\n1,a,b\n", {}, "two columns are named 'text'"),
        ("t.tsv", "id\ttext\n1\ta\n", {"text": "text", "pair": "text"}, "'text' is asked for twice"),
        ("t.csv", '"1";"hoy, como ayer"\n"2";"mañana"\n', {}, "its columns are '1', 'hoy, como ayer'"),
        ("t.csv", "tweet_body\nhola a todos\n", {}, "its columns are 'tweet_body'"),
        (
            "t.xlsx",
            b"PK\x03\x04rest",
            {},
            "a zip archive or damaged Excel workbook, which cannot be read (",
        ),
        ("t.jsonl.bz2", bz2.compress(b"{}"), {}, "bzip2, which is not read"),
        ("t.txt", "hola".encode("utf-32"), {}, "UTF-32 text; save it as UTF-8"),
        ("t.txt", bytes(range(256)) * 20, {}, "a binary file"),
        ("t.json", "[" * 9_000, {}, "no JSON object in its first lines"),
    ],
)
def test_what_is_not_understood_is_refused(name, data, options, message, tmp_path: Path):
    with pytest.raises(UsageError) as error:
        read(write(tmp_path, name, data), **options)
    assert message in str(error.value)


def test_json_that_breaks_later_stops_with_its_line(tmp_path: Path):
    whole = json.dumps([{"text": f"texto {i}"} for i in range(500)], indent=0)
    for damaged in (whole.replace('"texto 450"', "texto 450"), whole[:-30]):
        with pytest.raises(TwilbertError, match=r"line 1?\d{3}: "):
            read(write(tmp_path, "t.json", damaged))


def test_a_header_is_known_by_its_numbers_below(tmp_path: Path):
    path = write(tmp_path, "t.tsv", "status\tcuerpo\n1\tuno\n2\tdos\n")
    assert read(path, text="2") == ["uno", "dos"]
    with pytest.raises(UsageError, match="its columns are 'status', 'cuerpo'"):
        read(path)
    assert read(write(tmp_path, "t.tsv", "1\tuno\n2\tdos\n"), text="2") == ["uno", "dos"]


def test_parquet_by_its_first_bytes_whatever_its_name(tmp_path: Path):
    pq.write_table(pa.table({"text": THREE}), tmp_path / "part-0")
    assert read(tmp_path / "part-0") == THREE
