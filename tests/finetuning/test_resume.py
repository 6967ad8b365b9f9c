"""An interrupted fine-tuning resumes with its unfinished seeds, and never with other settings."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.make_finetuning import make_base, quick_recipe, write_marked_task
from twilbert import finetune
from twilbert.errors import UsageError
from twilbert.finetuning import resume
from twilbert.finetuning import run as running


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[str, str]:
    """(task, model)."""
    folder = tmp_path_factory.mktemp("world")
    return write_marked_task(folder, rows=32), make_base(folder)


def recipe(world, *overrides: str):
    return quick_recipe(*world, "seeds=3", "training.epochs=1", "head.dropout=0.2", *overrides)


class Trainings:
    """Which seeds were trained; the training of `dies` ends the command."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.dies: int | None = None
        self._train = running.train

    def __call__(self, base, data, task, settings, seed, *callbacks, **more):
        self.seeds.append(seed)
        if seed == self.dies:
            raise KeyboardInterrupt
        return self._train(base, data, task, settings, seed, *callbacks, **more)

    def of(self, settings, out: Path, dies: int | None = None, **more) -> list[int]:
        """The seeds that a fine-tuning trains, ended in that of seed `dies`."""
        self.seeds, self.dies = [], dies
        if dies is None:
            finetune.run(settings, str(out), **more)
        else:
            with pytest.raises(KeyboardInterrupt):
                finetune.run(settings, str(out), **more)
        return self.seeds


@pytest.fixture
def trainings(monkeypatch) -> Trainings:
    counted = Trainings()
    monkeypatch.setattr(running, "train", counted)
    return counted


def scores(out: Path) -> list:
    """What does not depend on the clock."""
    results = json.loads((out / "results.json").read_text())
    seeds = [{k: v for k, v in seed.items() if k not in ("seconds", "history")} for seed in results["seeds"]]
    return [results["dev"], results["test"], results["chosen_seed"], seeds]


