"""Runs whose driver and worker are killed while the model is published: the next start of the command ends them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.make_finetuning import make_base, quick_recipe, write_marked_task
from tests.small_world import STEPS, make_world
from tests.test_runs import make_run, publish, rows
from twilbert import finetune, pretrain, storage
from twilbert.finetuning import run as finetuning
from twilbert.hub.folder import ModelFolder
from twilbert.recipe.tuning import load as load_sweep
from twilbert.tracking import run_folder
from twilbert.tracking.history import Pretraining
from twilbert.tuning import sweep

LOST = 3600.0


def left_by_a_killed_driver(folder: Path, published: int) -> Path:
    run = make_run(folder, metrics=rows(100), state="running", age=LOST)
    publish(run, published)
    (run / ".ray" / "1").mkdir(parents=True)
    return run


def test_a_run_whose_driver_was_killed_after_publishing_is_finished(tmp_path):
    run = left_by_a_killed_driver(tmp_path / "run", published=100)
    assert Pretraining.read(str(run)).state == "finished"
    assert Pretraining.read(str(left_by_a_killed_driver(tmp_path / "earlier", published=40))).state == "failed"
    run_folder.mark_finished(run_folder.RunFolder(str(run), "run", "01234567", {}))
    status = json.loads(storage.read_bytes(str(run / "status.json")))
    assert status == {"state": "finished", "why": "", "driver": "mine"}
    assert not (run / ".ray").exists()


def test_the_truth_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    run = left_by_a_killed_driver(tmp_path / "run", published=100)
    (run / "owner.json").write_text("[]")
    run_folder.mark_finished(run_folder.RunFolder(str(run), "run", "01234567", {}))
    assert "owner.json" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_killed_in_publishing_and_started_again(ray_local, tmp_path, when, capsys):
    world = make_world(tmp_path)
    recipe, run = str(world / "small.yaml"), world / "runs" / "killed"
    command = [
        sys.executable,
        "-m",
        "tests.pretraining.faulty_workers",
        recipe,
        "run.name=killed",
        f"tracking.project={when}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == -9, done.stderr
    assert (run / "model").exists() == (when == "after") and (run / ".ray").exists()
    for file in (run / "status.json", run / "metrics.jsonl", run / "owner.json"):
        os.utime(file, (time.time() - LOST,) * 2)
    assert Pretraining.read(str(run)).state == ("finished" if when == "after" else "failed")

    before = storage.sha256_file(str(run / "metrics.jsonl"))
    assert pretrain.main([recipe, "run.name=killed"]) == 0
    printed = capsys.readouterr().err
    assert ("already finished" if when == "after" else f"at step {STEPS}") in printed
    assert storage.sha256_file(str(run / "metrics.jsonl")) == before, "nothing was trained"
    assert ModelFolder.open(str(run / "model")).load_pretrained()
    assert json.loads(storage.read_bytes(str(run / "status.json")))["state"] == "finished"
    assert not list(run.glob(".*"))


def test_a_sweep_says_that_it_is_finished_last(tmp_path, monkeypatch):
    def killed(path: str, data: bytes) -> None:
        raise KeyboardInterrupt(path)

    monkeypatch.setattr(storage, "write_bytes_atomic", killed)  # in writing the first of its two files
    with pytest.raises(KeyboardInterrupt, match=r"report\.html"):
        sweep._write(load_sweep(), [], {}, str(tmp_path))


FINETUNING = """
import os, signal, sys
from tests.make_finetuning import quick_recipe
from twilbert import finetune
task, model, out, name = sys.argv[1:]
rename = os.replace
def killing(source, target, *rest, **more):
    if str(target).endswith(name):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, target, *rest, **more)
os.replace = os.rename = killing
finetune.run(quick_recipe(task, model, "seeds=2", "training.epochs=1"), out)
"""
PUBLISHED = ("predictions-dev.jsonl", "model.safetensors", "model", "report.html", "results.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_fine_tuning_killed_in_publishing_is_ended_by_the_next_start(tmp_path, monkeypatch, name):
    task, model = write_marked_task(tmp_path, rows=32), make_base(tmp_path)
    command = [sys.executable, "-c", FINETUNING, task, model, str(tmp_path / "out"), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "out" / "results.json").exists()

    recipe = quick_recipe(task, model, "seeds=2", "training.epochs=1")
    whole = finetune.run(recipe, str(tmp_path / "whole"))
    monkeypatch.setattr(finetuning, "train", None)  # nothing is trained again
    ended = finetune.run(recipe, str(tmp_path / "out"))
    assert [ended[split]["mean"] for split in ("dev", "test")] == [whole[split]["mean"] for split in ("dev", "test")]
    folders = [tmp_path / "out", tmp_path / "whole"]
    names = [{str(file.relative_to(folder)) for file in folder.rglob("*")} for folder in folders]
    assert names[0] == names[1], "and nothing is left over"
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
