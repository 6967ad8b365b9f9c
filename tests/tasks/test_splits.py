"""Dev drawn from train: no text on both sides, whatever its label, and texts with several labels are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.make_finetuning import QUICK, make_base
from tests.make_tasks import write_rows, write_task
from twilbert import finetune
from twilbert.data.cleaning import TWILBERT as clean
from twilbert.tasks.checks import validate
from twilbert.tasks.rows import read_split
from twilbert.tasks.task import Task, load_task

DRAWN = {"files": {"train": "train.tsv"}, "split": {"dev": 0.2}}


def drawn_task(folder: Path, rows: list, **settings) -> Task:
    write_rows(folder, "train.tsv", rows)
    return load_task(write_task(folder, **DRAWN | settings))


def test_a_share_of_train_as_dev(tmp_path: Path):
    texts = [f"texto {i % 150}" for i in range(200)]  # fifty stand twice
    rows = [(str(i), text, "P" if i % 150 < 30 else "N") for i, text in enumerate(texts)]
    write_rows(tmp_path, "train.tsv", rows)
    task = load_task(write_task(tmp_path, **DRAWN))
    train, dev = read_split(task, "train"), read_split(task, "dev")
    assert sorted(train.ids + dev.ids) == sorted(row[0] for row in rows)
    assert not set(train.texts) & set(dev.texts)
    assert 34 <= len(dev) <= 50 and 0.2 <= np.mean(dev.labels == 1) <= 0.45  # stratified: 60 of 200 are P
    write_rows(tmp_path, "train.tsv", rows[::-1])
    assert set(read_split(task, "dev").ids) == set(dev.ids)  # whatever the order of the file
    other = load_task(write_task(tmp_path, **DRAWN | {"split": {"dev": 0.2, "seed": 1}}))
    assert set(read_split(other, "dev").ids) != set(dev.ids)
    assert validate(task).faults == []
    # Rare labels give a row, and keep one; nothing to draw is a fault.
    write_rows(tmp_path, "train.tsv", [("1", "a", "P"), ("2", "b", "P"), ("3", "c", "N"), ("4", "d", "N")])
    assert sorted(read_split(task, "dev").labels.tolist()) == [0, 1]
    write_rows(tmp_path, "train.tsv", [("1", "a", "P"), ("3", "c", "N")])
    assert any("too few rows to draw a dev" in fault for fault in validate(task).faults)


def test_texts_that_are_equal_once_cleaned_stay_on_one_side_whatever_their_labels(tmp_path: Path):
    """A retweeted headline differs by its link and mention alone, and annotators disagree about it."""
    rng = np.random.default_rng(0)
    rows = [
        (str(i), f"RT @cuenta{i}: titular {i % 120} https://t.co/{i}", "NP"[rng.random() < 0.3 + 0.4 * (i % 2)])
        for i in range(360)
    ]
    task = drawn_task(tmp_path, rows)
    sides = {split: {clean(text, True) for text in read_split(task, split).texts} for split in ("train", "dev")}
    assert len(sides["train"] | sides["dev"]) == 120 and not sides["train"] & sides["dev"]
    dev = read_split(task, "dev")
    assert 0.17 <= len(dev) / len(rows) <= 0.25 and 0.3 <= np.mean(dev.labels) <= 0.7
    write_rows(tmp_path, "train.tsv", rows[::-1])
    assert set(read_split(task, "dev").ids) == set(dev.ids)


def test_two_texts_are_one_key_and_flags_and_scores_are_drawn_too(tmp_path: Path):
    lines = [("a", f"b{i % 40}", f"{i % 2}|1") for i in range(80)]
    write_rows(tmp_path, "train.tsv", lines, header="T\tU\tL")
    columns = {"id": None, "text": "T", "text_b": "U", "label": "L"}
    task = load_task(write_task(tmp_path, columns=columns, problem="multi_label_classification", **DRAWN))
    train, dev = read_split(task, "train"), read_split(task, "dev")
    assert len(dev) == 16 and not set(train.texts_b or ()) & set(dev.texts_b or ())
    scores = {"problem": "regression", "labels": ["score"], "metric": "mae"}
    task = drawn_task(tmp_path, [(str(i), f"texto {i % 40}", str(i)) for i in range(80)], **scores)
    dev = read_split(task, "dev")
    assert len(dev) == 16 and len(set(dev.texts)) == 8
    assert not any("more than one label" in notice for notice in validate(task).notices)  # scores may differ


def test_texts_with_several_labels_are_counted_and_named_by_line(tmp_path: Path):
    rows = [(str(i), f"texto {i}", "NP"[i % 2]) for i in range(20)]
    rows += [("20", "texto 3 ", "N"), ("21", "Texto 5", "N"), ("22", "texto 3", "N")]  # case is a difference
    found = validate(drawn_task(tmp_path, rows))
    assert found.notices == [
        "1 text has more than one label, in 3 rows: line 5 (P), line 22 (N); no model can learn both"
    ]
    many = drawn_task(tmp_path, [(str(i), f"texto {i % 10}", "NP"[i >= 10]) for i in range(20)])
    assert [n for n in validate(many).notices if "more than one label" in n] == [
        "10 texts have more than one label, in 20 rows: line 2 (N), line 12 (P); line 3 (N), line 13 (P); "
        "line 4 (N), line 14 (P); …; no model can learn both"
    ]
    # Of two files each is named; test is not looked at.
    write_rows(tmp_path, "train.tsv", rows[:20])
    write_rows(tmp_path, "dev.tsv", [("1", "texto 0", "P"), ("2", "nada", "N")])
    write_rows(tmp_path, "test.tsv", [("1", "texto 1", "N")])
    found = validate(load_task(write_task(tmp_path)))
    assert found.notices == [
        "1 text has more than one label, in 2 rows: train line 2 (N), dev line 2 (P); no model can learn both"
    ]


def test_a_fine_tuning_notices_that_another_dev_was_drawn(tmp_path: Path, capsys):
    """Rows are the same and their labels too; only which of them are dev has changed."""
    model = make_base(tmp_path)
    drawn_task(tmp_path, [(str(i), f"hola w{i} {('no', 'si')[i % 2]}", "NP"[i % 2]) for i in range(40)])
    command = ["--task", str(tmp_path / "mine.yaml"), "--model", model, "--out", str(tmp_path / "out")]
    command += [*QUICK, "training.epochs=1"]
    assert finetune.main(command) == 0
    write_task(tmp_path, **DRAWN | {"split": {"dev": 0.2, "seed": 1}})
    capsys.readouterr()
    assert finetune.main(command) == 2
    assert "train and dev as encoded: was " in capsys.readouterr().err
