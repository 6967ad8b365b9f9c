"""What a trial asks Ray for: shares of GPUs as they reach Ray Tune and Ray; what no node has is refused at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune

from twilbert.errors import UsageError
from twilbert.recipe import tuning as recipes
from twilbert.tuning import final, records, search


@pytest.fixture
def nodes(monkeypatch) -> Any:
    """`nodes({...}, {...})`: the Ray that was joined has these."""

    def has(*resources: dict[str, float]) -> None:
        total: dict[str, float] = {}
        for one in resources:
            for kind, many in one.items():
                total[kind] = total.get(kind, 0) + many
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": one} for one in resources])

    return has


@pytest.mark.parametrize(
    ("overrides", "gpus", "bundle"),
    [
        (["cluster.gpus_per_trial=0.5"], 1, {"CPU": 1.0, "GPU": 0.5}),
        (["cluster.gpus_per_trial=0.125", "cluster.cpus_per_trial=2"], 8, {"CPU": 2.0, "GPU": 0.125}),
        (["cluster.gpus_per_trial=2"], 2, {"CPU": 1.0, "GPU": 2.0}),
        (["cluster.gpus_per_trial=0"], 1, {"CPU": 1.0}),
        ([], 1, {"CPU": 1.0, "GPU": 0.25}),
        ([], 0, {"CPU": 1.0}),
    ],
)
def test_a_trials_share_of_a_gpu_reaches_rays_placement_group(overrides, gpus, bundle, nodes, monkeypatch, tmp_path):
    nodes({"CPU": 4.0} | ({"GPU": float(gpus)} if gpus else {}))
    recipe = recipes.load("tune.yaml", overrides)
    asked = {}
    monkeypatch.setattr(tune, "with_parameters", lambda run, **_: lambda config: run)  # else Ray must run
    monkeypatch.setattr(tune, "Tuner", lambda trainable, **more: asked.update(trainable=trainable, **more))
    log: Any = None
    search._tuner([], [], {}, recipe, log, None, str(tmp_path))
    factory = asked["trainable"]._resources
    assert [{kind: n for kind, n in one.items() if n} for one in factory.bundles] == [bundle]
    assert search.place(recipe.cluster).gpu == ("GPU" in bundle)
    search.require_room(search.resources(recipe.cluster))


def test_final_seeds_and_scoring_ask_for_the_same_share(nodes, monkeypatch, tmp_path):
    nodes({"CPU": 4.0, "GPU": 1.0})
    recipe = recipes.load("tune.yaml", ["cluster.gpus_per_trial=0.5", "final.seeds=3"])
    asked = []

    def remote(**options):
        asked.append(options)
        return lambda function: SimpleNamespace(remote=lambda *_: function.__name__)

    best = SimpleNamespace(recipe=SimpleNamespace(training=SimpleNamespace(seed=0)))
    study = SimpleNamespace(name="s", plans=[], prepared=SimpleNamespace(task=None, findings=None))
    monkeypatch.setattr(records, "best_trial", lambda plans: best)
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "wait", lambda references, **_: None)
    monkeypatch.setattr(ray, "get", lambda reference: {"test": None})
    made: Any = [study]
    shared: Any = {"s": None}
    assert final.score_all(made, shared, recipe, str(tmp_path)) == {"s": {"test": None}}
    assert len(asked) == 2 and all((one["num_cpus"], one["num_gpus"]) == (1, 0.5) for one in asked)


def test_what_no_node_has_is_refused_since_ray_would_wait_in_silence(nodes):
    cluster = recipes.load("tune.yaml", ["cluster.gpus_per_trial=0.5", "cluster.cpus_per_trial=4"]).cluster
    needs = search.resources(cluster)
    nodes({"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0})  # together enough, but no node alone
    with pytest.raises(UsageError, match=r"takes 4 CPU and 0\.5 GPU, no node has that \(at most 8 CPU, 1 GPU\)"):
        search.require_room(needs)
    nodes({"CPU": 2.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 0.5})
    search.require_room(needs)


def test_one_and_a_half_gpus_are_no_share():
    with pytest.raises(UsageError, match=r"cluster\.gpus_per_trial: 1\.5 is no share of one GPU; give at most 1"):
        recipes.load("tune.yaml", ["cluster.gpus_per_trial=1.5"])
