"""The plan as one dictionary, ready for JSON: figures and the assumptions behind them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream.stream import survey_lengths
from twilbert.errors import UsageError
from twilbert.model.config import ModelConfig, count_parameters
from twilbert.model.flops import useful_flops
from twilbert.planning import calibration, timing
from twilbert.planning.activations import Activations, activations
from twilbert.planning.calibration import Rates
from twilbert.planning.devices import Device
from twilbert.planning.memory import (
    BUCKET,
    ENCODED_BYTES_TOKEN,
    STAGES,
    TEXT_BYTES_TOKEN,
    Memory,
    checkpoint_host_bytes,
    disk,
    memory,
)
from twilbert.planning.operations import executed_flops, flops_by_part
from twilbert.planning.workload import SPREAD, TWEET_TOKENS, Workload, assumed_lengths, workload
from twilbert.recipe.pretraining import Recipe

FORMAT = 1
SIZES = tuple(2**i for i in range(10))
"""Numbers of devices in the table of times: 1 to 512."""
SHARES = (0.25, 0.5, 1, 2, 4)
"""Of the recipe's micro_batch_tokens, in the table of memory."""


def lengths_of(encoded: EncodedCorpus | None, recipe: Recipe, tweet_tokens: float | None = None) -> np.ndarray:
    """Return ascending lengths of typical samples: those of the corpus, else assumed ones."""
    if encoded is not None:
        return survey_lengths(encoded, "train")
    return assumed_lengths(recipe.corpus.max_len, tweet_tokens or TWEET_TOKENS)