def test_finished_seeds_are_not_trained_again_and_the_results_are_the_same(world, tmp_path, trainings, capsys):
    """Unless a file of one is damaged: that one is."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert trainings.of(recipe(world), whole) == [0, 1, 2]
    assert trainings.of(recipe(world), out, dies=2) == [0, 1, 2]
    assert not (out / "results.json").exists() and (out / "seed-1" / "ended.json").exists()
    check_damage_is_reported(out / "seed-1", capsys)
    with (out / "seed-1" / "best.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert trainings.of(recipe(world), out) == [1, 2] and scores(out) == scores(whole)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (out, whole)]
    assert weights[0] == weights[1]
    assert not list(out.glob("seed-*/best.safetensors")) and not list(out.glob("seed-*/ended.json"))
    assert trainings.of(recipe(world), out) == [], "a finished one is read"


DAMAGES = {
    "best.safetensors": [
        lambda sound: sound[:-100],
        lambda sound: sound[:-50] + bytes([sound[-50] ^ 1]) + sound[-49:],
        lambda sound: b"",
        None,
    ],
    "ended.json": [lambda sound: sound.replace(b'"step": 2', b'"step": 3'), lambda sound: sound[:-5]],
}


def check_damage_is_reported(seed: Path, capsys) -> None:
    """A damaged file of a finished seed is named and the seed not read; afterwards the files are whole again."""
    assert resume.read_seed(str(seed)) is not None
    for name, damages in DAMAGES.items():
        sound = (seed / name).read_bytes()
        for damage in damages:
            (seed / name).unlink()
            if damage is not None:
                assert damage(sound) != sound
                (seed / name).write_bytes(damage(sound))
            capsys.readouterr()
            assert resume.read_seed(str(seed)) is None
            expected = rf"{seed / name}: .*(damaged|missing|edited|not readable).*: that seed is trained again"
            assert re.search(expected, capsys.readouterr().err)
            (seed / name).write_bytes(sound)


def test_one_that_died_in_its_final_scoring_trains_nothing_again(world, tmp_path, trainings, monkeypatch):
    out = tmp_path / "out"

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(running.page, "of_run", dies)  # model/ has been written, results.json has not
        finetune.run(recipe(world), str(out))
    assert (out / "model").exists() and not (out / "results.json").exists()
    assert trainings.of(recipe(world), out) == [] and (out / "results.json").exists()


def test_other_settings_data_or_weights_are_refused(world, tmp_path, trainings):
    task, out = world[0], tmp_path / "out"
    trainings.of(recipe(world), out, dies=1)
    faster = recipe(world, "training.learning_rate=0.02")
    with pytest.raises(UsageError, match=r"data:\n  training.learning_rate: was 0.01, now 0.02\n  choose"):
        finetune.run(faster, str(out))
    train = Path(task).with_name("train.tsv")
    before = train.read_text()
    train.write_text(before.replace("\tN\n", "\tP\n", 1))
    with pytest.raises(UsageError, match="train and dev as encoded: was"):
        finetune.run(recipe(world), str(out))
    train.write_text(before)
    (tmp_path / "other").mkdir()
    other = make_base(tmp_path / "other")
    _redraw(other)
    with pytest.raises(UsageError, match=r"(?s)  model: .*  the model's weights: was"):
        finetune.run(recipe((task, other)), str(out))
    assert trainings.of(faster, out, overwrite=True) == [0, 1, 2]
    with pytest.raises(UsageError, match=r"learning_rate: was 0\.02, now 0\.01"):  # finished, with the other rate
        finetune.run(recipe(world), str(out))


def test_a_fine_tuning_is_replaced_when_the_new_one_stands_and_only_where_all_in_it_is_ours(world, tmp_path, trainings):
    out, new = tmp_path / "out", tmp_path / "out.new"
    trainings.of(recipe(world, "seeds=1"), out)
    old = scores(out)
    other = recipe(world, "seeds=2", "training.learning_rate=0.02")
    assert trainings.of(other, out, dies=1, overwrite=True) == [0, 1] and scores(out) == old and new.exists()
    assert trainings.of(other, out, overwrite=True) == [1] and scores(out) != old
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for place in (out, out / "model", out / "seed-0"):
        (place / "notes").write_text("mine")
        with pytest.raises(UsageError, match=r"did not write \(.*notes\); choose another --out$"):
            finetune.run(recipe(world), str(out), overwrite=True)
        with pytest.raises(UsageError, match=r"(?s)other settings.*  choose another --out$"):
            finetune.run(recipe(world), str(out))
        (place / "notes").unlink()
    with pytest.raises(UsageError, match="which this command reads"):
        finetune.run(recipe((world[0], str(out / "model"))), str(out), overwrite=True)


def _redraw(folder: str) -> None:
    """Other weights in a model's folder."""
    from safetensors.numpy import load_file, save_file

    path = f"{folder}/model.safetensors"
    save_file({name: values + 1 for name, values in load_file(path).items()}, path, metadata={"format": "pt"})


@pytest.mark.slow
def test_a_killed_command_goes_on(world, tmp_path):
    """SIGKILL in the second seed: the first is not trained again."""
    task, model = world
    out = tmp_path / "out"
    command = [sys.executable, "-m", "twilbert.finetune", "--task", task, "--model", model, "--out", str(out)]
    command += [
        "seeds=2",
        "training.epochs=200",
        "training.patience=null",
        "training.precision=fp32",
        "tracking.mode=disabled",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    waited = time.monotonic() + 300
    while not (out / "seed-1" / "metrics.jsonl").exists() or not (out / "seed-1" / "metrics.jsonl").stat().st_size:
        assert process.poll() is None and time.monotonic() < waited
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "results.json").exists()
    first = (out / "seed-0" / "ended.json").read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    assert "marked seed 0: finished at an earlier start" in again.stderr and "marked seed 0 epoch" not in again.stderr
    results = json.loads((out / "results.json").read_text())
    assert [seed["seed"] for seed in results["seeds"]] == [0, 1] and len(results["seeds"][1]["history"]) == 200
    assert results["seeds"][0]["history"] == json.loads(first)["history"]
