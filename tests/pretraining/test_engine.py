"""The engine's promise: however the global batch is cut, the losses are those of plain PyTorch on the whole of it."""

from __future__ import annotations

import os

import pytest
import torch

from tests.pretraining.training_runs import encoded_folder, engine_losses, plain_losses, small_recipe, spawn
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.pretraining.engine import deepspeed_config
from twilbert.recipe.pretraining import Recipe

STEPS = 20


CUTS = {1: [(1, 1), (0, 3)], 2: [(1, 2), (2, 1), (3, 2)]}  # world size -> (ZeRO stage, accumulation)


def test_losses_do_not_depend_on_workers_stage_accumulation_or_clipping(tmp_path):
    folder = encoded_folder(tmp_path)
    encoded = EncodedCorpus.open(folder)
    norms = (0.0, 0.5)
    expected = {norm: plain_losses(small_recipe(max_grad_norm=norm), encoded, STEPS) for norm in norms}
    assert abs(expected[0.0][-1] - expected[0.0][0]) > 0.1  # the weights move, so that agreement means something

    samples = []
    for world_size, cuts in CUTS.items():
        settings = [(norm, stage, accumulation) for norm in norms for stage, accumulation in cuts]
        recipes = [(small_recipe(max_grad_norm=norm, zero_stage=stage), k) for norm, stage, k in settings]
        by_rank = spawn(engine_losses, world_size, recipes, folder, STEPS)
        for number, (norm, *cut) in enumerate(settings):
            runs = [results[number] for results in by_rank]
            assert runs[0][0] == pytest.approx(expected[norm], rel=1e-4), (world_size, norm, cut)
            samples.append([sorted(i for _, ids in runs for i in ids[step]) for step in range(STEPS)])
    assert all(sets == samples[0] for sets in samples)


def losses_beside_a_gpu(rank: int, world_size: int, recipe: Recipe, folder: str) -> list[float]:
    """The losses of 3 steps in a process that sees a GPU and trains on the CPU."""
    os.environ.pop("DS_ACCELERATOR")
    torch.cuda.is_available = lambda: True
    return engine_losses(rank, world_size, [(recipe, 1)], folder, 3)[0][0]


def test_a_visible_gpu_does_not_draw_a_cpu_run_to_itself(tmp_path):
    folder = encoded_folder(tmp_path)
    [losses] = spawn(losses_beside_a_gpu, 1, small_recipe(), folder)
    assert losses == pytest.approx(plain_losses(small_recipe(), EncodedCorpus.open(folder), 3), rel=1e-4)


def test_clipping_changes_the_run(tmp_path):
    encoded = EncodedCorpus.open(encoded_folder(tmp_path))
    free, clipped = (plain_losses(small_recipe(max_grad_norm=norm), encoded, 6) for norm in (0.0, 0.05))
    assert free != pytest.approx(clipped, rel=1e-3)


def test_configuration_writes_out_what_deepspeed_would_default():
    config = deepspeed_config(small_recipe(zero_stage=2), "bf16", accumulation=4, world_size=3)
    assert config["gradient_clipping"] == 0.0
    assert config["train_batch_size"] == 12
    assert config["bf16"]["enabled"] is True
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["round_robin_gradients"] is False
