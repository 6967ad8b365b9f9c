"""twilbert-finetune from task file to folder: learning, the files it writes, wrong usage refused at the start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import twilbert
from tests.make_finetuning import QUICK, make_base, quick_recipe, write_marked_task
from tests.make_models import make_bert
from twilbert import finetune, predict
from twilbert.errors import UsageError
from twilbert.finetuning import run as running
from twilbert.finetuning import test_scores
from twilbert.finetuning import train as loop
from twilbert.model.problems import MULTI, REGRESSION, SINGLE
from twilbert.recipe import finetuning
from twilbert.recipe.finetuning import FinetuneRecipe


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return make_base(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> str:
    return write_marked_task(tmp_path_factory.mktemp("task"))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def refused(capsys, *args: str) -> str:
    """The one message of a command that ends with exit code 2."""
    assert finetune.main([*args, *QUICK]) == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 1
    return message


def test_the_command_learns_scores_and_writes_what_predict_reads(model, task, tmp_path, capsys):
    out = tmp_path / "out"
    assert finetune.main(["--task", task, "--model", model, "--out", str(out), *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "test" in printed and str(out) in printed.splitlines()[-1]
    results = json.loads((out / "results.json").read_text())
    assert results["test"]["mean"] > 0.9 and results["test"]["rows"] == 32 and results["dev"]["n"] == 1
    assert results["test"]["interval"]["low"] <= results["test"]["mean"] <= results["test"]["interval"]["high"]
    written = lines(out / "predictions-test.jsonl")
    assert [row["id"] for row in written] == [f"test-{i}" for i in range(32)]
    loaded = twilbert.load(str(out / "model"), precision="fp32")
    again = loaded.predict([row["text"] for row in written])
    for row, one in zip(written, again, strict=True):
        assert one.label == row["predicted"] and one.probabilities == pytest.approx(row["probabilities"], abs=1e-5)
    wrong = [row for row in written if row["predicted"] != row["truth"]]
    assert len(lines(out / "errors-test.jsonl")) == len(wrong)
    counts = [line.split("\t") for line in (out / "confusion-test.tsv").read_text().splitlines()]
    assert counts[0][1:] == ["N", "P"] and sum(int(n) for row in counts[1:] for n in row[1:]) == 32
    assert "seed-0" in {p.name for p in out.iterdir()} and len(lines(out / "seed-0" / "metrics.jsonl")) == 5
    page = (out / "report.html").read_text()
    assert all(
        title in page for title in ("worst errors", "confusion", "Learning curves", "Calibration", "simple models")
    )
    linear, majority = results["yardsticks"]
    assert linear["score"] > 0.9 and majority["verdict"] == "ahead" and "majority class" in printed
    head = json.loads((out / "model" / "config.json").read_text())["head"]
    assert head["calibration"]["temperature"] == results["calibration"]["temperature"]
    assert finetuning.load(str(out / "recipe.yaml")).task == task
    assert finetune.main(["--task", task, "--model", model, "--out", str(out), "--overwrite", *QUICK]) == 0
    assert "| test |" in (out / "model" / "README.md").read_text()


def test_the_best_by_dev_comes_out_not_the_last(model, task, tmp_path):
    recipe = quick_recipe(task, model, "training.epochs=4", "training.learning_rate=0.05", "training.patience=null")
    results = finetune.run(recipe, str(tmp_path / "out"))
    history = [one["score"] for one in results["seeds"][0]["history"]]
    assert len(history) == 4 and results["dev"]["mean"] == max(history)
    prepared = running.prepare(recipe)
    loaded = twilbert.load(str(tmp_path / "out" / "model"), precision="fp32")
    rows = lines(tmp_path / "out" / "predictions-dev.jsonl")
    scores = loaded.scores([row["text"] for row in rows])
    assert loop.dev_score(prepared.task, prepared.data.dev.labels, scores) == pytest.approx(max(history))


def test_test_rows_are_read_once_after_all_trainings(model, task, tmp_path, monkeypatch):
    happened = []
    trained, read = running.train, test_scores.read_test
    monkeypatch.setattr(running, "train", lambda *a, **b: (trained(*a, **b), happened.append("trained"))[0])
    monkeypatch.setattr(test_scores, "read_test", lambda t: (happened.append("test read"), read(t))[1])
    results = finetune.run(quick_recipe(task, model, "seeds=2", "training.epochs=1"), str(tmp_path / "out"))
    assert happened == ["trained", "trained", "test read"]
    both = [seed["test"] for seed in results["seeds"]]
    assert results["test"]["mean"] == pytest.approx(np.mean(both))
    assert results["test"]["sd"] == pytest.approx(np.std(both, ddof=1)) and results["test"]["n"] == 2


def test_what_trains_never_opens_the_test_file(model, task, monkeypatch):
    recipe = quick_recipe(task, model, "training.epochs=1")
    prepared = running.prepare(recipe)  # which checks the test file's rows
    opened = []
    from twilbert.tasks import rows as task_rows

    real = task_rows.read_table
    monkeypatch.setattr(task_rows, "read_table", lambda t, split: (opened.append(split), real(t, split))[1])
    loop.train(prepared.base, prepared.data, prepared.task, recipe, 0, lambda _: None)
    running.encode_task(prepared.base, prepared.task, recipe)
    assert "train" in opened and "test" not in opened


def test_patience_ends_a_training_that_does_not_improve(model, task, tmp_path):
    frozen = ("encoder.trainable_layers=none", "training.learning_rate=1e-12", "training.epochs=9")
    results = finetune.run(quick_recipe(task, model, *frozen, "training.patience=2"), str(tmp_path / "out"))
    seed = results["seeds"][0]
    assert seed["stopped_early"] and len(seed["history"]) == 3 and seed["best_step"] == seed["history"][0]["step"]


@pytest.mark.parametrize(("pooling", "special"), [("avg", "true"), ("max", "false"), ("concat", "false")])
def test_every_pooling_learns_and_is_read_back(model, task, tmp_path, pooling, special):
    overrides = (f"head.pooling={pooling}", f"head.special_tokens={special}")
    results = finetune.run(quick_recipe(task, model, *overrides), str(tmp_path / "out"))
    assert results["test"]["mean"] > 0.85
    head = twilbert.load(str(tmp_path / "out" / "model")).head
    assert head is not None and head.pooling == pooling and head.special_tokens == (special == "true")


def test_multi_label_regression_and_pairs(model, tmp_path):
    for problem, two, least in ((MULTI, False, 0.8), (REGRESSION, False, 0.0), (SINGLE, True, 0.8)):
        folder = tmp_path / f"{problem}-{two}"
        recipe = quick_recipe(write_marked_task(folder, problem=problem, two=two), model, "training.epochs=6")
        results = finetune.run(recipe, str(folder / "out"))
        score = results["test"]["mean"]
        assert score < 0.35 if problem == REGRESSION else score > least, (problem, two, score)
        written = lines(folder / "out" / "predictions-test.jsonl")
        loaded = twilbert.load(str(folder / "out" / "model"), precision="fp32")
        again = loaded.predict([r["text"] for r in written], [r["text_b"] for r in written] if two else None)
        if problem == REGRESSION:
            assert [one.label for one in again] == pytest.approx([r["predicted"] for r in written], abs=1e-5)
        elif problem == MULTI:
            assert [list(one.label) for one in again] == [r["predicted"] for r in written]
            assert any(len(r["truth"]) == 2 for r in written) and any(not r["truth"] for r in written)
        else:
            assert [one.label for one in again] == [r["predicted"] for r in written]
        assert lines(folder / "out" / "errors-test.jsonl") is not None


def test_a_test_without_labels_gives_predictions_and_no_score(model, tmp_path, capsys):
    path = write_marked_task(tmp_path / "task", test_labelled=False)
    out = tmp_path / "out"
    assert finetune.main(["--task", path, "--model", model, "--out", str(out), *QUICK, "training.epochs=1"]) == 0
    assert "no labels" in capsys.readouterr().out
    assert "test" not in json.loads((out / "results.json").read_text())
    written = lines(out / "predictions-test.jsonl")
    assert len(written) == 32 and all("truth" not in row and row["predicted"] in "NP" for row in written)
    assert not (out / "errors-test.jsonl").exists()


def test_own_head_and_own_loss_by_import_path(model, task, tmp_path, monkeypatch):
    (tmp_path / "mine_for_finetune.py").write_text(
        "import torch\n"
        "class Middle(torch.nn.Module):\n"
        "    def __init__(self, hidden_size, head):\n"
        "        super().__init__()\n"
        "        self.out = torch.nn.Linear(hidden_size, head.size)\n"
        "    def forward(self, hidden, lengths, ids):\n"
        "        return self.out(hidden.mean(1) if lengths is None else hidden[:, 0])\n"
        "def focal(logits, targets):\n"
        "    each = torch.nn.functional.cross_entropy(logits, targets, reduction='none')\n"
        "    return (1 - (-each).exp()) ** 2 * each\n"
    )
    monkeypatch.chdir(tmp_path)
    mine = ("head.own=mine_for_finetune:Middle", "loss.name=mine_for_finetune:focal")
    finetune.run(quick_recipe(task, model, *mine, "training.epochs=1"), str(tmp_path / "out"))
    written = lines(tmp_path / "out" / "predictions-test.jsonl")
    again = twilbert.load(str(tmp_path / "out" / "model"), precision="fp32", trust_remote_code=True)
    again = again.predict([row["text"] for row in written])
    assert [one.label for one in again] == [row["predicted"] for row in written]
    with pytest.raises(UsageError, match=r"mine_for_finetune has no Midle; did you mean mine_for_finetune:Middle"):
        finetune.run(quick_recipe(task, model, "head.own=mine_for_finetune:Midle"), str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_third_party_encoder_is_fine_tuned_alike(task, tmp_path):
    bert, out = make_bert(tmp_path), tmp_path / "out"
    results = finetune.run(quick_recipe(task, bert, "head.pooling=concat", "head.special_tokens=false"), str(out))
    assert results["test"]["mean"] > 0.85 and results["model"] == bert
    written = lines(out / "predictions-test.jsonl")
    loaded = twilbert.load(str(out / "model"), precision="fp32")
    for row, one in zip(written, loaded.predict([row["text"] for row in written]), strict=True):
        assert one.probabilities == pytest.approx(row["probabilities"], abs=1e-5)
    pairs = write_marked_task(tmp_path / "pairs", two=True)
    decayed = ("encoder.layer_decay=0.9", "encoder.trainable_layers=[1]", "encoder.output_dropout=0.0")
    results = finetune.run(quick_recipe(pairs, bert, *decayed), str(tmp_path / "out2"))
    assert results["dev"]["rows"] == 32


def test_without_a_model_the_newest_finished_run_or_the_commands_that_make_one(task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, "--task", task, "--out", "out")
    for command in ("twilbert-sample", "twilbert-prepare", "twilbert-vocab", "twilbert-pretrain"):
        assert command in message
    for name, trained in (("one", 5), ("two", 3)):  # the second was not finished
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        make_base(folder)
        (folder / "recipe.yaml").write_text(
            "training: {max_steps: 5, warmup_steps: 1, learning_rate: 1e-3, schedule: linear}\n"
        )
        (folder / "model" / "training.json").write_text(json.dumps({"trained_steps": trained}))
    assert finetune.main(["--task", task, "--out", "out", *QUICK, "training.epochs=1"]) == 0
    assert "runs/one, the newest finished run" in capsys.readouterr().err


def test_all_faults_are_reported_before_anything_is_written(model, task, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = ("--model", model, "--out", "out")
    assert "which task?" in refused(capsys, *out)
    message = refused(capsys, "--task", task, *out, "training.epoch=3", "head.pooling=mean")
    assert "2 faults" in message and "did you mean training.epochs?" in message
    wrong = ("loss.name=binary_cross_entropy", "loss.class_weights=[1,2,3]", "encoder.trainable_layers=[7]")
    message = refused(capsys, "--task", task, *out, *wrong)
    assert "binary_cross_entropy does not fit" in message and "give one for each" in message and "7 is none" in message
    assert "12" in refused(capsys, "--task", task, *out, "text.max_len=99")
    none = str(_no_model(tmp_path))
    assert "has no model.safetensors" in refused(capsys, "--task", task, "--model", none, "--out", "o")
    broken = write_marked_task(tmp_path / "broken", labels=["N", "Q"])
    assert "label 'P' on line" in refused(capsys, "--task", broken, *out)
    Path("out").mkdir()
    Path("out/something").write_text("mine")
    assert "already holds something" in refused(capsys, "--task", task, *out)
    assert "finetune did not write" in refused(capsys, "--task", task, *out, "--overwrite")
    Path("out/recipe.yaml").write_text("corpus: {path: corpus}\n")  # a run of pre-training
    assert "finetune did not write" in refused(capsys, "--task", task, *out, "--overwrite")
    assert sorted(p.name for p in Path("out").iterdir()) == ["recipe.yaml", "something"]


def _no_model(folder: Path) -> Path:
    (folder / "empty").mkdir()
    (folder / "empty" / "config.json").write_text('{"model_type": "no_such_kind"}')
    return folder / "empty"


def test_dry_run_shows_the_recipe_and_writes_nothing(model, task, tmp_path, capsys):
    out = tmp_path / "out"
    assert finetune.main(["--task", task, "--model", model, "--out", str(out), "--dry-run", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "learning_rate: 0.01" in printed and "192 train and 32 dev rows" in printed
    assert not out.exists()


def test_the_shipped_recipe_is_valid_and_every_field_says_what_it_is():
    assert finetuning.load() == finetuning.load("recipes/finetune.yaml")
    sections = [FinetuneRecipe, *(type(value) for _, value in FinetuneRecipe() if hasattr(value, "model_fields"))]
    assert len(sections) == 7
    for section in sections:
        for key, field in section.model_fields.items():
            assert field.description or section is FinetuneRecipe, key


def test_what_was_trained_on_pairs_is_asked_with_pairs_and_the_other_way_round(model, task, tmp_path, capsys):
    """Either mistake gave labels to every row, and no word."""
    (tmp_path / "in.tsv").write_text("text\tnext\nw1 w2\tsi\nw3\tno\n")
    two = write_marked_task(tmp_path / "two", two=True)
    singles, pairs = str(tmp_path / "singles"), str(tmp_path / "pairs")
    for source, out in ((task, singles), (two, pairs)):
        finetune.run(quick_recipe(source, model, "training.epochs=1"), out)

    def labels(model: str, *more: str) -> int:
        return predict.main([model, str(tmp_path / "in.tsv"), *more, "--out", str(tmp_path / "out.tsv"), "--overwrite"])

    second = ("--pair-column", "next")
    assert labels(singles) == labels(pairs, *second) == 0
    capsys.readouterr()
    (tmp_path / "out.tsv").unlink()
    assert labels(singles, *second) == 2
    assert "singles/model: fine-tuned on single texts" in capsys.readouterr().err
    assert labels(pairs) == 2 and predict.main([pairs, "--text", "hola"]) == 2
    assert capsys.readouterr().err.count("pairs/model: fine-tuned on pairs of texts; name the column") == 2
    assert not (tmp_path / "out.tsv").exists()
    with pytest.raises(UsageError, match="on pairs of texts"):
        twilbert.load(pairs).predict("hola")
    assert twilbert.load(pairs).predict("hola", "si").label in ("N", "P")
    assert 'model.predict("…", "…")' in (tmp_path / "pairs" / "model" / "README.md").read_text()
    # Vectors are the encoder's, which reads both. Models of 0.2.0 do not say what they were trained on.
    assert twilbert.load(singles).embed("hola", pairs="si").shape == twilbert.load(pairs).embed("hola").shape
    config = tmp_path / "pairs" / "model" / "config.json"
    values = json.loads(config.read_text())
    assert values["text"].pop("pairs") is True
    config.write_text(json.dumps(values))
    assert labels(pairs) == 0


def test_progress_within_an_epoch_is_printed_in_plain_lines(model, task, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running, "_SAY_SECONDS", 0.0)
    finetune.run(quick_recipe(task, model, "training.epochs=2", "training.batch_size=64"), str(tmp_path / "out"))
    printed = capsys.readouterr().err
    assert "marked seed 0: batch 2/6  epoch 1/2  " in printed and "min left" in printed
    assert "marked seed 0: batch 3/6  dev 32/32 rows  " in printed
