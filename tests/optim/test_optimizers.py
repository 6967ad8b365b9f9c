"""Optimisers: the papers' updates, whatever flat tensors the parameters were cut into."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests import places
from tests.optim.reference import ReferenceLamb, relative_errors
from twilbert.optim.fragments import Fragment
from twilbert.optim.optimizers import OPTIMIZERS, Adam, AdamW, FragmentOptimizer, Lamb

GOLDEN = places.GOLDEN / "adam_trajectories.npz"
SHAPES = {
    "embedding.weight": (50, 8),
    "block.qkv.weight": (3 * 12, 8),
    "block.norm.weight": (8,),
    "block.norm.bias": (8,),
    "memory.keys": (2, 2, 5, 3),
    "big.weight": (300, 260),  # more elements than one piece of work
}


def random_tensors(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def whole(optimizer: type[FragmentOptimizer], weights: dict[str, torch.Tensor], **settings) -> FragmentOptimizer:
    """The optimiser over whole tensors, which it updates in place."""
    parameters = {name: torch.nn.Parameter(weight) for name, weight in weights.items()}
    bound = optimizer(parameters.values(), **settings)
    bound.bind(
        [Fragment(name, tuple(p.shape), 0, p.numel(), p, 0) for name, p in parameters.items()],
        {name: tuple(p.shape) for name, p in parameters.items()},
    )
    return bound


def advance(optimizer: FragmentOptimizer, gradients: list[torch.Tensor], update: int, learning_rate: float) -> None:
    for flat, gradient in zip(optimizer.param_groups[0]["params"], gradients, strict=True):
        flat.grad = gradient.clone()
    optimizer.update, optimizer.learning_rate = update, learning_rate
    optimizer.step()


def run_whole(optimizer: type[FragmentOptimizer], steps: int = 5, **settings) -> dict[str, torch.Tensor]:
    weights = random_tensors(0, scale=0.1)
    bound = whole(optimizer, weights, **settings)
    for t in range(1, steps + 1):
        advance(bound, list(random_tensors(t).values()), t, 1e-2 * t)
    return weights


# ---- Adam of the original ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 4])
def test_adam_retraces_the_originals_runs(accumulation):
    """12 micro-batches at a constant rate; an update takes the mean gradient of `accumulation` of them."""
    golden = np.load(GOLDEN)
    run = {key.partition("|")[2]: golden[key] for key in golden.files if key.startswith(f"adam_accum{accumulation}|")}
    config = json.loads(str(run["config"]))
    weights = {f"p{i}": torch.from_numpy(run[f"p{i}"][0].copy()) for i in (0, 1)}
    optimizer = whole(
        Adam, weights, beta1=config["beta_1"], beta2=config["beta_2"], epsilon=config["epsilon"], weight_decay=0.0
    )
    for micro_batch in range(1, 13):
        if micro_batch % accumulation == 0:
            means = [run[f"g{i}"][micro_batch - accumulation : micro_batch].mean(0) for i in (0, 1)]
            advance(optimizer, [torch.from_numpy(g) for g in means], micro_batch // accumulation, config["lr"])
        for i in (0, 1):
            np.testing.assert_allclose(weights[f"p{i}"].numpy(), run[f"p{i}"][micro_batch], atol=1e-6, rtol=0)


# ---- AdamW ---------------------------------------------------------------------------------------------------------


def test_adamw_is_torchs_with_biases_and_norms_not_decayed():
    settings = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-6, "weight_decay": 0.1}
    expected = {name: torch.nn.Parameter(value) for name, value in random_tensors(0, scale=0.1).items()}
    groups = [
        {"params": [p for p in expected.values() if p.dim() > 1], "weight_decay": settings["weight_decay"]},
        {"params": [p for p in expected.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=settings["epsilon"])
    for t in range(1, 6):
        for p, gradient in zip(expected.values(), random_tensors(t).values(), strict=True):
            p.grad = gradient
        for group in reference.param_groups:
            group["lr"] = 1e-2 * t
        reference.step()
    for name, weight in run_whole(AdamW, **settings).items():
        torch.testing.assert_close(weight, expected[name].detach(), rtol=1e-5, atol=1e-7, msg=name)


# ---- LAMB ----------------------------------------------------------------------------------------------------------


def test_lamb_is_algorithm_2_with_queries_keys_and_values_adapted_apart():
    settings = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-6, "weight_decay": 0.01}
    reference = ReferenceLamb(random_tensors(0, scale=0.1), **settings)
    for t in range(1, 6):
        reference.step(random_tensors(t), 1e-2 * t)
    errors = relative_errors(run_whole(Lamb, **settings), reference.weights)
    assert len(errors) == len(SHAPES) + 2 and max(errors.values()) < 2e-6, errors


def test_lamb_moves_a_tensor_of_zeros():
    """‖w‖ = 0 gives no ratio: the plain step, else such a tensor would stay zero for ever."""
    weights = {"w": torch.zeros(3, 4)}
    advance(whole(Lamb, weights), [torch.ones(3, 4)], 1, 0.5)
    torch.testing.assert_close(weights["w"], torch.full((3, 4), -0.5), rtol=1e-5, atol=0)


# ---- flat shards ---------------------------------------------------------------------------------------------------


def run_cut(optimizer: type[FragmentOptimizer], cuts: list[int], padding: int, **settings) -> torch.Tensor:
    """As `run_whole`, on the concatenation of all tensors cut at `cuts` into flat shards, each with a padded tail."""
    flat = torch.cat([w.flatten() for w in random_tensors(0, scale=0.1).values()])
    edges = [0, *cuts, len(flat)]

    def shards_of(everything: torch.Tensor) -> list[torch.Tensor]:
        pieces = [everything[a:b] for a, b in pairwise(edges)]
        return [torch.cat([piece, torch.full((padding,), 7.0)]) for piece in pieces]

    shards = [torch.nn.Parameter(shard) for shard in shards_of(flat)]
    fragments, begin = [], 0
    for name, shape in SHAPES.items():
        end = begin + int(np.prod(shape))
        for number, shard in enumerate(shards):
            first, last = max(begin, edges[number]), min(end, edges[number + 1])
            if first < last:
                fragments.append(Fragment(name, shape, first - begin, last - first, shard, first - edges[number]))
        begin = end
    bound = optimizer(shards, **settings)
    bound.bind(fragments, SHAPES)
    for t in range(1, 6):
        gradient = torch.cat([g.flatten() for g in random_tensors(t).values()])
        advance(bound, shards_of(gradient), t, 1e-2 * t)
    for shard in shards:
        assert torch.all(shard.detach()[len(shard) - padding :] == 7.0), "padding is not touched"
    return torch.cat([shard.detach()[: len(shard) - padding] for shard in shards])


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("cuts", [[], [405], [1, 399, 400, 401, 70_000]])
def test_where_shards_are_cut_changes_nothing(name, cuts):
    settings = {"beta1": 0.9, "beta2": 0.98, "epsilon": 1e-6, "weight_decay": 0.1}
    expected = torch.cat([w.flatten() for w in run_whole(OPTIMIZERS[name], **settings).values()])
    # Not bitwise: at the ends of a run of elements vector instructions give way to scalar ones, which round otherwise.
    torch.testing.assert_close(run_cut(OPTIMIZERS[name], cuts, padding=3, **settings), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb"])
def test_vectors_are_not_decayed(name):
    settings = {"beta1": 0.9, "beta2": 0.98, "epsilon": 1e-6}
    free = run_whole(OPTIMIZERS[name], weight_decay=0.0, **settings)
    decayed = run_whole(OPTIMIZERS[name], weight_decay=0.5, **settings)
    for parameter, shape in SHAPES.items():
        assert torch.equal(free[parameter], decayed[parameter]) == (len(shape) == 1), parameter


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb"])
def test_a_shard_that_nobody_described_stops_the_run(name):
    known, unknown = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(6))
    optimizer = OPTIMIZERS[name]([known, unknown])
    optimizer.bind([Fragment("a", (4,), 0, 4, known, 0)], {"a": (4,)})
    with pytest.raises(RuntimeError, match="6 elements holds unknown tensors"):
        advance(optimizer, [torch.ones(4), torch.ones(6)], 1, 0.1)
    assert torch.equal(known.detach(), torch.ones(4)), "nothing has moved"
