"""A cluster of three hosts on this machine (tools/netns_cluster.sh): both train, and one is cut off in mid-run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import TOP
from tests.pretraining.disturbed_runs import STEPS, assert_each_sample_once_an_epoch, assert_same_training, rows

SKIPPED = 77


def _script(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/bash", str(TOP / "tools" / "netns_cluster.sh"), *options]
    variables = os.environ | {"PYTHON": sys.executable} | environment
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=3600)


def _namespaces() -> str:
    folder = Path("/run/netns")
    return " ".join(sorted(path.name for path in folder.iterdir())) if folder.exists() else ""


def test_a_machine_that_cannot_make_hosts_is_told_why(tmp_path):
    """Here: one without the command ip."""
    for command in ("dirname", "uname", "id"):
        (tmp_path / command).symlink_to(str(shutil.which(command)))
    run = _script("--cut", "30", PATH=str(tmp_path))
    assert run.returncode == SKIPPED
    assert run.stdout.startswith("skipped: the command ip is missing")


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_three_hosts_outlives_the_loss_of_one(tmp_path):
    before, results = _namespaces(), tmp_path / "results.json"
    run = _script("--cut", "30", "--json", str(results), "--work", str(tmp_path))
    if run.returncode == SKIPPED:
        pytest.skip(run.stdout.strip())
    assert run.returncode == 0, run.stdout + run.stderr
    undisturbed, cut = json.loads(results.read_text())
    assert undisturbed["trained on hosts"] == ["one", "two"]
    assert undisturbed["steps"] == STEPS
    assert undisturbed["each step once"]
    assert cut["hosts at the end"] == ["one"]
    assert 30 <= cut["step"] < STEPS, "the host was lost in mid-run"
    assert cut["resumed from"] <= cut["step"]
    assert cut["each step once"]
    assert cut["same samples"]
    assert cut["largest loss difference"] <= 1e-4
    assert undisturbed["control on"] == cut["control on"] == ["head"], "what a run cannot lose is beside its driver"
    runs = tmp_path / "runs"
    assert_each_sample_once_an_epoch(rows(runs / "undisturbed" / "trace.jsonl"))
    assert_same_training(runs / cut["run"], runs / "undisturbed", bitwise=False)
    print(cut)
    assert _namespaces() == before, "nothing is left behind"
