"""Tracking: metrics.jsonl and W&B hold the same rows, a resume drops unsaved ones, nothing private is logged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.model import small
from tests.read_wandb import records, series
from twilbert.model.heads import PretrainingModel
from twilbert.optim.fragments import logical_names
from twilbert.tracking.metrics import (
    EDGES,
    Histogram,
    MetricsFile,
    Tracker,
    kind_of,
    read_metrics,
    trust_ratio_metrics,
)
from twilbert.tracking.wandb_runs import Wandb


def tracker_of(folder: Path, run_id: str, mode: str = "auto", **config: object) -> Tracker:
    return Tracker(str(folder), "run", Wandb("project", mode, print), config, run_id, last_step=0)


def test_an_offline_run_and_metrics_jsonl_hold_the_same_series(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracker = tracker_of(tmp_path / "run", "0123abcd", training={"seed": 3})
    assert "W&B offline" in tracker.first_line
    assert f"wandb sync {tmp_path}" in tracker.first_line
    expected = [{"step": s, "train/loss": 10 / s, "optim/learning_rate": 1e-5 * s} for s in range(1, 601)]
    for row in expected:
        tracker.log(int(row["step"]), {key: value for key, value in row.items() if key != "step"})
    tracker.log(600, {"valid/mlm_loss": 4.5, "valid/rop_accuracy": 0.75})
    tracker.close()
    expected.append({"step": 600, "valid/mlm_loss": 4.5, "valid/rop_accuracy": 0.75})

    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/run-0123abcd.wandb")
    assert file.stat().st_size > 2 * 32 * 1024  # rows lie across blocks
    assert read_metrics(str(tmp_path / "run" / "metrics.jsonl")) == expected
    assert series(file) == expected


def test_a_histogram_is_counts_and_edges_in_both(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = tracker_of(tmp_path / "run", "0123abce")
    tracker.log(1, {"optim/trust_ratios/heads": Histogram([0.0, 1.0, 2.0], [3, 4])})
    tracker.close()
    (row,) = read_metrics(str(tmp_path / "run" / "metrics.jsonl"))
    assert row == {"step": 1, "optim/trust_ratios/heads": {"edges": [0.0, 1.0, 2.0], "counts": [3, 4]}}
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/run-0123abce.wandb")
    (logged,) = series(file)
    assert logged["optim/trust_ratios/heads/_type"] == "histogram"
    assert logged["optim/trust_ratios/heads/values"] == [3, 4]
    assert logged["optim/trust_ratios/heads/bins"] == [0.0, 1.0, 2.0]


def test_a_resume_cuts_back_to_the_checkpoint_and_goes_on(tmp_path):
    path = str(tmp_path / "metrics.jsonl")
    file = MetricsFile(path, last_step=0)
    for step in (1, 2, 3, 4):
        file.append({"step": step, "train/loss": float(step)})
    file.close()
    with Path(path).open("a") as stream:
        stream.write('{"step": 5, "train/lo')  # the process was killed here

    resumed = MetricsFile(path, last_step=2)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    resumed.append({"step": 3, "train/loss": 0.5})
    assert read_metrics(path)[-1] == {"step": 3, "train/loss": 0.5}, "readable while the run goes on"
    resumed.close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def test_disabled_still_writes_metrics(tmp_path):
    tracker = tracker_of(tmp_path, "0123abcd", mode="disabled")
    tracker.log(1, {"train/loss": 2.0})
    tracker.close()
    assert read_metrics(str(tmp_path / "metrics.jsonl")) == [{"step": 1, "train/loss": 2.0}]
    assert [item.name for item in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_extremes_median_and_a_histogram_a_kind():
    names = ["encoder.embeddings.token.weight", "a.attention.qkv.weight[q]", "a.attention.out.weight", "masked_lm.bias"]
    ratios = torch.tensor([0.5, 2.0, 5000.0, 7.0], dtype=torch.float64)
    metrics = trust_ratio_metrics(names, ratios, torch.tensor([True, True, True, False]))
    assert metrics["optim/trust_ratio_min"] == 0.5
    assert metrics["optim/trust_ratio_median"] == 2.0
    assert metrics["optim/trust_ratio_max"] == 5000.0
    assert "optim/trust_ratios/heads" not in metrics, "a bias is not adapted"
    attention = metrics["optim/trust_ratios/attention"]
    assert isinstance(attention, Histogram)
    assert len(attention.edges) == len(attention.counts) + 1
    assert sum(attention.counts) == 2
    (two,) = (i for i in range(len(EDGES)) if EDGES[i] <= 2.0 < EDGES[i + 1])
    assert attention.counts[two] == 1
    assert attention.counts[-1] == 1, "the last bin holds what lies beyond it"


def test_nothing_adapted_gives_nothing():
    assert trust_ratio_metrics(["a"], torch.ones(1), torch.tensor([False])) == {}


def test_every_matrix_of_a_model_has_a_kind():
    model = PretrainingModel(small.config("memory"))
    matrices = [part for name, p in model.named_parameters() if p.dim() > 1 for part in logical_names(name)]
    kinds = {kind_of(name) for name in matrices}
    assert kinds == {"embeddings", "attention", "feed_forward", "memory", "heads"}


PRIVATE = {
    "WANDB_API_KEY": "0123456789abcdefkeykeykey0123456789abcde",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-of-this-test",
    "HOSTNAME": "host-of-this-test",
    "USER": "user-of-this-test",
    "LOGNAME": "user-of-this-test",
    "WANDB_USERNAME": "wandb-user-of-this-test",
}
SCRIPT = """
import json, sys
from twilbert.tracking.metrics import Tracker
from twilbert.tracking.wandb_runs import Wandb
config = json.loads(sys.argv[2])
tracker = Tracker(sys.argv[1], "run", Wandb("project", "auto", print), config, "0123abcd", last_step=0)
tracker.log(1, {"train/loss": 2.0})
tracker.close()
"""


def test_nothing_private_lies_under_the_runs_folder(tmp_path):
    """Neither host, user, home folder, command line nor a secret of the environment; W&B's own logs included."""
    home, run = tmp_path / "home-of-this-test", tmp_path / "run"
    home.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(run), "{}", "--argument-of-this-test"]
    outside = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment = {**outside, **PRIVATE, "WANDB_MODE": "offline", "HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    forbidden = [*PRIVATE.values(), "of-this-test"]
    assert not [value for value in forbidden if value in done.stdout + done.stderr]
    files = [file for file in run.rglob("*") if file.is_file() or file.is_symlink()]
    assert any(file.suffix == ".wandb" for file in files)
    for file in files:
        content = str(file.readlink()).encode() if file.is_symlink() else file.read_bytes()
        assert not [value for value in forbidden if value.encode() in content], file
    (log,) = run.glob("wandb/offline-run-*/run-*.wandb")
    for record in records(log):
        kind = record.WhichOneof("record_type")
        assert kind != "environment", "host, user and command line travel in this record"
        assert kind != "run" or not record.run.host
        assert json.dumps(PRIVATE["AWS_SECRET_ACCESS_KEY"]) not in str(record)
