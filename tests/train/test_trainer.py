"""What is left out of Ray Train, and that Ray Train still has it under that name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from ray.train.torch import TorchTrainer

from twilbert import cluster
from twilbert.train.trainer import _WATCHER, Trainer

EVERYWHERE = {"DatasetsCallback"}
LOCALLY = EVERYWHERE | {"PlacementGroupCleanerCallback", "ControllerMetricsCallback", "WorkerMetricsCallback"}


@pytest.mark.parametrize(("local", "unused"), [(True, LOCALLY), (False, EVERYWHERE)])
def test_only_what_serves_nothing_is_left_out(monkeypatch, local, unused):
    monkeypatch.setattr(cluster, "started_here", lambda: local)
    trainer = Trainer(lambda: None)
    every = [type(made).__name__ for made in TorchTrainer._create_default_callbacks(trainer)]
    kept = [type(made).__name__ for made in trainer._create_default_callbacks()]
    assert unused < set(every)
    assert kept == [name for name in every if name not in unused]


@pytest.mark.parametrize(("local", "given", "seen"), [(True, None, "0"), (True, "1", "1"), (False, None, None)])
def test_nodes_about_to_be_taken_are_watched_for_where_there_are_others(monkeypatch, local, given, seen):
    monkeypatch.delenv(_WATCHER, raising=False)
    if given:
        monkeypatch.setenv(_WATCHER, given)
    monkeypatch.setattr(cluster, "started_here", lambda: local)
    monkeypatch.setattr(TorchTrainer, "fit", lambda self: os.environ.get(_WATCHER))
    assert Trainer(lambda: None).fit() == seen
    assert os.environ.get(_WATCHER) == given


STARTED = """
import os
import ray
from ray._private import ray_constants, worker
from twilbert import cluster
assert not cluster.started_here()
own = os.nice(0)
with cluster.ensure_ray(1):
    assert cluster.started_here()
    assert ray_constants.PROCESS_TYPE_LOG_MONITOR not in worker._global_node.all_processes
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == own
assert not cluster.started_here()
"""


@pytest.mark.ray
def test_a_ray_that_was_started_here_reads_no_logs_and_yields_to_nobody():
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", STARTED], env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
