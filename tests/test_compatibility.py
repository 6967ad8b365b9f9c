"""Folders that version 0.2.0 wrote open, predict, resume and count as finished as they did then.

golden/written_by_0.2.0.tar.xz holds what 0.2.0's commands made of generated pairs: corpus (and encoded), tokenizer, a
run of 8 LAMB steps with checkpoints at 4 and 8, a fine-tuned model of it and of a BERT, a sweep, and the predictions.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import twilbert
from tests import places
from twilbert import runs, tune
from twilbert.predict import main as predict

ARCHIVE = places.GOLDEN / "written_by_0.2.0.tar.xz"
TEXTS = ["qué bien genial", "qué mal fatal"]


@pytest.fixture
def written(tmp_path) -> Path:
    """The folders, in a place of the test's own."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "twilbert"


def test_the_pretrained_model_gives_the_same_embeddings(written):
    model = twilbert.load(str(written / "runs/finished"), device="cpu", precision="fp32")
    expected = np.load(written / "embedded.npz")["embeddings"]
    np.testing.assert_allclose(model.embed(["qué bien genial", "qué mal fatal, url user"]), expected, atol=1e-5)


@pytest.mark.parametrize(("folder", "file"), [("fine_tuned", "predicted.json"), ("bert_tuned", "bert_predicted.json")])
def test_fine_tuned_models_give_the_same_probabilities(written, folder, file):
    model = twilbert.load(str(written / folder / "model"), device="cpu", precision="fp32")
    expected = json.loads((written / file).read_text())
    for prediction, then in zip(model.predict(TEXTS), expected, strict=True):
        assert prediction.probabilities == pytest.approx(then, abs=1e-5)


def test_predict_writes_the_same_labels(written, monkeypatch):
    monkeypatch.chdir(written)
    assert predict(["fine_tuned/model", "task/test.tsv", "--out", "again.tsv", "--precision", "fp32"]) == 0
    now, then = (
        [line.split("\t") for line in Path(name).read_text().splitlines()] for name in ("again.tsv", "predicted.tsv")
    )
    assert [row[:4] for row in now] == [row[:4] for row in then]


def test_runs_lists_the_run(written, monkeypatch, capsys):
    monkeypatch.chdir(written)
    assert runs.main([]) == 0
    assert "finished" in capsys.readouterr().out


@pytest.mark.ray
def test_a_killed_run_resumes_to_the_same_weights(written, monkeypatch, ray_local):
    """At the same world size, and on the processor that computed the golden file to the bit."""
    from twilbert import pretrain

    monkeypatch.chdir(written)
    run = written / "runs/finished"
    expected = load_file(run / "checkpoint-000008/model/model.safetensors")
    shutil.rmtree(run / "checkpoint-000008")
    shutil.rmtree(run / "model")
    places = {
        "run.storage_path": str(written / "runs"),
        "corpus.path": str(written / "corpus"),
        "corpus.tokenizer": str(written / "tokenizer"),
        "run.name": "finished",
    }
    resumed = pretrain.run("small.yaml", **places)
    weights = load_file(Path(resumed.path) / "checkpoint-000008/model/model.safetensors")
    assert weights.keys() == expected.keys()
    differences = [float(np.abs(weights[name] - expected[name]).max()) for name in expected]
    assert max(differences) < 1e-5, f"largest difference {max(differences)}"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 9))


@pytest.mark.ray
def test_a_finished_sweep_is_read_not_trained_again(written, monkeypatch, ray_local):
    monkeypatch.chdir(written)
    record = written / "swept/sweep.yaml"  # a sweep knows its task and model by their paths
    record.write_text(record.read_text().replace("/data/twilbert", str(written)))
    before = {path: path.stat().st_mtime_ns for path in (written / "swept").rglob("*") if path.is_file()}
    sweep = tune.run(
        tasks=["task/mine.yaml"],
        models=["runs/finished"],
        out="swept",
        search__trials=2,
        **{"training.epochs": {"choice": [1, 2]}, "training.batch_size": 8, "tracking.mode": "disabled"},
    )
    assert list(sweep.models) == ["mine"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