def measured_rates(recipe: Recipe, config: ModelConfig, lengths: np.ndarray, precision: str) -> Rates:
    """Measure this machine's rates for the recipe's model on the median micro-batch of one worker."""
    pieces = sorted(workload(recipe, lengths, 1, gpu=False).pieces, key=lambda piece: piece.longest)
    return calibration.measured_rates(config, pieces[len(pieces) // 2], precision)


def make_plan(
    recipe: Recipe,
    config: ModelConfig,
    device: Device,
    *,
    devices: int,
    precision: str,
    lengths: np.ndarray,
    rates: Rates | None = None,
    encoded: EncodedCorpus | None = None,
    notes: list[str] | None = None,
) -> dict[str, Any]:
    """Return the whole plan. `rates`: measured ones, else assumed from the device; `notes`: the caller's assumptions.

    UsageError where a sample is longer than a micro-batch.
    """
    rates = rates or calibration.assumed_rates(device, config, precision)
    training = recipe.training
    gpu = device.kind != "cpu"
    work = workload(recipe, lengths, devices, gpu=gpu)
    number = 2 if precision == "bf16" and training.zero_stage else 4
    parameters = count_parameters(config)
    if devices > training.global_batch_size:
        raise UsageError(
            f"--gpus {devices}: more devices than the {training.global_batch_size} samples of a step; "
            "lower --gpus or raise training.global_batch_size"
        )
    times = {}
    for world in sorted({*SIZES, devices}):
        if world <= training.global_batch_size:  # each worker has a sample
            share = work if world == devices else workload(recipe, lengths, world, gpu=gpu)
            times[world] = _time_row(recipe, config, share, device, rates, precision)
    return {
        "format": FORMAT,
        "device": {"kind": device.kind, "name": device.name, "memory": device.memory, "devices": devices,
                   "source": device.source},
        "precision": precision,
        "zero_stage": training.zero_stage,
        "parameters": parameters,
        "step": {
            "samples": training.global_batch_size,
            "real_tokens": work.step.real * devices,
            "padded_tokens": work.step.padded * devices,
            "masked_tokens": work.step.masked * devices,
            "mean_length": float(lengths.mean()),
            "longest": int(lengths[-1]),
            "accumulation": work.accumulation,
            "micro_batch_tokens": round(max(piece.padded for piece in work.pieces)),
        },
        "flops": _flops(config, work),
        "memory": _memory(recipe, config, device, lengths, work, precision),
        "time": {"own": times[devices], "devices": list(times.values()), "max_steps": training.max_steps},
        "disk": disk(recipe, parameters["total"], number, float(lengths.mean()), encoded),
        "bound": times[devices]["bound"],
        "assumptions": [*(notes or []), *assumptions(device, rates, config, encoded is not None)],
    }  # fmt: skip


def _flops(config: ModelConfig, work: Workload) -> dict[str, Any]:
    step = work.step
    masked = step.masked / step.real
    executed = executed_flops(config, step)
    return {
        "token": flops_by_part(config, 1.0, masked) | {"scores": executed["scores"] / step.real},
        "useful_token": useful_flops(config, 1.0, masked),
        "useful_step": useful_flops(config, step.real, step.masked) * work.world,
        "executed_step": sum(executed.values()) * work.world,
    }


def _memory(
    recipe: Recipe, config: ModelConfig, device: Device, lengths: np.ndarray, work: Workload, precision: str
) -> dict[str, Any]:
    gpu, stage = device.kind != "cpu", recipe.training.zero_stage

    def largest(stage: int, load: Workload) -> Activations:
        number = 2 if precision == "bf16" and stage else 4
        return max((activations(config, piece, number, gpu=gpu) for piece in load.pieces), key=lambda one: one.peak)

    def at(stage: int, load: Workload) -> Memory:
        settings = {"precision": precision, "stage": stage, "world": load.world, "accumulation": load.accumulation}
        return memory(config, largest(stage, load), gpu=gpu, **settings)

    def row(stage: int) -> dict[str, Any]:
        held = at(stage, work)
        sums = {"states": held.states, "peak": held.peak, "at_peak": held.at_peak}
        return {"stage": stage, "precision": precision if stage else "fp32", **asdict(held), **sums}

    sizes = []
    for share in SHARES:
        tokens = int(recipe.training.micro_batch_tokens * share)
        if tokens >= lengths[-1]:
            load = workload(recipe, lengths, work.world, tokens, gpu=gpu)
            peaks = {f"stage_{stage}": at(stage, load).peak + device.reserve for stage in STAGES}
            sizes.append({"micro_batch_tokens": tokens, "accumulation": load.accumulation, **peaks})
    stages = [row(stage) for stage in STAGES]
    used = stages[stage]["peak"] + device.reserve
    return {
        "own": stages[stage]
        | {
            "reserve": device.reserve,
            "total": used,
            "share": used / device.memory if device.memory else None,
            "fits": used <= device.memory if device.memory else None,
            "resting": at(stage, work).resting,
            "checkpoint_host": checkpoint_host_bytes(config, precision, stage, work.world),
        },
        "activations": dict(largest(stage, work).parts),
        "stages": stages,
        "micro_batches": sizes,
    }


def _time_row(
    recipe: Recipe, config: ModelConfig, work: Workload, device: Device, rates: Rates, precision: str
) -> dict[str, Any]:
    time = timing.step_time(recipe, config, work, device, rates, precision)
    useful, peak = useful_flops(config, work.step.real, work.step.masked), device.gemm[precision]
    hours = time.step * recipe.training.max_steps / 3600
    return asdict(time) | {
        "devices": work.world,
        "accumulation": work.accumulation,
        "step": time.step,
        "hours": hours,
        "device_hours": hours * work.world,
        "tokens_per_second": work.step.real * work.world / time.step,
        "useful_share": useful / time.step / peak if peak else None,
        "compute": time.compute,
        "bound": time.bound,
    }


def assumptions(device: Device, rates: Rates, config: ModelConfig, has_corpus: bool) -> list[str]:
    """Return one sentence for each thing that the figures assume."""
    place = "cpu" if device.kind == "cpu" else "gpu"
    half, matrix = calibration.HALF_WIDTH[place], rates.matrix / 1e12
    sentences = [
        f"device: {device.name}, peaks, memory and links as in: {device.source}",
        f"tensors beside which {device.reserve / 1e9:.2f} GB go to the process, its libraries and contexts",
    ]
    if rates.measured:
        sentences.append(
            f"rates measured on this machine on a block, the head and a memory of this model: {matrix:.3f} TFLOP/s of "
            f"products, {rates.head / 1e12:.3f} of the vocabulary head, {rates.element / 1e9:.1f} GB/s of elementwise "
            f"work, {rates.stream / 1e9:.1f} GB/s of memory"
        )
    else:
        sentences += [
            f"matrix products reach {calibration.LARGE_SHARE[place]:.0%} of the peak where wide, and of that "
            f"H / (H + {half}) at width H: {matrix:.3f} TFLOP/s here",
            f"elementwise work runs at {calibration.ELEMENT_SHARE[place]:.0%} of the memory's "
            f"{device.stream / 1e9:,.0f} GB/s, the update at {calibration.STREAM_SHARE[place]:.0%}",
        ]
    if not has_corpus:
        sentences.append(
            f"no encoded corpus: pairs of log-normal tweets (spread {SPREAD:g}), cut at max_len; every row is a pair"
        )
    if place == "gpu":
        sentences += [
            f"the host starts a kernel in {device.launch * 1e6:g} µs, {timing.KERNELS_A_LAYER} of them a layer and "
            "micro-batch, and a step is no faster",
            "fused attention keeps no scores; no memory is lost to fragments of the allocator",
            f"DeepSpeed's bucket of {BUCKET:,} numbers is reserved where the stage uses one",
        ]
    else:
        sentences.append(
            f"Ray's processes, beside cores that all compute, make a step {timing.RAY_SHARE:.0%} longer (two cores)"
        )
        sentences.append(
            "resident memory counts allocated blocks: glibc keeps freed ones in its arenas and oneDNN up to 1,024 "
            "compiled products, together several times as much; MALLOC_MMAP_MAX_=65536, MALLOC_MMAP_THRESHOLD_=65536, "
            "MALLOC_TRIM_THRESHOLD_=131072 and ONEDNN_PRIMITIVE_CACHE_CAPACITY=16 in the environment prevent it; "
            "a step of Base then took 1.9 times as long"
        )
    node = (
        f"{device.link / 1e9:,.4g} GB/s among the {device.per_node} devices of a node, " if device.per_node > 1 else ""
    )
    between = f"{device.network / 1e9:,.4g} GB/s a device between nodes"
    return [
        *sentences,
        f"collectives are rings that reach {timing.LINK_SHARE:.0%} of {node + between}, one way, with "
        f"{timing.LATENCY_S * 1e6:g} µs a hop; nothing of them overlaps with computing",
        f"one Ray Data task a worker reads {timing.READ_SAMPLES_S:,.0f} samples/s and masks "
        f"{timing.MASK_TOKENS_S:,.0f} tokens/s, beside the step before",
        "evaluations, checkpoints and start-up are not in the hours; rates are the same in every worker",
        f"text takes {TEXT_BYTES_TOKEN} bytes a token on disk, ids {ENCODED_BYTES_TOKEN}; a checkpoint holds "
        "fp32 weights and moments and the model",
    ]
