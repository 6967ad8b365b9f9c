"""Broken task data through the commands: one clear message, exit 2, nothing started; what is right is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.make_finetuning import QUICK, make_base
from tests.make_tasks import write_rows, write_task
from twilbert import finetune, outputs, tune
from twilbert.tuning import sweep

SOUND = [(str(i), f"hola w{i} {('no', 'si')[i % 2]}", "NP"[i % 2]) for i in range(8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return make_base(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound task of eight rows a split."""
    for split in ("train", "dev", "test"):
        write_rows(tmp_path, f"{split}.tsv", SOUND)
    return tmp_path


BROKEN = {
    "labels not in the task file": (
        "train", [*SOUND, ("8", "a", "NEU"), ("9", "b", "NEU")],
        "label 'NEU' on line 10 and 1 more: expected one of the task's labels (N, P); correct the file, or labels in",
    ),
    "such a label in test alone": (
        "test", [*SOUND, ("8", "a", "NEU")], "test.tsv: label 'NEU' on line 10: expected one of"
    ),
    "tabs inside a text": (
        "train", [*SOUND, ("8", "a\tb", "N")], "1 of 9 rows cannot be read (line 10: 4 cells, expected 3)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_task_is_one_message_and_starts_nothing(case, model, folder, capsys, monkeypatch):
    split, rows, message = BROKEN[case]
    write_rows(folder, f"{split}.tsv", rows)
    task, out = write_task(folder), str(folder / "out")

    def started(*_):
        raise AssertionError("the search was started")

    monkeypatch.setattr(sweep, "search_and_score", started)
    monkeypatch.setattr(outputs.Claim, "held", started)
    for command, more in ((finetune, QUICK), (tune, ["search.trials=1", "tracking.mode=disabled"])):
        assert command.main(["--task", task, "--model", model, "--out", out, *more]) == 2
        err = capsys.readouterr().err
        assert err.count("error: ") == 1 and message in err and str(folder) in err, err
        assert "task mine: 1 fault" in err and "Traceback" not in err
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
    write_rows(folder, "test.tsv", [*SOUND, row])
    if case != "a label that train lacks":
        write_rows(folder, "train.tsv", [*SOUND, row])
    out = folder / "out"
    task = write_task(folder, **settings)
    assert finetune.main(["--task", task, "--model", model, "--out", str(out), *QUICK, "training.epochs=1"]) == 0
    assert told in capsys.readouterr().err + (out / "results.json").read_text()
    rows = [json.loads(line) for line in (out / "predictions-test.jsonl").read_text().splitlines()]
    assert rows[-1]["text"] == row[1] and rows[-1]["truth"] == row[2] and len(rows) == 9
