"""Product-key memory against a dense float64 computation of the paper's equations, and the norm of its queries."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from tests.model.small import batch, config
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.model.memory import (
    ProductKeyMemory,
    QueryNorm,
    candidate_pairs,
    memories,
    update_running_statistics,
    usage_statistics,
)


def _config(**params: Any) -> ModelConfig:
    base = config("memory")
    return dataclasses.replace(base, pkm_params=dataclasses.replace(base.pkm_params, **params))


def _dense(memory: ProductKeyMemory, y_MH: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Every one of the S² scores of every head, in float64; returns the output and the leaves it was computed from."""
    leaf = {name: p.detach().double().requires_grad_() for name, p in memory.named_parameters()}
    p = memory.params
    query = y_MH @ leaf["query.weight"].T + leaf["query.bias"]
    if memory.query_norm is not None:
        query = (query - query.mean(0)) / (query.var(0, unbiased=False) + 1e-5).sqrt()
        query = query * leaf["query_norm.weight"] + leaf["query_norm.bias"]
    out = torch.zeros(len(y_MH), 1, dtype=torch.float64)
    for head in range(p.n_heads):
        first, second = query[:, head * p.k_dim : (head + 1) * p.k_dim].chunk(2, -1)
        first, second = first @ leaf["keys"][head, 0].T, second @ leaf["keys"][head, 1].T
        score = (first[:, :, None] + second[:, None, :]).flatten(1)
        best = score.topk(p.knn).indices
        out = out + (score.gather(1, best).softmax(-1)[..., None] * leaf["values.weight"][best]).sum(1)
    if memory.value_projection is not None:
        out = out @ leaf["value_projection.weight"].T
    return out, list(leaf.values())


