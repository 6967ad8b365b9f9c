"""The final scoring: the score without test rows whose text stands in train, on rows counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.make_tasks import write_rows, write_task
from twilbert import finetune
from twilbert.data.cleaning import TWILBERT
from twilbert.finetuning import page, test_scores
from twilbert.finetuning.data import TaskData
from twilbert.finetuning.train import Evaluation, Outcome
from twilbert.recipe import finetuning
from twilbert.tasks.task import load_task

TRAIN = ["mira https://t.co/abc hola", "@ana que tal", "RT esto no", "tú &amp; yo…", "solo en train"]
# (text, label, the first seed's prediction, the second's)
COPIES = [
    ("mira http://x.es/z?a=1 hola", "P", "P", "N"),  # another link
    ("@luis que  tal", "N", "N", "N"),  # another mention, another space
    ("esto no", "P", "P", "P"),  # not retweeted
    ("tú & yo", "N", "P", "N"),  # an entity, an ellipsis
]
NEW = [
    ("MIRA http://x.es/z hola", "P", "P", "P"),  # cleaning keeps case
    ("que tal", "N", "P", "N"),
    ("otro texto", "P", "N", "N"),
    ("solo en test", "N", "N", "N"),
    ("y otro más", "P", "N", "P"),
]


def scored(folder: Path, monkeypatch, rows, train=TRAIN, **settings) -> dict:
    """The test scores of a task with these test rows and the two seeds' predictions in them."""
    two = len(rows[0]) == 5
    header = "ID\tTEXT\tNEXT\tCLASS" if two else "ID\tTEXT\tCLASS"
    texts = [text if isinstance(text, tuple) else (text,) for text in train]
    known = [(str(i), *text, "NP"[i % 2]) for i, text in enumerate(texts)]
    write_rows(folder, "train.tsv", known, header=header)
    write_rows(folder, "dev.tsv", known, header=header)
    write_rows(folder, "test.tsv", [(str(i), *row[:-2]) for i, row in enumerate(rows)], header=header)
    columns = {"columns": {"text_b": "NEXT"}} if two else {}
    task = load_task(write_task(folder, **{"metric": "accuracy", **columns, **settings}))
    predicted = [
        np.array([[1.0, 0.0] if row[seed] == "N" else [0.0, 1.0] for row in rows], np.float32) for seed in (-2, -1)
    ]
    monkeypatch.setattr(test_scores, "_test_probabilities", lambda *_: predicted)
    evaluation = Evaluation(1, 1.0, 0.5, 0.1, 0.1, 1e-3, 1.0, 1.0, 0)
    dev = np.tile(np.float32([0.4, 0.6]), (len(train), 1))
    outcomes = [Outcome(seed, evaluation, [evaluation], dev, {"w": torch.zeros(1)}, False) for seed in (0, 1)]
    nothing = None  # with given predictions, neither a model nor encoded rows are needed
    text = {"remove_rt": task.remove_rt, "max_len": 9, "cleaning": TWILBERT.name}
    scores = test_scores.score(nothing, task, TaskData(nothing, nothing, text), finetuning.load(), outcomes).scores
    return scores["test"] | {"seeds": [seed["test"] for seed in scores["seeds"]]}


def test_rows_whose_cleaned_text_stands_in_train_are_left_out_of_the_second_score(tmp_path, monkeypatch):
    test = scored(tmp_path, monkeypatch, COPIES + NEW)
    assert test["rows"] == 9 and test["rows_also_in_train"] == 4
    # Of 9 rows the seeds have 5 and 7 right; of the 5 new ones 2 and 4.
    assert test["seeds"] == pytest.approx([5 / 9, 7 / 9])
    assert test["mean"] == pytest.approx(6 / 9) and test["n"] == 2
    unseen = test["without_rows_in_train"]
    assert unseen["mean"] == pytest.approx((2 / 5 + 4 / 5) / 2) and unseen["n"] == 2
    assert unseen["sd"] == pytest.approx(np.std([2 / 5, 4 / 5], ddof=1))


def test_a_task_that_keeps_rt_compares_with_it(tmp_path, monkeypatch):
    assert scored(tmp_path, monkeypatch, COPIES + NEW, remove_rt=False)["rows_also_in_train"] == 3


def test_of_two_texts_both_must_stand_in_train_together(tmp_path, monkeypatch):
    train = [("a @x", "b"), ("c", "d http://y.es")]
    rows = [("a @z", "b", "P", "P", "N"), ("a @z", "d url", "N", "P", "N"), ("c", "d https://k.es", "P", "P", "P")]
    test = scored(tmp_path, monkeypatch, rows, train)
    assert test["rows_also_in_train"] == 2 and test["without_rows_in_train"]["mean"] == pytest.approx(0.5)


def test_without_or_with_nothing_but_copies_there_is_no_second_score(tmp_path, monkeypatch):
    none, every = scored(tmp_path, monkeypatch, NEW), scored(tmp_path, monkeypatch, COPIES)
    assert none["rows_also_in_train"] == 0 and "without_rows_in_train" not in none
    assert every["rows_also_in_train"] == 4 and "without_rows_in_train" not in every


def test_a_second_score_that_is_undefined_is_a_dash(capsys):
    """A correlation over one row that is left: null in JSON, a dash on the terminal."""
    nothing = {"mean": None, "sd": None, "n": 1}
    assert (
        page.mean_and_sd(nothing) == "–" and page.mean_and_sd({"mean": 0.5, "sd": 0.125, "n": 2}) == "0.5000 ± 0.1250"
    )
    test = {"mean": 0.5, "sd": None, "n": 1, "rows": 3, "interval": {"low": None, "high": None}}
    test |= {"rows_also_in_train": 2, "without_rows_in_train": nothing}
    results = {"task": "t", "metric": "pearson", "average": None, "class_metric": None, "dev": test, "test": test}
    finetune._show(results | {"counts": {}})
    assert "test without texts of train  pearson  –" in capsys.readouterr().out
