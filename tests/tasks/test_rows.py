"""A task's data: every fault one clear message, and the test file opened by the final scoring alone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.make_tasks import FOUR_ROWS, write_rows, write_task
from twilbert import storage
from twilbert.errors import UsageError
from twilbert.model.problems import MULTI
from twilbert.tasks.checks import require, validate
from twilbert.tasks.rows import Rows, read_split, read_test
from twilbert.tasks.task import Task, load_task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound task of four rows a split."""
    for split in ("train", "dev", "test"):
        write_rows(tmp_path, f"{split}.tsv", [(f"{split}-{i}", text, label) for i, text, label in FOUR_ROWS])
    return tmp_path


def test_rows_are_the_files_own(folder: Path):
    task = load_task(write_task(folder))
    rows = read_split(task, "dev")
    assert rows.texts == [text for _, text, _ in FOUR_ROWS] and rows.ids[0] == "dev-1" and rows.texts_b is None
    assert rows.labels is not None and rows.labels.tolist() == [1, 0, 1, 0] and rows.labels.dtype == np.int64
    assert rows.columns["CLASS"] == ["P", "N", "P", "N"] and len(rows) == 4
    assert load_task(write_task(folder), str(folder / "other")).path("train") == str(folder / "other" / "train.tsv")


def test_train_and_dev_never_open_the_test_file(folder: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []

    def recorded(path: str, filesystem=storage.filesystem):
        opened.append(Path(path).name)
        return filesystem(path)

    monkeypatch.setattr(storage, "filesystem", recorded)
    drawn = {"files": {"train": "train.tsv", "test": "test.tsv"}, "split": {"dev": 0.3}}
    for settings in ({}, drawn):
        task = load_task(write_task(folder, **settings))
        opened.clear()
        read_split(task, "train")
        read_split(task, "dev")
        assert set(opened) == {"train.tsv"} | ({"dev.tsv"} if not settings else set())
    assert read_test(task) is not None and opened[-1] == "test.tsv"
    # Nor do they need it: not there, or not readable, makes no difference.
    (folder / "test.tsv").unlink()
    assert len(read_split(task, "train")) + len(read_split(task, "dev")) == 4
    for split in ("test", "valid"):
        with pytest.raises(UsageError, match="the test file is read by read_test alone"):
            read_split(task, split)


def test_the_validator_gives_nothing_of_test_but_faults_and_counts(folder: Path):
    write_rows(folder, "test.tsv", [("1", "secreto uno", "P"), ("2", "secreto dos", "P")])
    found = validate(load_task(write_task(folder)))
    assert found.counts["test"] == {"rows": 2, "empty": 0, "long": 0, "repeated ids": 0}
    assert found.counts["train"] == {"rows": 4, "empty": 0, "long": 0, "repeated ids": 0, "label N": 2, "label P": 2}
    assert "secreto" not in repr(found)
    assert not any(isinstance(value, Rows) for value in vars(found).values())


def test_no_test_and_a_test_without_labels(folder: Path):
    none = load_task(write_task(folder, files={"train": "train.tsv", "dev": "dev.tsv"}))
    assert read_test(none) is None and validate(none).test_labelled is None
    write_rows(folder, "test.tsv", [("1", "hola"), ("2", "adiós")], header="ID\tTEXT")
    rows = read_test(load_task(write_task(folder)))
    assert rows is not None and rows.labels is None and rows.ids == ["1", "2"]
    found = validate(load_task(write_task(folder)))
    assert found.test_labelled is False and not found.faults
    assert "predictions will be written instead of a score" in found.notices[0]
    write_rows(folder, "test.tsv", [("1", "hola", "?")])
    assert read_test(load_task(write_task(folder, test_labelled=False))).labels is None
    write_rows(folder, "test.tsv", [("1", "hola")], header="ID\tTEXT")
    assert "no column CLASS" in validate(load_task(write_task(folder, test_labelled=True))).faults[0]


def test_layouts_of_two_texts_multi_label_regression_and_csv(tmp_path: Path):
    write_rows(tmp_path, "train.tsv", [("a", "b", "1|0"), ("c", "-", "0|1")], header="T\tU\tL")
    two = {"id": None, "text": "T", "text_b": "U", "label": "L"}
    multi = {"problem": MULTI, "missing_text": "-", "files": {"train": "train.tsv", "dev": "train.tsv"}}
    rows = read_split(load_task(write_task(tmp_path, columns=two, **multi)), "train")
    assert rows.texts_b == ["b", ""] and rows.labels.tolist() == [[1, 0], [0, 1]] and rows.ids == ["1", "2"]
    write_rows(tmp_path, "train.tsv", [("a", "b", "P|N"), ("c", "-", "")], header="T\tU\tL")
    rows = read_split(load_task(write_task(tmp_path, columns=two, label_format="names", **multi)), "train")
    assert rows.labels.tolist() == [[1, 1], [0, 0]]
    write_rows(tmp_path, "train.tsv", [("a", "1", "0"), ("c", "0", "0")], header="T\tn\tp")
    flags = {"id": None, "text": "T", "label": ["n", "p"]}
    rows = read_split(load_task(write_task(tmp_path, columns=flags, **multi)), "train")
    assert rows.labels.tolist() == [[1, 0], [0, 0]]

    score = {"problem": "regression", "labels": ["score"], "metric": "pearson", "files": multi["files"]}
    write_rows(tmp_path, "train.tsv", [("1", "a", "0.5"), ("2", "b", "-1e-2")])
    assert read_split(load_task(write_task(tmp_path, **score)), "train").labels.tolist() == pytest.approx([0.5, -0.01])
    write_rows(tmp_path, "train.tsv", [("1", "a", "0.5"), ("2", "b", "nan"), ("3", "c", "mucho")])
    with pytest.raises(UsageError, match="label 'nan' on line 3, 'mucho' on line 4: expected a number"):
        read_split(load_task(write_task(tmp_path, **score)), "train")

    (tmp_path / "train.csv").write_bytes(b'\xef\xbb\xbfID,TEXT,CLASS\r\n1,"a, ""b""\nc",P\r\n2,d,N\r\n')
    csv = {"delimiter": ",", "quoting": "csv", "files": {"train": "train.csv", "dev": "train.csv"}}
    assert read_split(load_task(write_task(tmp_path, **csv)), "train").texts == ['a, "b"\nc', "d"]


def test_files_of_other_formats_and_encodings(tmp_path: Path):
    rows = [("1", "qué bien", "P"), ("2", "qué mal", "N")]
    table = "ID\tTEXT\tCLASS\n" + "".join("\t".join(row) + "\n" for row in rows)
    records = [{"ID": int(i), "TEXT": text, "CLASS": label} for i, text, label in rows]
    semicolons = "".join(f"{';'.join(cells)}\n" for cells in [("ID", "TEXT", "CLASS"), *rows])
    for name, data in {
        "s.csv": semicolons.encode("utf-8-sig"),
        "s2.csv": semicolons.replace("qué bien", '"qué; bien"').encode(),
        "tabs.csv": table.encode(),
        "commas.csv": table.replace("\t", ",").replace("\n", "\r\n").encode(),
        "t.tsv": table.replace("\n", "\r").encode(),
        "u.tsv": table.encode("utf-16"),
        "t.tsv.gz": gzip.compress(table.encode()),
        "t.jsonl": "\n".join(map(json.dumps, records)).encode(),
        "t.json": json.dumps(records, indent=1).encode(),
        "t.parquet": b"",
    }.items():
        if name == "t.parquet":
            pq.write_table(pa.Table.from_pylist(records), tmp_path / name)
        else:
            (tmp_path / name).write_bytes(data)
        read = read_split(load_task(write_task(tmp_path, files={"train": name, "dev": name})), "train")
        first = read.texts.pop(0)
        assert first == ("qué; bien" if name == "s2.csv" else "qué bien"), name
        assert (read.texts, read.ids, read.labels.tolist()) == (["qué mal"], ["1", "2"], [1, 0]), name


# Bad input


def test_what_is_right_is_kept(folder: Path):
    rows = [
        ("1", 'dijo "hola', "P"),
        ("2", "", "N"),
        ("3", "x" * 10_000, "P"),
        ("4", "a\u2028b\x85c\x0bd", "N"),
        ("4", "e", "P"),
    ]
    write_rows(folder, "train.tsv", rows, end="\r\n")
    found = validate(load_task(write_task(folder)))
    assert not found.faults and found.counts["train"]["rows"] == 5
    assert read_split(load_task(write_task(folder)), "train").texts == [row[1] for row in rows]
    assert found.notices == [
        "train: 1 rows kept where the text is empty",
        "train: 1 rows kept where the text has 10,000 characters or more",
    ]
    assert found.counts["train"]["repeated ids"] == 1


@pytest.mark.parametrize(
    ("train", "header", "message"),
    [
        ([("1", "a", "P"), ("2", "b", "POS"), ("3", "c", "POS")], None,
         "label 'POS' on line 3 and 1 more: expected one of the task's labels (N, P); correct the file"),
        ([("1", "a", "P")], "ID\tTWEET\tCLASS", "no column TEXT in the header; found ID, TWEET, CLASS; correct"),
        ([], None, "a header and no rows"),
        ([("1", "a", "P"), ("2", "a\tb", "N")], None, "1 of 2 rows cannot be read (line 3: 4 cells, expected 3)"),
        ([("1", "a", "P"), ("2", "b", "P")], None, "every row has the same label (P); nothing to learn"),
        ([("1", "a", "P", "x"), ("2", "b", "N", "y")], "ID\tTEXT\tCLASS\tTEXT", "TEXT stands twice in the header"),
    ],
)  # fmt: skip
def test_a_broken_train_file_is_one_clear_message(folder: Path, train, header, message: str):
    write_rows(folder, "train.tsv", train, header=header or "ID\tTEXT\tCLASS")
    found = validate(load_task(write_task(folder)))
    assert len(found.faults) == 1 and message in found.faults[0], found.faults
    assert str(folder / "train.tsv") in found.faults[0]
    with pytest.raises(UsageError, match="task mine: 1 fault"):
        require(load_task(write_task(folder)))


def test_faults_of_all_files_are_told_at_once(folder: Path):
    (folder / "train.tsv").write_bytes(b"")
    (folder / "dev.tsv").write_bytes(b"ID\tTEXT\tCLASS\n1\tse\xf1al\tP\n")
    write_rows(folder, "test.tsv", [("1", "secreto", "Q")])
    faults = validate(load_task(write_task(folder))).faults
    assert [fault.split(":")[0].rpartition("/")[2] for fault in faults] == ["train.tsv", "dev.tsv", "test.tsv"]
    assert (
        "empty; expected a header with ID, TEXT, CLASS" in faults[0]
        and "(line 2: not UTF-8); save the file" in faults[1]
    )
    assert "secreto" not in str(faults)


def test_stray_quotes_in_csv(folder: Path):
    settings = {"delimiter": ",", "quoting": "csv", "files": {"train": "train.csv", "dev": "train.csv"}}
    (folder / "train.csv").write_text('ID,TEXT,CLASS\n1,a,P\n2,"b" c,N\n')
    faults = validate(load_task(write_task(folder, **settings))).faults
    assert len(faults) == 1 and "(line 3: a stray quote" in faults[0] and "set quoting: none" in faults[0]
    plain = load_task(write_task(folder, **settings | {"quoting": "none"}))
    assert read_split(plain, "train").texts == ["a", '"b" c']
    (folder / "train.csv").write_text('ID,TEXT,CLASS\n1,"a,P\n2,b,N\n')  # never closed
    assert "(line 2: a stray quote" in validate(load_task(write_task(folder, **settings))).faults[0]
    # A quoted header read without quoting: the quotes are not part of the wrong guess.
    (folder / "train.csv").write_text('"ID","TEXT","CLASS"\n"1","a","P"\n')
    tabs = {"delimiter": "\t", "files": settings["files"]}
    wrong = validate(load_task(write_task(folder, **tabs))).faults[0]
    assert 'separated by a comma, not by a tab; set delimiter: "," in the task file, or leave it out' in wrong


def test_labels_that_train_lacks(folder: Path):
    three = {"labels": ["N", "P", "NEU"]}
    found = validate(load_task(write_task(folder, **three)))
    assert not found.faults and found.notices == ["label NEU has no row in train: no model can learn it"]
    write_rows(folder, "test.tsv", [("1", "a", "NEU"), ("2", "b", "P")])
    found = validate(load_task(write_task(folder, **three)))
    assert found.notices == ["label NEU stands in test and not in train: its rows count as errors"]
    write_rows(folder, "dev.tsv", [("1", "a", "P")])
    assert any("dev has one label only" in notice for notice in validate(load_task(write_task(folder))).notices)


def test_missing_data_is_told_with_paths_columns_and_where_to_ask(tmp_path: Path):
    task = load_task("multistance18", str(tmp_path))
    (tmp_path / "multistance18" / "test.csv").mkdir(parents=True)  # a folder is no file
    for told in (validate(task).faults[0], *(_told(task, split) for split in ("train", "dev"))):
        for part in (
            f"train {tmp_path}/multistance18/train.csv   (missing)",
            "test.csv   (missing)",
            "tab-separated, quotes are text, header with ID, TEXT, NEXT, CLASS",
            "where to ask for it: http",
            "twilbert-sample task multistance18 --out tasks",
        ):
            assert part in told, told
    own = validate(load_task(write_task(tmp_path))).faults[0]
    assert "mine: its data is not here" in own and "twilbert-sample" not in own


def _told(task: Task, split) -> str:
    with pytest.raises(UsageError) as error:
        read_split(task, split)
    return str(error.value)


def test_scores_that_are_all_the_same(folder: Path):
    score = {"problem": "regression", "labels": ["score"], "metric": "pearson"}
    for split in ("train", "dev", "test"):
        write_rows(folder, f"{split}.tsv", [("1", "a", "0.5"), ("2", "b", "0.7")])
    assert validate(load_task(write_task(folder, **score))).faults == []
    write_rows(folder, "dev.tsv", [("1", "a", "0.5"), ("2", "b", "0.5")])
    faults = validate(load_task(write_task(folder, **score))).faults
    assert len(faults) == 1 and "dev.tsv: every score is the same" in faults[0]
