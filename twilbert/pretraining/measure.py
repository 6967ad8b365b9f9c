"""Metrics of a training step, and scores on held-out pairs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from twilbert.data.stream.micro_batch import MicroBatch
from twilbert.evaluation import scoring
from twilbert.model.config import ModelConfig
from twilbert.model.flops import device_peak, useful_flops
from twilbert.model.memory import ProductKeyMemory, memories, usage_statistics
from twilbert.optim.fragments import FragmentOptimizer
from twilbert.optim.lamb import Lamb
from twilbert.tracking.metrics import Histogram, trust_ratio_metrics


def step_metrics(
    engine: Any,
    optimizer: FragmentOptimizer,
    config: ModelConfig,
    device: torch.device,
    world_size: int,
    log: scoring.Interval,
) -> dict[str, float | Histogram]:
    """optim/ and speed/ metrics of the latest update and of the interval since the last row."""
    norm = engine.get_global_grad_norm()  # None at stage 0 without clipping
    row: dict[str, float | Histogram] = {
        "optim/learning_rate": optimizer.learning_rate,
        "optim/grad_norm": optimizer.gradient_norm if norm is None else float(norm),
    }
    if isinstance(optimizer, Lamb):
        row |= trust_ratio_metrics(optimizer.tensor_names, optimizer.trust_ratios, optimizer.adapted)
    flops = useful_flops(config, log["real_tokens"], log["n_masked"]) / log.seconds
    row["speed/flops"] = flops
    peak = device_peak(device)
    if peak is not None:
        row["speed/mfu"] = flops / (peak * world_size)
    if device.type == "cuda":
        row["speed/peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return row


def evaluate_held_out(
    engine: Any, config: ModelConfig, batches: Iterable[MicroBatch], device: torch.device
) -> tuple[torch.Tensor, dict[str, float]]:
    """(sums of `evaluation.scoring` over all workers, pkm/ metrics: how evenly memory slots are used); collective.

    `batches`: this worker's share.
    """
    layers = memories(engine.module)
    for memory in layers:
        memory.start_usage()
    engine.eval()
    sums = scoring.evaluate(engine, batches, device)
    engine.train()
    dist.all_reduce(sums)
    return sums, _memory_usage(config, layers)


def _memory_usage(config: ModelConfig, layers: list[ProductKeyMemory]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for layer, memory in zip(config.memory_layers, layers, strict=True):
        usage = memory.stop_usage()
        dist.all_reduce(usage)
        metrics |= {f"pkm/layer_{layer}_{key}": value for key, value in usage_statistics(usage).items()}
    return metrics
