"""The usual slips in task files and labels: each is told what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.make_tasks import FOUR_ROWS, write_rows, write_task
from twilbert.errors import UsageError
from twilbert.tasks.checks import validate
from twilbert.tasks.rows import read_split, read_test
from twilbert.tasks.task import load_task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound task of four rows a split."""
    for split in ("train", "dev", "test"):
        write_rows(tmp_path, f"{split}.tsv", FOUR_ROWS)
    return tmp_path


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (r"delimiter: \t", r'write delimiter: "\t", in double quotes, or leave it out'),
        (r"delimiter: '\t'", r'write delimiter: "\t", in double quotes'),
        ("delimiter: Tab", r'write delimiter: "\t", in double quotes'),
        ("delimiter: semicolon", 'write delimiter: ";", in double quotes'),
        ("labels: [0.0, 1.0]", 'write it in quotes, as it stands in the files, e.g. "0.0"'),
        ("labels: [true, false]", 'write it in quotes, as it stands in the files, e.g. "True"'),
        ("labels: [NA, null]", 'write it in quotes, as it stands in the files, e.g. "null"'),
        ("columns: {id: 1, text: 2, label: 3}", "not by position; where a file has no header, put one above it"),
    ],
)
def test_slips_of_the_task_file(folder: Path, yaml: str, message: str):
    labels = "" if yaml.startswith("labels") else "labels: [N, P]\n"
    (folder / "mine.yaml").write_text(f"files: {{train: train.tsv, dev: dev.tsv}}\n{labels}{yaml}\n")
    with pytest.raises(UsageError) as error:
        load_task(str(folder / "mine.yaml"))
    assert message in str(error.value) and str(folder / "mine.yaml") in str(error.value)


@pytest.mark.parametrize("placeholder", ["NOT INLINE", "UNKNOWN", "", "?", "sin etiqueta"])
def test_a_test_file_without_labels(folder: Path, placeholder: str):
    write_rows(folder, "test.tsv", [(i, text, placeholder) for i, text, _ in FOUR_ROWS])
    faults = validate(load_task(write_task(folder))).faults
    assert len(faults) == 1 and "test_labelled: false" in faults[0] and "on line 2 and 3 more" in faults[0]
    assert read_test(load_task(write_task(folder, test_labelled=False))).labels is None


def test_a_test_file_that_is_labelled_in_part(folder: Path):
    write_rows(folder, "test.tsv", [*FOUR_ROWS, ("5", "quizás", "UNKNOWN")])
    (fault,) = validate(load_task(write_task(folder))).faults
    assert "'UNKNOWN' on line 6: expected one of" in fault and "else leave these rows out" in fault
    write_rows(folder, "train.tsv", [*FOUR_ROWS, ("5", "quizás", "")])
    assert "leave these rows out" in validate(load_task(write_task(folder, test_labelled=False))).faults[0]


def test_test_rows_without_the_cell_of_the_label(folder: Path):
    write_rows(folder, "test.tsv", [(i, text) for i, text, _ in FOUR_ROWS])
    (fault,) = validate(load_task(write_task(folder))).faults
    assert "line 2: 2 cells, expected 3" in fault and "write test_labelled: false" in fault
    rows = read_test(load_task(write_task(folder, test_labelled=False)))
    assert rows.texts == [text for _, text, _ in FOUR_ROWS] and rows.labels is None
    write_rows(folder, "test.tsv", [(i, text) for i, text, _ in FOUR_ROWS] + [("5",)])  # a text is missing too
    assert "line 6: 1 cells" in validate(load_task(write_task(folder, test_labelled=False))).faults[0]


