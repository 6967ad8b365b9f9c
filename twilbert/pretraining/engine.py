"""The DeepSpeed configuration of a recipe, and the engine with its optimiser."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from twilbert.optim.fragments import FragmentOptimizer
from twilbert.optim.optimizers import make_optimizer
from twilbert.recipe.pretraining import Recipe

_CPU = torch.device("cpu")


def deepspeed_config(recipe: Recipe, precision: str, accumulation: int, world_size: int) -> dict[str, Any]:
    """The DeepSpeed configuration, with every key that changes numbers (its defaults are not neutral).

    Micro-batches here hold equal tokens, not equal samples, so DeepSpeed's own sample counts are set to 1 a
    micro-batch and mean nothing.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": accumulation * world_size,
        "gradient_clipping": recipe.training.max_grad_norm,  # absent, it would be 1.0
        "gradient_predivide_factor": 1.0,
        "prescale_gradients": False,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "fp16": {"enabled": False},
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": True},  # a gradient that is not finite skips
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": recipe.training.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_scatter": True,
            "round_robin_gradients": False,  # fragments would not be where the mapping says
            "allgather_bucket_size": 500_000_000,
            "reduce_bucket_size": 500_000_000,
            "sub_group_size": 1_000_000_000_000,  # one flat tensor a rank at stage 3 too
            "stage3_param_persistence_threshold": 0,
        },
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device at every forward and step
    }


def make_engine(
    recipe: Recipe,
    model: nn.Module,
    precision: str,
    accumulation: int,
    world_size: int,
    device: torch.device = _CPU,
) -> tuple[Any, FragmentOptimizer]:
    """(engine, optimiser): `model` wrapped by DeepSpeed on `device` with the recipe's optimiser bound to its shards.

    Needs an initialised torch.distributed process group.
    """
    deepspeed = import_deepspeed(device)
    from twilbert.pretraining.shards import check_fragments, local_fragments

    parameters = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(recipe, [p for p in model.parameters() if p.requires_grad], precision)
    engine, _, _, _ = deepspeed.initialize(
        args=None if device.type == "cpu" else SimpleNamespace(device_rank=device.index),  # else LOCAL_RANK's device
        model=model,
        optimizer=optimizer,  # pyright: ignore[reportArgumentType]
        config=deepspeed_config(recipe, precision, accumulation, world_size),
        dist_init_required=False,
    )
    fragments = local_fragments(engine)
    check_fragments(engine, fragments)
    optimizer.bind(fragments, parameters, sharded=recipe.training.zero_stage > 0)
    return engine, optimizer


def full_weights(engine: Any, rank: int) -> dict[str, torch.Tensor]:
    """A CPU copy of the model's state: complete on rank 0, empty elsewhere. At stage 3, one collective per tensor."""
    module = engine.module
    if engine.zero_optimization_stage() < 3:
        state = module.state_dict() if rank == 0 else {}
        return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
    import deepspeed

    buffers = module.named_buffers() if rank == 0 else ()
    weights = {name: buffer.detach().to("cpu", copy=True) for name, buffer in buffers}
    for name, parameter in module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if rank == 0:
                weights[name] = parameter.detach().cpu().clone()
    return weights


def import_deepspeed(device: torch.device):
    """Import deepspeed without its log lines, for `device`, on the process group of torch.

    Left alone, it takes a GPU that it sees, also in a worker that trains on the CPU. On a CPU its shared-memory
    collectives are off: compiling them takes most of a minute.
    """
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        "nccl" if device.type == "cuda" else "gloo", dist_init_required=False, auto_mpi_discovery=False
    )
    return deepspeed
