"""The part of each parameter that this rank's optimiser holds, under every ZeRO stage.

DeepSpeed flattens parameters and splits them into one flat tensor a rank (a few at stage 3). A `Fragment` names one
parameter's run of elements inside such a tensor. Optimisers use fragments for what is per tensor (decay, trust
ratios); checkpoints use them to store state by parameter name, readable at any world size and stage.

All private attributes of DeepSpeed that this program reads are in this file.
"""

from __future__ import annotations

from typing import Any

import torch

from twilbert.optim.fragments import Fragment, flat_view


def local_fragments(engine: Any) -> list[Fragment]:
    """The fragments that this rank's optimiser updates, in the order of the parameters.

    RuntimeError, naming the DeepSpeed version, when its inner layout is not the one known here, or when fragments
    do not cover what they should.
    """
    named = [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]
    stage = engine.zero_optimization_stage()
    try:
        if stage == 0:
            fragments = [Fragment(name, tuple(p.shape), 0, p.numel(), p, 0) for name, p in named]
        elif stage in (1, 2):
            fragments = _stage_1_2(engine, named)
        else:
            fragments = _stage_3(engine, named)
    except AttributeError as error:
        raise _unknown_layout(engine, str(error)) from error
    for fragment in fragments:
        if fragment.length <= 0 or fragment.offset + fragment.length > fragment.flat.numel():
            raise _unknown_layout(engine, f"the fragment of {fragment.name} lies outside its shard")
    return fragments


def check_fragments(engine: Any, fragments: list[Fragment]) -> None:
    """RuntimeError, the same on all ranks, unless the fragments hold the weights they name, each exactly once.

    For a new engine, whose fp32 masters are still its weights. A collective.
    """
    if engine.zero_optimization() and engine.zero_round_robin_gradients():
        raise RuntimeError("round_robin_gradients moves gradients to where no mapping says: leave it false")
    parameters = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    held = dict.fromkeys(parameters, 0)
    wrong = 0
    for fragment in fragments:
        parameter = parameters[fragment.name]
        held[fragment.name] += fragment.length
        if engine.zero_optimization_stage() == 3:
            working = parameter.ds_tensor.detach().view(-1)[: fragment.length]
        else:
            working = flat_view(parameter).narrow(0, fragment.start, fragment.length)
        wrong += not torch.equal(fragment.values.to(working.dtype), working)
    counts = torch.tensor([wrong, *held.values()], device=engine.device)
    if engine.zero_optimization_stage() > 0:
        torch.distributed.all_reduce(counts)
    elements = [p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in parameters.values()]
    wrong, *held_by_all = counts.tolist()
    lost = [name for name, n, h in zip(parameters, elements, held_by_all, strict=True) if h != n]
    if wrong or lost:
        raise _unknown_layout(engine, f"{wrong} fragments hold other weights, not covered once: {lost[:3]}")


def _unknown_layout(engine: Any, reason: str) -> RuntimeError:
    import deepspeed  # here, so that optimisers and checkpoints do not need it to be imported

    return RuntimeError(
        f"DeepSpeed {deepspeed.__version__} lays out ZeRO stage {engine.zero_optimization_stage()} in a way unknown "
        f"here ({reason}); install the version that the constraints file names"
    )


def _stage_1_2(engine, named) -> list[Fragment]:
    groups = engine.optimizer.optimizer.param_groups
    if len(groups) != 1 or len(groups[0]["params"]) != 1:
        raise AttributeError(f"expected one flat tensor in one parameter group, found {len(groups)} groups")
    flat = groups[0]["params"][0]
    fragments = []
    for name, parameter in named:
        mapping = parameter._hp_mapping
        if mapping is None:  # this rank's shard holds nothing of it
            continue
        here, inside = mapping.hp_fragment_address, mapping.lp_fragment_address
        fragments.append(Fragment(name, tuple(parameter.shape), inside.start, inside.numel, flat, here.start))
    return fragments


def _stage_3(engine, named) -> list[Fragment]:
    names = {id(parameter): name for name, parameter in named}
    zero, rank = engine.optimizer, torch.distributed.get_rank()
    fragments = []
    for parameters, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        offset = 0
        for parameter in parameters:
            share = parameter.partition_numel()  # the last rank's share is padded to it
            start = rank * share
            length = min(share, parameter.ds_numel - start)
            if length > 0:
                fragments.append(Fragment(names[id(parameter)], tuple(parameter.ds_shape), start, length, flat, offset))
            offset += share
    order = {name: i for i, (name, _) in enumerate(named)}
    return sorted(fragments, key=lambda fragment: order[fragment.name])


def owned(fragments: list[Fragment], stage: int, rank: int, world_size: int) -> list[Fragment]:
    """The fragments that this rank writes: all of its own under ZeRO; a share at stage 0, where all ranks hold all."""
    return fragments if stage > 0 else fragments[rank::world_size]
