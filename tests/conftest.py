"""Shared fixtures: one local Ray for the tests that need it."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="session")
def ray_local():
    """A Ray of this machine with 4 logical CPUs, shared by all Ray tests of a process."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def trained(ray_local, tmp_path_factory):
    """A run of 6 steps by `twilbert.pretrain.run`, with all that logs: LAMB, a memory layer, held-out pairs."""
    from tests.small_world import make_world
    from twilbert import pretrain

    recipe = make_world(tmp_path_factory.mktemp("trained")) / "small.yaml"
    return pretrain.run(str(recipe), training__max_steps=6, training__optimizer="lamb", **{"training.eval_steps": 3})
