"""The resources of a trial: its share of a GPU by recipe and cluster; what no node has is refused at once."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from twilbert.errors import UsageError
from twilbert.recipe import tuning as recipes
from twilbert.tuning import search


@pytest.fixture
def nodes(monkeypatch) -> Any:
    """`nodes({...}, {...})`: the cluster has these."""

    def has(*resources: dict[str, float]) -> None:
        total = {kind: sum(one.get(kind, 0) for one in resources) for kind in ("CPU", "GPU")}
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": one} for one in resources])

    return has


@pytest.mark.parametrize(
    ("overrides", "gpus", "resources"),
    [
        (["cluster.gpus_per_trial=0.5"], 1, {"cpu": 1, "gpu": 0.5}),
        (["cluster.gpus_per_trial=0.125", "cluster.cpus_per_trial=2"], 8, {"cpu": 2, "gpu": 0.125}),
        (["cluster.gpus_per_trial=2"], 2, {"cpu": 1, "gpu": 2}),
        (["cluster.gpus_per_trial=0"], 1, {"cpu": 1, "gpu": 0}),
        ([], 1, {"cpu": 1, "gpu": 0.25}),
        ([], 0, {"cpu": 1, "gpu": 0}),
    ],
)
def test_a_trials_share_of_a_gpu_is_the_recipes_or_a_quarter(overrides, gpus, resources, nodes):
    nodes({"CPU": 4, "GPU": gpus})
    cluster = recipes.load("tune.yaml", overrides).cluster
    assert search.resources(cluster) == resources
    assert search.place(cluster).gpu == bool(resources["gpu"])
    search.require_room(resources)


def test_resources_that_no_node_has_are_refused_since_ray_would_wait_in_silence(nodes):
    needs = {"cpu": 4, "gpu": 0.5}
    nodes({"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0})  # together enough, but no node alone
    with pytest.raises(UsageError, match=r"takes 4 CPU and 0\.5 GPU, no node has that \(at most 8 CPU, 1 GPU\)"):
        search.require_room(needs)
    nodes({"CPU": 2.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 0.5})
    search.require_room(needs)


def test_one_and_a_half_gpus_are_no_share():
    with pytest.raises(UsageError, match=r"cluster\.gpus_per_trial: 1\.5 is no share of one GPU; give at most 1"):
        recipes.load("tune.yaml", ["cluster.gpus_per_trial=1.5"])
