"""What is left out of Ray Train, and that Ray Train still has it under that name."""

from __future__ import annotations

import pytest
from ray.train.torch import TorchTrainer

from twilbert import cluster
from twilbert.train.trainer import Trainer


@pytest.mark.parametrize(
    ("local", "unused"),
    [(True, {"DatasetsCallback", "PlacementGroupCleanerCallback"}), (False, {"DatasetsCallback"})],
)
def test_only_what_serves_nothing_is_left_out(monkeypatch, local, unused):
    monkeypatch.setattr(cluster, "is_local", lambda: local)
    for name in ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "RAY_TRAIN_METRICS_ENABLED"):
        monkeypatch.setenv(name, "1")  # so that what the trainer sets ends with the test
    trainer = Trainer(lambda: None)
    every = [type(made).__name__ for made in TorchTrainer._create_default_callbacks(trainer)]
    kept = [type(made).__name__ for made in trainer._create_default_callbacks()]
    assert unused < set(every)
    assert kept == [name for name in every if name not in unused]


@pytest.mark.ray
def test_a_local_ray_reads_no_logs_and_is_known_as_local(tmp_path):
    from ray._private import ray_constants, worker

    assert not cluster.is_local()
    with cluster.ensure_ray(1):
        assert cluster.is_local()
        assert worker._global_node is not None
        assert ray_constants.PROCESS_TYPE_LOG_MONITOR not in worker._global_node.all_processes
    assert not cluster.is_local()
