"""Task files as people have them: TASS XML, TweetEval's pairs of files, Excel workbooks and Parquet."""

from __future__ import annotations

import sys
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.make_tasks import FOUR_ROWS, write_task
from twilbert.errors import UsageError
from twilbert.tasks.checks import validate
from twilbert.tasks.rows import Rows, read_split, read_test
from twilbert.tasks.task import load_task

HEADER = ("ID", "TEXT", "CLASS")


def task(folder: Path, name: str, **settings):
    """The task whose train and dev are one file."""
    return load_task(write_task(folder, **{"files": {"train": name, "dev": name}} | settings))


def train(folder: Path, name: str, **settings) -> Rows:
    return read_split(task(folder, name, **settings), "train")


def fault(folder: Path, name: str, **settings) -> str:
    with pytest.raises(UsageError) as error:
        train(folder, name, **settings)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)


# ---- TASS XML ----


def general(i: int, text: str, label: str, about: str = "") -> str:
    """A tweet as in the general corpus: polarities of the whole and of an entity."""
    entity = f"<polarity><entity>Renfe</entity><value>{about}</value></polarity>" if about else ""
    whole = f"<polarity><value>{label}</value><type>AGREEMENT</type></polarity>"
    return (
        f"<tweet>\n<tweetid>{i}</tweetid><user>ana</user>\n<content><![CDATA[{text}]]></content>"
        f"<date>2011-12-02T00:47:55</date><lang>es</lang>\n<sentiments>{entity}{whole}</sentiments>"
        "<topics><topic>trenes</topic></topics></tweet>\n"
    )


def inter(i: int, text: str, value: str) -> str:
    """A tweet as in InterTASS; `value` is the element."""
    return (
        f"<tweet><tweetid>{i}</tweetid><user>eva</user><content>{text}</content><lang>es</lang>"
        f"<sentiment><polarity>{value}</polarity></sentiment></tweet>\n"
    )


def write_xml(path: Path, *tweets: str, head: str = '<?xml version="1.0" encoding="UTF-8"?>', code="utf-8") -> None:
    path.write_bytes(f"{head}\n<tweets>\n{''.join(tweets)}</tweets>\n".encode(code))


def test_both_shapes_of_tass(tmp_path: Path):
    long = 170000000000000001
    write_xml(tmp_path / "a.xml", general(long, "¡qué bien & <ya>!", "P+", "N"), general(2, "llega tarde", "N", "NEU"))
    rows = train(tmp_path, "a.xml", labels=["N", "P+"])
    assert (rows.texts, rows.ids) == (["¡qué bien & <ya>!", "llega tarde"], [str(long), "2"])
    assert rows.labels is not None and rows.labels.tolist() == [1, 0] and rows.columns["user"] == ["ana", "ana"]
    write_xml(
        tmp_path / "b.xml",
        inter(1, "se\xf1al &amp; 1", "<value>P</value>"),
        inter(2, "\n  mal\n", "<value> N </value>"),
        head='<?xml version="1.0" encoding="ISO-8859-1"?>',
        code="latin-1",
    )
    rows = train(tmp_path, "b.xml")
    assert rows.texts == ["señal & 1", "mal"] and rows.labels is not None and rows.labels.tolist() == [1, 0]
    named = {"id": None, "text": "content", "label": "sentiment"}
    assert train(tmp_path, "b.xml", columns=named).texts == rows.texts
    assert "no column contenido in the header; found ID, user, content" in fault(
        tmp_path, "b.xml", columns={"text": "contenido"}
    )


@pytest.mark.parametrize("value", ["", "<value/>", "<value></value>", "<value> </value>"])
def test_a_test_of_tass_without_values_has_no_labels(tmp_path: Path, value: str):
    write_xml(tmp_path / "a.xml", inter(1, "bien", "<value>P</value>"), inter(2, "mal", "<value>N</value>"))
    write_xml(tmp_path / "t.xml", inter(1, "hola", value), inter(2, "adiós", value))
    files = {"train": "a.xml", "dev": "a.xml", "test": "t.xml"}
    rows = read_test(task(tmp_path, "a.xml", files=files))
    assert rows is not None and rows.labels is None and rows.texts == ["hola", "adiós"]
    found = validate(task(tmp_path, "a.xml", files=files))
    assert found.faults == [] and "test has no labels" in found.notices[0]
    assert "'' on line 3 and 1 more" in validate(task(tmp_path, "a.xml", files=files, test_labelled=True)).faults[0]
    assert "label '' on line 3 and 1 more" in fault(tmp_path, "t.xml")
    assert fault(tmp_path, "t.xml").endswith("these have no label: fill it in")
    write_xml(tmp_path / "t.xml", inter(1, "hola", value), inter(2, "adiós", "<value>P</value>"))  # one has a label
    assert "label '' on line 3: expected one of" in validate(task(tmp_path, "a.xml", files=files)).faults[0]


