"""The W&B workspace (tools/wandb_workspace.py): written without network or key, of series that runs log."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.places import TOP
from twilbert.evaluation import scoring
from twilbert.pretraining import measure
from twilbert.tracking.metrics import read_metrics

NOWHERE = "http://127.0.0.1:9"


def run(*arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
    """The tool in a process of its own, which reaches no W&B."""
    pytest.importorskip("wandb_workspaces", reason="pip install 'twilbert[workspace]'")
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
    environment |= {"WANDB_BASE_URL": NOWHERE} | ({"WANDB_API_KEY": key} if key else {})
    command = [sys.executable, "-m", "tools.wandb_workspace", *arguments]
    return subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> dict[str, Any]:
    """What --json writes."""
    out = tmp_path_factory.mktemp("workspace") / "workspace.json"
    done = run("someone", "--project", "tweets", "--json", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{out}\n")
    return json.loads(out.read_text())


def logged_on_a_gpu(trained, monkeypatch) -> set[str]:
    """The series of a step on a GPU, which only a GPU's run logs, from the function that names them."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1)
    monkeypatch.setattr(measure, "device_peak", lambda device: 1e15)
    engine = SimpleNamespace(get_global_grad_norm=lambda: 1.0)
    config = trained.model(device="cpu").config
    row = measure.step_metrics(
        engine, SimpleNamespace(learning_rate=1.0), config, torch.device("cuda"), 1, scoring.Interval()
    )  # fmt: skip
    return set(row)


@pytest.mark.ray
def test_every_series_of_a_panel_is_one_that_runs_log(workspace, trained, monkeypatch):
    of_a_run = {key for row in read_metrics(f"{trained.path}/metrics.jsonl") for key in row}
    logged = of_a_run | logged_on_a_gpu(trained, monkeypatch)
    assert logged - of_a_run == {"speed/mfu", "speed/peak_memory_bytes"}
    panels = [panel for section in workspace["sections"] for panel in section["panels"]]
    named = {series for panel in panels for series in panel["y"]}
    patterns = [panel["metric_regex"] for panel in panels if not panel["y"]]
    assert not named - logged
    assert all(any(re.search(pattern, series) for series in logged) for pattern in patterns), patterns
    unnamed = {s for s in logged - named if not any(re.search(pattern, s) for pattern in patterns)}
    assert unnamed == {"step", *(s for s in logged if s.startswith("optim/trust_ratios/"))}, "a series without a panel"


def test_sections_and_panels(workspace):
    assert (workspace["entity"], workspace["project"]) == ("someone", "tweets")
    sections = {section["name"]: [panel["title"] for panel in section["panels"]] for section in workspace["sections"]}
    assert list(sections) == ["Health", "Loss and accuracy", "Optimiser", "Speed", "Data", "Product-key memories"]
    assert sections["Health"][:2] == ["Loss", "Gradient norm"]
    assert {panel["x"] for section in workspace["sections"] for panel in section["panels"]} == {"step"}


def test_saving_without_a_key_says_what_is_needed():
    done = run("someone")
    assert done.returncode == 2
    assert "set WANDB_API_KEY" in done.stderr and "--json" in done.stderr and done.stdout == ""


@pytest.mark.slow
def test_what_wandb_refuses_is_one_message():
    done = run("someone", key="0" * 40)
    assert done.returncode == 1
    assert "W&B did not take the workspace" in done.stderr
    assert "0000" not in done.stderr and "Traceback" not in done.stderr