@pytest.mark.parametrize("factorised", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("knn", [1, 4, 8])
def test_output_and_gradients_equal_the_dense_float64_computation(factorised: bool, norm: bool, knn: int):
    torch.manual_seed(0)
    base = dataclasses.replace(_config(), embedding_size=16, factorize_embeddings=True)
    params = dataclasses.replace(base.pkm_params, factorize_embeddings=factorised, batch_norm=norm, knn=knn)
    memory = ProductKeyMemory(dataclasses.replace(base, pkm_params=params)).train()
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    y, upstream = torch.randn(23, 32), torch.randn(23, 32)
    out = memory(y)
    expected, leaves = _dense(memory, y.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    (out * upstream).sum().backward()
    gradients = torch.autograd.grad((expected * upstream).sum(), leaves, allow_unused=True)
    scale = max(g.norm() for g in gradients if g is not None)
    for (name, parameter), exact in zip(memory.named_parameters(), gradients, strict=True):
        assert parameter.grad is not None and exact is not None, name
        # A bias before a norm has a true gradient of zero: judge it against the others.
        assert (parameter.grad - exact).norm() <= 1e-5 * max(exact.norm(), 1e-2 * scale), name


@pytest.mark.parametrize("knn", [1, 2, 3, 8, 32])
def test_candidate_pairs_hold_the_largest_sums(knn: int):
    torch.manual_seed(0)
    first, second = (torch.randn(500, knn).sort(-1, descending=True).values for _ in range(2))
    every = (first[:, :, None] + second[:, None, :]).flatten(1)
    i, j = candidate_pairs(knn)
    assert torch.equal((first[:, i] + second[:, j]).topk(knn).values, every.topk(knn).values)
    assert len(i) == sum(knn // (n + 1) for n in range(knn))


def test_query_norm_is_batch_normalisation():
    torch.manual_seed(0)
    ours, theirs = QueryNorm(12).train(), torch.nn.BatchNorm1d(12).train()
    x = 3 * torch.randn(40, 12) + 5
    for norm in (ours, theirs):
        torch.nn.init.uniform_(norm.bias, generator=torch.Generator().manual_seed(1))
    leaves = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    weight = torch.randn(40, 12)
    outputs = [norm(leaf) for norm, leaf in zip((ours, theirs), leaves, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad((out * weight).sum(), leaf)[0] for out, leaf in zip(outputs, leaves, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_running_statistics_move_once_a_step_by_the_statistics_of_all_its_micro_batches():
    torch.manual_seed(0)
    norm, x = QueryNorm(6).train(), 3 * torch.randn(50, 6) + 5
    for piece in x.split([20, 0, 30]):
        norm(piece)
    assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()
    norm.commit()
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.var(0, unbiased=False))
    before = norm.running_mean.clone()
    norm(x)
    norm.discard()
    norm.commit()
    assert torch.equal(norm.running_mean, before)


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    torch.manual_seed(0)
    norm, x = QueryNorm(6).train(), 3 * torch.randn(5000, 6) + 5
    for _ in range(150):
        norm(x)
        norm.commit()
    trained = norm(x)
    norm.discard()
    evaluated = norm.eval()(x)
    torch.testing.assert_close(trained, evaluated, rtol=1e-3, atol=1e-3)
    alone = norm(x[:1])
    torch.testing.assert_close(alone, evaluated[:1])
    norm.commit()
    torch.testing.assert_close(norm.running_mean, x.mean(0), rtol=1e-4, atol=1e-4)


def test_running_statistics_stay_fp32_and_exact_when_the_model_is_cast():
    norm = QueryNorm(6)
    norm.running_mean.fill_(1 / 3)
    exact = norm.running_mean.clone()
    norm.bfloat16()
    assert norm.weight.dtype == torch.bfloat16
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    assert torch.equal(norm.running_mean, exact)
    assert norm(torch.randn(8, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_query_norm_counts_real_tokens_alone():
    torch.manual_seed(0)
    model = PretrainingModel(config("memory")).train()
    data = batch([19, 12, 5])
    rows = []
    (memory,) = memories(model)
    memory.register_forward_pre_hook(lambda _, arguments: rows.append(arguments[0].shape[0]))
    model(**data)
    assert rows == [19 + 12 + 5]


def test_usage_says_how_evenly_values_are_read():
    even, one = torch.ones(64), torch.zeros(64)
    one[3] = 7.0
    assert usage_statistics(even) == pytest.approx({"used": 1.0, "entropy": math.log(64), "kl": 0.0}, abs=1e-6)
    assert usage_statistics(one) == pytest.approx({"used": 1 / 64, "entropy": 0.0, "kl": math.log(64)}, abs=1e-6)
    assert usage_statistics(torch.zeros(64))["used"] == 0
    memory = ProductKeyMemory(_config()).eval()
    memory.start_usage()
    memory(torch.randn(10, 32))
    usage = memory.stop_usage()
    assert usage.sum().item() == pytest.approx(10 * 2, rel=1e-5)  # softmax over each head of each token adds up to 1
    assert memory.usage_U is None


def _one_worker(rank: int, world: int, folder: str) -> None:
    """What a worker makes of its share of two micro-batches; written to `folder`."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = PretrainingModel(config("all")).train()
    lengths = [19, 19, 12, 9, 5]
    loss = torch.zeros(())
    for micro in range(2):
        whole = batch(lengths, seed=micro)
        # The second micro-batch falls to worker 0 alone: the other joins the sums with no samples.
        rows = list(range(rank, 5, world)) if micro == 0 else [0, 1, 2, 3, 4] * (rank == 0)
        data = {
            name: value[torch.tensor(rows, dtype=torch.long)]
            for name, value in whole.items()
            if not name.startswith("masked")
        }
        t = whole["input_ids"].shape[1]
        place = {row: new for new, row in enumerate(rows)}
        keep = [k for k, index in enumerate(whole["masked_index"].tolist()) if index // t in place]
        index = [place[i // t] * t + i % t for i in whole["masked_index"][keep].tolist()]
        data |= {"masked_index": torch.tensor(index, dtype=torch.long), "masked_labels": whole["masked_labels"][keep]}
        out = model(**data)
        loss = loss + out.mlm_loss_sum + out.rop_loss_sum
    loss.backward()
    update_running_statistics(model)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    if world > 1:
        for gradient in gradients.values():
            assert gradient is not None
            dist.all_reduce(gradient)
        dist.destroy_process_group()
    buffers = dict(model.named_buffers())
    torch.save({"gradients": gradients, "buffers": buffers}, f"{folder}/{world}-{rank}.pt")


def test_two_workers_normalise_and_learn_as_one(tmp_path: Path):
    _one_worker(0, 1, str(tmp_path))
    spawn(_one_worker, (2, str(tmp_path)), nprocs=2)
    one, *two = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for worker in two:
        for kind, tolerance in (("buffers", 1e-6), ("gradients", 1e-4)):
            for name, tensor in one[kind].items():
                torch.testing.assert_close(worker[kind][name], tensor, rtol=tolerance, atol=1e-5, msg=name)
    for name, buffer in two[0]["buffers"].items():
        assert torch.equal(buffer, two[1]["buffers"][name]), name
