"""Broken task data through the commands: one clear message, exit 2, nothing started; what is right is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.make_finetuning import QUICK, make_base
from tests.make_tasks import write_rows, write_task
from twilbert import finetune, tune
from twilbert.tuning import sweep

SOUND = [(str(i), f"hola w{i} {('no', 'si')[i % 2]}", "NP"[i % 2]) for i in range(8)]
HEADER = "ID\tTEXT\tCLASS"
COMMAS = {"delimiter": ",", "quoting": "csv"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return make_base(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound task of eight rows a split."""
    for split in ("train", "dev", "test"):
        write_rows(tmp_path, f"{split}.tsv", SOUND)
    return tmp_path


def spoil(folder: Path, split: str, rows, header: str = HEADER) -> None:
    """A split's file in the place of the sound one."""
    write_rows(folder, f"{split}.tsv", [row if isinstance(row, tuple) else (row,) for row in rows], header=header)


BROKEN = {
    "labels not in the task file": (
        "train", [*SOUND, ("8", "a", "NEU"), ("9", "b", "NEU")], HEADER, {},
        "label 'NEU' on line 10 and 1 more: expected one of the task's labels (N, P); correct the file, or labels in",
    ),
    "such a label in test alone": (
        "test", [*SOUND, ("8", "a", "NEU")], HEADER, {}, "test.tsv: label 'NEU' on line 10: expected one of"
    ),
    "a missing column": (
        "dev", SOUND, "ID\tTWEET\tCLASS", {}, "no column TEXT in the header; found ID, TWEET, CLASS; correct the header"
    ),
    "an empty file": ("dev", None, "", {}, "dev.tsv: empty; expected a header with ID, TEXT, CLASS, then rows"),
    "an empty split": ("dev", [], HEADER, {}, "dev.tsv: a header and no rows; expected at least one row"),
    "one class only": (
        "train", SOUND[::2], HEADER, {}, "every row has the same label (N); nothing to learn: add others"
    ),
    "a wrong delimiter": (
        "train", [",".join(row) for row in SOUND], "ID,TEXT,CLASS", {},
        'columns are separated by a comma, not by a tab; set delimiter: "," in the task file',
    ),
    "tabs inside a text": (
        "train", [*SOUND, ("8", "a\tb", "N")], HEADER, {},
        "1 of 9 rows cannot be read (line 10: 4 cells, expected 3)",
    ),
    "stray quotes": (
        "train", ["1,a,P", '2,"b" c,N'], "ID,TEXT,CLASS", COMMAS,
        "1 of 2 rows cannot be read (line 3: a stray quote",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_task_is_one_message_and_starts_nothing(case, model, folder, capsys, monkeypatch):
    split, rows, header, settings, message = BROKEN[case]
    if settings:  # a comma-separated task whose other files are sound
        for other in ("train", "dev", "test"):
            spoil(folder, other, ["1,a,P", "2,b,N"], "ID,TEXT,CLASS")
    if rows is None:
        (folder / f"{split}.tsv").write_bytes(b"")
    else:
        spoil(folder, split, rows, header)
    task, out = write_task(folder, **settings), str(folder / "out")

    def started(*_):
        raise AssertionError("the search was started")

    monkeypatch.setattr(sweep, "search_and_score", started)
    monkeypatch.setattr(sweep, "claim", started)
    for command, more in ((finetune, QUICK), (tune, ["search.trials=1", "tracking.mode=disabled"])):
        assert command.main(["--task", task, "--model", model, "--out", out, *more]) == 2
        told = capsys.readouterr().err
        assert told.count("error: ") == 1 and message in told and str(folder) in told, told
        assert "task mine: 1 fault" in told and "Traceback" not in told
        assert not Path(out).exists()


KEPT = {
    "a label that train lacks": (
        {"labels": ["N", "P", "NEU"]}, ("8", "quizás", "NEU"),
        "label NEU stands in test and not in train: its rows count as errors",
    ),
    "an empty text": ({}, ("8", "", "P"), "test: 1 rows kept where the text is empty"),
    "a text of 10,000 characters": (
        {}, ("8", "hola " * 2_000, "P"), "test: 1 rows kept where the text has 10,000 characters or more"
    ),
    "stray quotes where quotes are text": ({}, ("8", '"hola " dijo "si', "P"), "device"),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_what_is_right_is_kept_to_the_end(case, model, folder, capsys):
    settings, row, told = KEPT[case]
    spoil(folder, "test", [*SOUND, row])
    if case != "a label that train lacks":
        spoil(folder, "train", [*SOUND, row])
    out = folder / "out"
    task = write_task(folder, **settings)
    assert finetune.main(["--task", task, "--model", model, "--out", str(out), *QUICK, "training.epochs=1"]) == 0
    assert told in capsys.readouterr().err + (out / "results.json").read_text()
    rows = [json.loads(line) for line in (out / "predictions-test.jsonl").read_text().splitlines()]
    assert rows[-1]["text"] == row[1] and rows[-1]["truth"] == row[2] and len(rows) == 9
