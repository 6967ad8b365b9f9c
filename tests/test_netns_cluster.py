"""A cluster of three hosts on this machine (tools/netns_cluster.sh): both train, and one is cut off in mid-run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.check_faults import STEPS
from tools.netns_job import Job, Network, lose_host

ROOT = Path(__file__).parents[1]
SKIPPED = 77


def _script(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/bash", str(ROOT / "tools" / "netns_cluster.sh"), *options]
    made = os.environ | {"PYTHON": sys.executable} | environment
    return subprocess.run(command, env=made, capture_output=True, text=True, timeout=3600)


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


class FakeNetwork(Network):
    """Hosts whose job is at step 5 when one is cut off, and goes on from step 3 on the other; a stage at each look."""

    def __init__(self, run: Path) -> None:
        super().__init__("fake")
        self.run, self.lost, self.stage = run, "", 0
        self._write(5)

    def _write(self, steps: int) -> None:
        lines = [json.dumps({"step": step}) + "\n" for step in range(1, steps + 1)]
        (self.run / "metrics.jsonl").write_text("".join(lines))

    def on(self, host: str, *command: str) -> list[str]:
        return ["/bin/sh", "-c", f"until [ -e {self.run}/done ]; do sleep 0.1; done"]

    def cut(self, host: str) -> None:
        self.lost = host

    def actors(self, host: str, name: str = "RayTrainWorker") -> set[int]:
        if name != "RunControl":
            return (
                {"head": set(), "one": {11}, "two": {21}}[host]
                if self.stage == 0
                else set()
                if host == self.lost
                else {12}
            )
        if host == "head" and self.lost:
            self.stage += 1  # 1: given up, 2: resumed, 3: a new step, 4: the end
            self._write({1: 5, 2: 3}.get(self.stage, 7))
            (self.run / ("done" if self.stage > 3 else "going")).touch()
        return {9} if host == "head" else set()


def test_what_a_lost_host_cost_is_told_from_the_steps(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    job = Job(FakeNetwork(run), "http://nowhere:8265", tmp_path / "recipe.yaml", run, minutes=30)
    cost = lose_host(job, 4, "two")
    assert job.finish() > 0
    assert cost["step"] == 5
    assert cost["resumed from"] == 3
    assert 0 <= cost["given up after s"] <= cost["training after s"] <= cost["new step after s"]
    assert cost["hosts at the end"] == ["one"]
    assert (job.hosts, job.control) == ({"one", "two"}, {"head"})


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_three_hosts_outlives_the_loss_of_one(tmp_path):
    before, results = _namespaces(), tmp_path / "results.json"
    run = _script("--cut", "30", "--json", str(results))
    if run.returncode == SKIPPED:
        pytest.skip(run.stdout.strip())
    assert run.returncode == 0, run.stdout + run.stderr
    undisturbed, cut = json.loads(results.read_text())
    assert undisturbed["trained on hosts"] == ["one", "two"]
    assert undisturbed["steps"] == STEPS
    assert undisturbed["once an epoch"]
    assert cut["hosts at the end"] == ["one"]
    assert 30 <= cut["step"] < STEPS, "the host was lost in mid-run"
    assert cut["resumed from"] <= cut["step"]
    assert cut["once an epoch"]
    assert cut["same sets"]
    assert cut["no step twice"]
    assert cut["largest loss difference"] <= 1e-4
    assert undisturbed["control on"] == cut["control on"] == ["head"], "what a run cannot lose is beside its driver"
    assert _namespaces() == before, "nothing is left behind"