GOOD = inter(1, "bien", "<value>P</value>")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (f"<tweets>\n{GOOD}<tweet><tweetid>2</tweetid>\n<content>a & b</content></tweet></tweets>",
         "line 4: no well-formed XML (not well-formed (invalid token)); correct it (in texts & is written &amp;"),
        (f"<tweets>\n{GOOD}<tweet>", "line 3: no well-formed XML (no element found)"),
        ('<!DOCTYPE tweets [<!ENTITY a "b">]>\n<tweets><tweet/></tweets>', "line 1: a document type (<!DOCTYPE)"),
        ("<tweets>&nada;</tweets>", "line 1: no well-formed XML (undefined entity)"),
        ('<?xml version="1.0" encoding="nada"?><tweets/>', "no well-formed XML (unknown encoding"),
        ("<corpus><texto>hola</texto></corpus>", "XML without a <tweet>; expected TASS's: <tweet> with <tweetid>"),
        ('<tweets>\n<tweet id="1">hola</tweet></tweets>', "1 of 1 rows cannot be read (line 2: no <content>)"),
        (f"<tweets>\n{GOOD}<tweet><content>a</content></tweet></tweets>", "1 of 2 rows cannot be read (line 3: no <tw"),
        ("<tweets>" + GOOD.replace("</sentiment>", "<polarity><value>N</value></polarity></sentiment>") + "</tweets>",
         "line 1: several polarities of the whole tweet (N, P)"),
        ("<tweets>" + GOOD.replace("<content>", "<content>a</content><content>") + "</tweets>", "two <content> in one"),
    ],
)  # fmt: skip
def test_xml_that_is_refused_names_its_line(tmp_path: Path, data: str, message: str):
    (tmp_path / "t.xml").write_text(data)
    assert message in fault(tmp_path, "t.xml")


# ---- TweetEval ----


def write_pair(folder: Path, split: str, texts: list[str], labels: list[str]) -> None:
    (folder / f"{split}_text.txt").write_text("".join(f"{text}\n" for text in texts))
    (folder / f"{split}_labels.txt").write_text("".join(f"{label}\n" for label in labels))


def test_tweeteval_reads_labels_by_the_mapping_beside(tmp_path: Path):
    write_pair(tmp_path, "train", ["qué bien\tsí", '"mal', "ID;TEXT"], ["1", "0", "1"])
    (tmp_path / "mapping.txt").write_text("0\tnegative\n1\tpositive\n")
    rows = train(tmp_path, "train_text.txt", labels=["positive", "negative"])
    assert rows.texts == ["qué bien\tsí", '"mal', "ID;TEXT"] and rows.ids == ["1", "2", "3"]
    assert rows.labels is not None and rows.labels.tolist() == [0, 1, 0]
    assert train(tmp_path, "train_text.txt", labels=[0, 1]).labels.tolist() == [1, 0, 1]
    message = fault(tmp_path, "train_text.txt", labels=["malo", "bueno"])
    assert 'to take the file\'s, write labels: ["negative", "positive"]' in message
    write_pair(tmp_path, "dev", ["a", "b", "c"], ["0", "7", "7"])
    message = fault(tmp_path, "dev_text.txt", labels=["negative", "positive"])
    assert "dev_labels.txt: label '7' on line 2 and 1 more" in message
    assert message.endswith('to have them all, write labels: ["negative", "positive", "7"]')
    (tmp_path / "mapping.txt").write_text("0\t❤\t_red_heart_\n1\t😂\t_joy_\n")  # the emoji task
    assert train(tmp_path, "train_text.txt", labels=["😂", "❤"]).labels.tolist() == [0, 1, 0]
    assert train(tmp_path, "train_text.txt", labels=["_joy_", "_red_heart_"]).labels.tolist() == [0, 1, 0]


def test_tweeteval_files_that_do_not_fit(tmp_path: Path):
    write_pair(tmp_path, "train", ["a", "b", "", "c"], ["0", "1", "1"])
    message = fault(tmp_path, "train_text.txt", labels=[0, 1])
    assert "train_labels.txt: 3 labels for the 4 texts of" in message and "train_text.txt" in message
    (tmp_path / "train_labels.txt").unlink()
    assert "its labels are missing; expected" in fault(tmp_path, "train_text.txt", labels=[0, 1])
    write_pair(tmp_path, "train", ["a", "b"], ["0", "1"])
    (tmp_path / "test_text.txt").write_text("c\nd\n")
    files = {"train": "train_text.txt", "dev": "train_text.txt", "test": "test_text.txt"}
    rows = read_test(task(tmp_path, "", files=files, labels=[0, 1]))
    assert rows is not None and rows.labels is None and rows.texts == ["c", "d"]