@pytest.mark.parametrize(
    ("labels", "cells", "message"),
    [
        ([0, 1], "0.0 1.0", "'0.0' on line 2 and 1 more, '1.0' on line 3 and 1 more: expected one of the task's "
         'labels (0, 1); to take the file\'s, write labels: ["0.0", "1.0"]'),
        ([0, 1], "True False", 'write labels: ["False", "True"]'),
        (["False", "True"], "0 1", 'write labels: ["0", "1"]'),
        (["N", "P"], "n p", "'n' from 'N', 'p' from 'P' differs only by case or blanks"),
        (["a favor", "en contra"], "A__Favor En_contra", "'A  Favor' from 'a favor', 'En contra' from"),
        (["N", "P"], "N NEU", "label 'NEU' on line 3 and 1 more: expected one of the task's labels (N, P); correct"),
    ],
)  # fmt: skip
def test_labels_that_are_written_in_another_way(folder: Path, labels: list, cells: str, message: str):
    values = [cell.replace("_", " ") for cell in cells.split()]
    rows = [(i, text, values[at % 2]) for at, (i, text, _) in enumerate(FOUR_ROWS)]
    write_rows(folder, "train.tsv", rows)
    with pytest.raises(UsageError) as error:
        read_split(load_task(write_task(folder, labels=labels)), "train")
    assert message in str(error.value)


def test_blanks_around_a_label_and_numbers_with_zeros_in_front_are_right(folder: Path):
    write_rows(folder, "train.tsv", [("1", "a", " 01"), ("2", "b", "02 ")])
    (folder / "mine.yaml").write_text("files: {train: train.tsv, dev: train.tsv}\nlabels: [01, 02]\n")
    assert read_split(load_task(str(folder / "mine.yaml")), "train").labels.tolist() == [0, 1]


def test_scores_with_decimal_commas(folder: Path):
    write_rows(folder, "train.tsv", [("1", "a", "0,5"), ("2", "b", "0,7")])
    score = {"problem": "regression", "labels": ["score"], "metric": "pearson"}
    with pytest.raises(UsageError, match="expected a number; write decimals with a point"):
        read_split(load_task(write_task(folder, **score)), "train")


@pytest.mark.parametrize("settings", [{}, {"header": ["ID", "TEXT", "CLASS"]}, {"delimiter": ","}])
def test_a_file_without_header(folder: Path, settings: dict):
    mark = settings.get("delimiter", "\t")
    (folder / "train.tsv").write_text("".join(mark.join(row) + "\n" for row in FOUR_ROWS))
    name = {"\t": "tabs", ",": "commas", ";": "semicolons"}[mark]
    with pytest.raises(UsageError, match=r"first line looks like data .* put one above it .* ID TEXT CLASS") as error:
        read_split(load_task(write_task(folder, **settings)), "train")
    assert f"with {name} between them" in str(error.value)


def test_a_header_and_rows_with_other_separators_are_split_for_the_message(folder: Path):
    files = {"files": {"train": "t.csv", "dev": "dev.tsv"}}
    (folder / "t.csv").write_text("".join(f'"{i}";"{text}; ""sí""";"{label}"\n' for i, text, label in FOUR_ROWS))
    with pytest.raises(UsageError, match=r'looks like data \(1, qué bien; "sí", P\).*with semicolons between them'):
        read_split(load_task(write_task(folder, **files)), "train")
    (folder / "t.csv").write_text("id;text;Class\n1;a;P\n2;b;N\n")
    with pytest.raises(UsageError, match="the header has 'id' for 'ID', 'text' for 'TEXT', 'Class' for 'CLASS'; write"):
        read_split(load_task(write_task(folder, **files)), "train")
    columns = {"id": "id", "text": "text", "label": "Class"}
    assert read_split(load_task(write_task(folder, columns=columns, **files)), "train").texts == ["a", "b"]


def test_the_separator_of_a_task_file_is_obeyed(folder: Path):
    (folder / "train.tsv").write_text("ID;TEXT;CLASS\n1;a;P\n2;b;N\n")
    assert read_split(load_task(write_task(folder)), "train").texts == ["a", "b"]
    with pytest.raises(UsageError, match='separated by a semicolon, not by a tab; set delimiter: ";" in the task file'):
        read_split(load_task(write_task(folder, delimiter="\t")), "train")
