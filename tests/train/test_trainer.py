"""What is left out of Ray Train, and that Ray Train still has it under that name."""

from __future__ import annotations

import os

import pytest
from ray.train.torch import TorchTrainer

from twilbert import local_ray
from twilbert.train.trainer import _WATCHER, Trainer

EVERYWHERE = {"DatasetsCallback"}
LOCALLY = EVERYWHERE | {"PlacementGroupCleanerCallback", "ControllerMetricsCallback", "WorkerMetricsCallback"}


@pytest.mark.parametrize(("local", "unused"), [(True, LOCALLY), (False, EVERYWHERE)])
def test_only_what_serves_nothing_is_left_out(monkeypatch, local, unused):
    monkeypatch.setattr(local_ray, "address", lambda: "here" if local else "")
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
    monkeypatch.setattr(local_ray, "address", lambda: "here" if local else "")
    monkeypatch.setattr(TorchTrainer, "fit", lambda self: os.environ.get(_WATCHER))
    assert Trainer(lambda: None).fit() == seen
    assert os.environ.get(_WATCHER) == given