# ---- Excel and Parquet ----


def write_sheet(path: Path, rows: list, *others: str) -> None:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in rows:
        book.active.append(row)
    for title in others:
        book.create_sheet(title).append(["nota"])
    book.save(path)


def test_numbers_in_workbooks_and_parquet_are_what_they_mean(tmp_path: Path):
    rows = [(1.0, "qué\nbien", 1), (2, "=mal"[1:], 0.0), (None, None, None), (3.0, None, 1.0)]
    write_sheet(tmp_path / "t.xlsx", [HEADER, *rows], "leyenda")
    table = {name: [row[i] for row in rows if row[2] is not None] for i, name in enumerate(HEADER)}
    pq.write_table(
        pa.table(table | {"ID": pa.array(table["ID"], pa.float64()), "CLASS": pa.array(table["CLASS"], pa.float32())}),
        tmp_path / "t.parquet",
    )
    for name in ("t.xlsx", "t.parquet"):
        read = train(tmp_path, name, labels=[0, 1])
        assert (read.ids, read.texts) == (["1", "2", "3"], ["qué\nbien", "mal", ""]), name
        assert read.labels is not None and read.labels.tolist() == [1, 0, 1], name
    assert "label '1' on line 2 and 1 more, '0' on line 3" in fault(tmp_path, "t.xlsx")
    assert 'write labels: ["0", "1"]' in fault(tmp_path, "t.parquet")


def test_cells_of_a_workbook_that_are_no_values(tmp_path: Path):
    many = 1234567890123456789
    write_sheet(tmp_path / "t.xlsx", [HEADER, (many, "a", "P"), ("2", "#NAME?", "N"), ("3", "b", "P", "c")])
    message = fault(tmp_path, "t.xlsx")
    for part in (
        "3 of 3 rows", "line 2: column ID: a number of over 15 digits", "line 3: column TEXT: the error value #NAME?",
        "line 4: 4 cells, expected 3", "is stored as text",
    ):  # fmt: skip
        assert part in message
    write_sheet(tmp_path / "t.xlsx", [(*HEADER, "n"), ("1", "a", "P", many), (2, "b", "N", many)])  # a column not read
    assert train(tmp_path, "t.xlsx").ids == ["1", "2"]
    pq.write_table(pa.table({"ID": [float(many)], "TEXT": ["a"], "CLASS": ["P"]}), tmp_path / "t.parquet")
    assert "line 1: the id 1.23" in fault(tmp_path, "t.parquet") or "line 2: the id 1.23" in fault(
        tmp_path, "t.parquet"
    )


def test_which_sheet_holds_the_rows(tmp_path: Path):
    write_sheet(tmp_path / "t.xlsx", [["código"], ["P"]], "Hoja2", "Hoja3")
    assert "3 sheets hold something (Sheet, Hoja2, Hoja3); save the one with the rows" in fault(tmp_path, "t.xlsx")
    write_sheet(tmp_path / "t.xlsx", [])
    assert "t.xlsx: empty; expected a header with ID" in fault(tmp_path, "t.xlsx")
    write_sheet(tmp_path / "t.xlsx", FOUR_ROWS)
    assert "its first line looks like data" in fault(tmp_path, "t.xlsx")


def test_workbooks_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_sheet(tmp_path / "t.xlsx", [HEADER, *FOUR_ROWS])
    whole = (tmp_path / "t.xlsx").read_bytes()
    assert train(tmp_path, "t.xlsx").texts == [text for _, text, _ in FOUR_ROWS]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openpyxl", None)
        assert 'needs openpyxl: pip install "twilbert[xlsx]"; or save it as CSV' in fault(tmp_path, "t.xlsx")
    for data in (whole[: len(whole) // 2], b"PK\x03\x04", b"ID\tTEXT\tCLASS\n"):
        (tmp_path / "t.xlsx").write_bytes(data)
        assert "zip archive or damaged Excel workbook, which cannot be read" in fault(tmp_path, "t.xlsx")
    (tmp_path / "t.xlsx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 64)
    assert "an Excel workbook of before 2007 (.xls)" in fault(tmp_path, "t.xlsx")
