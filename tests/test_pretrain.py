"""twilbert-pretrain: a run, its files, its resume, and what it says when something is not as it should be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.read_wandb import series
from tests.small_world import STEPS, make_world
from twilbert import storage
from twilbert.cluster import ray_session
from twilbert.hub.folder import ModelFolder
from twilbert.pretrain import main
from twilbert.pretraining import checkpoint
from twilbert.tracking.metrics import read_metrics


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("pretrain"))


def pretrain(world: Path, *overrides: str) -> int:
    return main([str(world / "small.yaml"), *overrides])


@pytest.fixture(scope="module")
def finished(world, ray_local) -> Path:
    """An undisturbed run, named by default."""
    assert pretrain(world) == 0
    (run,) = (world / "runs").iterdir()
    return run


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in read_metrics(str(run / "metrics.jsonl")) if "train/loss" in row}


# ---- a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_run_leaves_what_the_documentation_promises(finished):
    assert finished.name.startswith("small-")
    names = {item.name for item in finished.iterdir()}
    assert names >= {"recipe.yaml", "identity.json", "metrics.jsonl", "wandb", "checkpoint-000012", "model"}
    assert ".ray" not in names
    for step in checkpoint.steps_in(str(finished)):
        folder = finished / checkpoint.folder_name(step)
        assert checkpoint.verify(str(folder)) is None
        files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        assert files >= {
            "manifest.json", "state.json", "recipe.yaml", "optimizer-00000-of-00001.safetensors",
            "model/config.json", "model/model.safetensors", "model/tokenizer.json",
        }  # fmt: skip
    folder = ModelFolder.open(str(finished / "model"))
    config, model = folder.config, folder.load_pretrained()
    assert config.vocab_size == 400
    assert torch.count_nonzero(model.get_buffer("encoder.blocks.1.memory.query_norm.running_mean"))


@pytest.mark.ray
def test_the_series_are_those_of_the_documentation_and_the_same_in_both_logs(finished):
    rows = read_metrics(str(finished / "metrics.jsonl"))
    trained = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in trained] == list(range(1, STEPS + 1))
    assert {row["step"] for row in rows if "valid/mlm_loss" in row} == {4, 8, 12}
    assert trained[0].keys() >= {
        "train/mlm_loss", "train/mlm_accuracy", "train/rop_loss", "train/rop_accuracy", "optim/learning_rate",
        "optim/grad_norm", "speed/tokens_per_second", "speed/samples_per_second", "speed/data_wait_share",
        "data/padding",
    }  # fmt: skip
    assert trained[0]["optim/learning_rate"] == pytest.approx(0.5e-2), "the first update uses lr(1)"
    assert trained[-1]["train/loss"] < trained[0]["train/loss"]
    (log,) = finished.glob("wandb/offline-run-*/run-*.wandb")
    assert series(log) == rows


@pytest.mark.ray
def test_a_finished_run_says_so(finished, world, capsys):
    before = storage.sha256_file(str(finished / "metrics.jsonl"))
    assert pretrain(world) == 0
    printed = capsys.readouterr()
    assert "already finished at step 12" in printed.err
    assert printed.out.endswith(f"model in {finished / 'model'}\n")
    assert storage.sha256_file(str(finished / "metrics.jsonl")) == before


@pytest.mark.ray
def test_ctrl_c_saves_and_the_same_command_ends_as_if_undisturbed(finished, world, capsys):
    run = world / "runs" / "interrupted"

    def interrupt() -> None:
        while not checkpoint.steps_in(str(run)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert pretrain(world, "run.name=interrupted", "training.logging_steps=100", "training.save_steps=1") == 130
    printed = capsys.readouterr()
    assert "the same command resumes" in printed.err
    assert "Traceback" not in printed.err
    stopped = max(checkpoint.steps_in(str(run)))
    assert stopped < STEPS
    assert checkpoint.verify(str(run / checkpoint.folder_name(stopped))) is None
    assert ModelFolder.open(str(run / "model")).load_pretrained()

    assert pretrain(world, "run.name=interrupted") == 0
    assert f"at step {stopped}" in capsys.readouterr().err
    undisturbed, resumed = losses(finished), losses(run)
    first = [undisturbed.pop(step) for step in range(1, stopped + 2)]  # all but one before the stop, and in no row yet
    assert resumed.pop(stopped + 1) == pytest.approx(sum(first) / len(first), rel=0.005)
    assert resumed == undisturbed
    weights = "checkpoint-000012/model/model.safetensors"
    assert (run / weights).read_bytes() == (finished / weights).read_bytes()


@pytest.mark.ray
def test_an_edited_recipe_under_the_old_name_is_refused_with_the_difference(finished, world, capsys):
    assert pretrain(world, f"run.name={finished.name}", "training.seed=7") == 2
    message = capsys.readouterr().err
    assert "training.seed: was 0, now 7" in message
    assert "run.name=NAME" in message


@pytest.mark.ray
def test_a_model_of_another_architecture_is_refused_before_anything_starts(finished, world, capsys):
    assert pretrain(world, f"model.init_from={finished / 'model'}", "model.n_encoders=3", "run.name=initial") == 2
    assert "model.n_encoders: 3 in the recipe, 2 in the model" in capsys.readouterr().err
    assert not (world / "runs" / "initial").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_model_whose_weights_are_not_finite_is_refused_by_tensor_at_the_first_start(finished, world, capsys):
    shutil.copytree(finished / "model", world / "broken")
    tensors = load_file(world / "broken" / "model.safetensors")
    tensors["masked_lm.decoder.bias"][3] = float("nan")
    save_file(tensors, world / "broken" / "model.safetensors")
    assert pretrain(world, f"model.init_from={world / 'broken'}", "run.name=from-broken") == 1
    message = capsys.readouterr().err
    assert "tensor masked_lm.decoder.bias: 1 of" in message and message.count("error: ") == 1
    assert "died" not in message


@pytest.mark.ray
def test_a_run_from_a_model_takes_its_sizes_and_vocabulary_and_starts_at_its_loss(finished, world):
    source = finished / "model"
    recipe = {
        "run": {"storage_path": str(world / "runs"), "name": "continued"},
        "corpus": {"path": str(world / "corpus")},
        "model": {"init_from": str(source)},
        "training": {
            "schedule": "constant", "learning_rate": 1e-9, "warmup_steps": 1, "max_steps": 1, "precision": "fp32",
            "global_batch_size": 32, "eval_steps": 1, "save_steps": 1,
        },
        "tracking": {"mode": "disabled"},
    }  # fmt: skip
    (world / "continued.yaml").write_text(yaml.safe_dump(recipe))
    assert main([str(world / "continued.yaml")]) == 0
    run = world / "runs" / "continued"
    assert ModelFolder.open(str(run / "model")).config == ModelFolder.open(str(source)).config
    assert (run / "model" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    (after,) = [row for row in read_metrics(str(run / "metrics.jsonl")) if "valid/mlm_loss" in row]
    step = int(json.loads(storage.read_bytes(str(source / "training.json")))["checkpoint"].split("-")[1])
    before = {row["step"]: row for row in read_metrics(str(finished / "metrics.jsonl")) if "valid/mlm_loss" in row}
    # The memory's running statistics go on; they alone move.
    assert after["valid/mlm_loss"] == pytest.approx(before[step]["valid/mlm_loss"], abs=0.02)


# ---- the cluster ---------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_more_gpus_than_there_are(ray_local, world, capsys):
    assert pretrain(world, "cluster.use_gpu=true", "cluster.num_workers=2") == 2
    message = capsys.readouterr().err
    assert "2 GPU workers asked for, the cluster has 0 GPUs" in message
    assert "cluster.use_gpu=false" in message


@pytest.mark.ray
def test_a_model_beyond_every_nodes_memory_is_refused_before_anything_starts(ray_local, world, capsys):
    wide = ["model.hidden_size=65536", "model.embedding_size=65536", "model.n_heads=1000", "model.attention_size=64"]
    assert pretrain(world, *wide, "run.name=wide") == 2
    message = capsys.readouterr().err
    assert "model: its weights take" in message and "lower model.hidden_size" in message
    assert not (world / "runs" / "wide").exists()


@pytest.mark.ray
def test_a_cluster_without_a_cpu_for_ray_data_is_refused_at_once(world):
    code = (
        "import ray, sys; from twilbert.pretrain import main\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level='ERROR')\n"
        "raise SystemExit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(world / "small.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 2
    assert "which leaves none for Ray Data" in done.stderr
    assert "--num-cpus" in done.stderr
    assert "Traceback" not in done.stderr


# ---- data ----------------------------------------------------------------------------------------------------------


def encoded_shard(world: Path) -> Path:
    (shard,) = (world / "corpus" / "encoded").glob("*/train/00000.parquet")
    return shard


@pytest.fixture
def damaged(finished, world) -> Iterator[Path]:
    """The encoded shard, to be damaged by the test and mended after it."""
    shard = encoded_shard(world)
    content = shard.read_bytes()
    yield shard
    shard.write_bytes(content)


@pytest.mark.ray
def test_a_truncated_encoded_shard_is_named(damaged, world, capsys):
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert pretrain(world, "run.name=truncated") == 1
    message = capsys.readouterr().err
    assert str(damaged) in message
    assert "twilbert-encode" in message
    assert "Traceback" not in message


@pytest.mark.ray
def test_a_shard_whose_contents_are_damaged_is_named_by_the_worker_that_meets_it(damaged, world, capsys):
    content = bytearray(damaged.read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    damaged.write_bytes(content)
    assert pretrain(world, "run.name=garbled") == 1
    message = capsys.readouterr().err
    assert str(damaged) in message
    assert "Traceback" not in message


@pytest.mark.parametrize("missing", ["corpus.path", "corpus.tokenizer"])
def test_missing_data_is_named_with_the_command_that_makes_it(world, tmp_path, capsys, missing):
    assert pretrain(world, f"{missing}={tmp_path / 'nowhere'}") == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "nowhere") in message
    assert {"corpus.path": "twilbert-prepare", "corpus.tokenizer": "twilbert-vocab"}[missing] in message


# ---- storage -------------------------------------------------------------------------------------------------------


def test_relative_storage_in_a_ray_job_is_refused(world, monkeypatch, capsys):
    monkeypatch.setattr(ray_session, "in_ray_job", lambda: True)
    assert pretrain(world, "run.storage_path=runs") == 2
    message = capsys.readouterr().err
    assert "run.storage_path: runs" in message
    assert "run.storage_path=/shared/runs" in message


@pytest.fixture
def full_disk(tmp_path) -> Iterator[Path]:
    """A file system with room for a run's first files and not for a checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "twilbert-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.ray
