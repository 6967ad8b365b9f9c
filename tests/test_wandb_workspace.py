"""The W&B workspace: builds without network or key, and its panels name only series that runs log."""

from __future__ import annotations

import json
import re
import socket
from types import SimpleNamespace

import pytest
import torch

from tools import wandb_workspace
from tools.wandb_workspace import SECTIONS, main
from twilbert import scoring
from twilbert.train import measure
from twilbert.train.tracking import read_metrics


@pytest.fixture
def offline(monkeypatch):
    """No key, and a network that must not be touched."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)


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
def test_every_series_of_a_panel_is_one_that_runs_log(trained, monkeypatch):
    of_a_run = {key for row in read_metrics(f"{trained.path}/metrics.jsonl") for key in row}
    logged = of_a_run | logged_on_a_gpu(trained, monkeypatch)
    assert logged - of_a_run == {"speed/mfu", "speed/peak_memory_bytes"}
    panels = [panel for section in SECTIONS.values() for panel in section]
    assert not {series for panel in panels for series in panel.series} - logged
    for panel in panels:
        assert panel.series or panel.pattern
        assert not panel.pattern or any(re.search(panel.pattern, series) for series in logged), panel.title
    named = {series for panel in panels for series in panel.series}
    unnamed = {s for s in logged - named if not any(p.pattern and re.search(p.pattern, s) for p in panels)}
    assert unnamed == {"step", *(s for s in logged if s.startswith("optim/trust_ratios/"))}, "a series without a panel"


def test_it_builds_offline_with_these_panels(offline, tmp_path, capsys):
    pytest.importorskip("wandb_workspaces", reason="pip install 'twilbert[workspace]'")
    out = tmp_path / "workspace.json"
    assert main(["someone", "--project", "tweets", "--json", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"{out}\n")
    made = json.loads(out.read_text())
    assert (made["entity"], made["project"]) == ("someone", "tweets")
    sections = made["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections][: len(SECTIONS)] == list(SECTIONS)
    for section in sections[: len(SECTIONS)]:
        settings = [panel["config"] for panel in section["panels"]]
        assert [s["chartTitle"] for s in settings] == [panel.title for panel in SECTIONS[section["name"]]]
        for config, panel in zip(settings, SECTIONS[section["name"]], strict=True):
            assert config["xAxis"] == "step"
            assert config.get("metrics", []) == list(panel.series)
            assert config.get("metricRegex", "") == panel.pattern


def test_saving_without_a_key_says_what_is_needed(offline, capsys):
    pytest.importorskip("wandb_workspaces", reason="pip install 'twilbert[workspace]'")
    assert main(["someone"]) == 2
    printed = capsys.readouterr()
    assert "set WANDB_API_KEY" in printed.err and "--json" in printed.err and printed.out == ""


def test_what_wandb_refuses_is_one_message(offline, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)

    class Refused:
        def save_as_new_view(self):
            raise ValueError("no such entity")

    monkeypatch.setattr(wandb_workspace, "workspace", lambda *_: Refused())
    assert main(["someone"]) == 1
    printed = capsys.readouterr().err
    assert "no such entity" in printed and "0000" not in printed and "Traceback" not in printed