def test_a_full_disk_is_one_message(full_disk, ray_local, world, capsys):
    assert pretrain(world, f"run.storage_path={full_disk}", "run.name=full", "tracking.mode=disabled") == 1
    message = capsys.readouterr().err
    assert "no space left" in message
    assert str(full_disk) in message
    assert "Traceback" not in message
    assert not list(full_disk.glob("*/checkpoint-*/manifest.json")), "what was not written whole is no checkpoint"


# ---- --dry-run -----------------------------------------------------------------------------------------------------


def test_a_dry_run_without_data_says_what_is_missing(world, tmp_path, capsys):
    assert pretrain(world, f"corpus.path={tmp_path / 'nowhere'}", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "# missing:" in printed
    assert str(tmp_path / "nowhere") in printed
    assert "the recipe is valid" in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.ray
def test_a_dry_run_shows_the_name_that_the_run_has(finished, world, capsys):
    assert pretrain(world, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert f"# run: {finished} (found, would be resumed)" in printed
    assert pretrain(world, "--dry-run", f"run.name={finished.name}", "training.seed=9") == 2
    assert "training.seed: was 0, now 9" in capsys.readouterr().err
    shown = yaml.safe_load("\n".join(line for line in printed.splitlines()[:-1] if not line.startswith("#")))
    assert shown["training"]["max_steps"] == STEPS
