"""The plan as one dictionary, ready for JSON: every figure beside the assumptions it stands on."""

from __future__ import annotations

from typing import Any

import numpy as np

from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream.stream import survey_lengths
from twilbert.errors import UsageError
from twilbert.model.config import ModelConfig, count_parameters
from twilbert.model.flops import useful_flops
from twilbert.planning import calibration, timing
from twilbert.planning import memory as disk
from twilbert.planning.activations import Activations, activations
from twilbert.planning.calibration import Rates
from twilbert.planning.devices import Device
from twilbert.planning.memory import BUCKET, STAGES, Memory, checkpoint_host_bytes, memory
from twilbert.planning.operations import executed_flops, flops_by_part
from twilbert.planning.workload import SPREAD, TWEET_TOKENS, Workload, assumed_lengths, workload
from twilbert.recipe.pretraining import Recipe

FORMAT = 1
SIZES = tuple(2**i for i in range(10))
"""Numbers of devices in the table of times: 1 to 512."""
SHARES = (0.25, 0.5, 1, 2, 4)
"""Of the recipe's micro_batch_tokens, in the table of memory."""


def lengths_of(encoded: EncodedCorpus | None, recipe: Recipe, tweet_tokens: float | None = None) -> np.ndarray:
    """Ascending lengths of typical samples: the corpus' own, else assumed ones."""
    if encoded is not None:
        return survey_lengths(encoded, "train")
    return assumed_lengths(recipe.corpus.max_len, tweet_tokens or TWEET_TOKENS)


def measured_rates(recipe: Recipe, config: ModelConfig, lengths: np.ndarray, precision: str) -> Rates:
    """This machine's rates for the recipe's model at the middle micro-batch of one worker."""
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
    """The whole plan. `rates`: measured ones, else assumed from the device; `notes`: assumptions of the caller.

    UsageError where a sample is longer than a micro-batch.
    """
    rates = rates or calibration.assumed_rates(device, config, precision)
    training = recipe.training
    gpu = device.kind != "cpu"
    work = workload(recipe, lengths, devices, gpu=gpu)
    number = 2 if precision == "bf16" and training.zero_stage else 4
    parameters = count_parameters(config)
    times, own_time = [], None
    for world in sorted({*SIZES, devices}):
        if world > training.global_batch_size:  # a worker would have no sample
            continue
        here = work if world == devices else workload(recipe, lengths, world, gpu=gpu)
        row = _time_row(recipe, config, here, device, rates, precision)
        times.append(row)
        own_time = row if world == devices else own_time
    if own_time is None:
        raise UsageError(
            f"--gpus {devices}: more devices than the {training.global_batch_size} samples of a step; "
            "lower --gpus or raise training.global_batch_size"
        )
    return {
        "format": FORMAT,
        "device": {"kind": device.kind, "name": device.name, "memory": device.memory, "devices": devices,
                   "source": device.source},
        "precision": precision,
        "zero_stage": training.zero_stage,
        "parameters": parameters,
        "step": {
            "samples": training.global_batch_size,
            "real_tokens": work.real * devices,
            "padded_tokens": work.padded * devices,
            "masked_tokens": work.masked * devices,
            "mean_length": float(lengths.mean()),
            "longest": int(lengths[-1]),
            "accumulation": work.accumulation,
            "micro_batch_tokens": round(max(piece.padded for piece in work.pieces)),
        },
        "flops": _flops(config, work),
        "memory": _memory(recipe, config, device, lengths, work, precision),
        "time": {"own": own_time, "devices": times, "max_steps": training.max_steps},
        "disk": disk.disk(recipe, parameters["total"], number, float(lengths.mean()), encoded),
        "bound": own_time["bound"],
        "assumptions": [*(notes or []), *assumptions(device, rates, config, encoded is not None)],
    }  # fmt: skip


# ---- the parts -----------------------------------------------------------------------------------------------------


def _flops(config: ModelConfig, work: Workload) -> dict[str, Any]:
    masked = work.masked / work.real
    a_token = flops_by_part(config, 1.0, masked, 0.0)
    executed = executed_flops(config, work)
    a_token["scores"] = executed["scores"] / work.real
    return {
        "token": a_token,
        "useful_token": useful_flops(config, 1.0, masked),
        "useful_step": useful_flops(config, work.real, work.masked) * work.world,
        "executed_step": sum(executed.values()) * work.world,
    }


def _heaviest(config: ModelConfig, work: Workload, number: int, *, gpu: bool) -> Activations:
    kept = (activations(config, piece, number, gpu=gpu) for piece in work.pieces)
    return max(kept, key=lambda one: one.peak)


def _memory(
    recipe: Recipe, config: ModelConfig, device: Device, lengths: np.ndarray, work: Workload, precision: str
) -> dict[str, Any]:
    gpu, stage = device.kind != "cpu", recipe.training.zero_stage

    def at(stage: int, load: Workload) -> Memory:
        kept = _heaviest(config, load, 2 if precision == "bf16" and stage else 4, gpu=gpu)
        return memory(
            config, kept, precision=precision, stage=stage, world=load.world, accumulation=load.accumulation, gpu=gpu
        )

    own = at(stage, work)
    kept = _heaviest(config, work, 2 if precision == "bf16" and stage else 4, gpu=gpu)
    sizes = []
    for share in SHARES:
        tokens = int(recipe.training.micro_batch_tokens * share)
        if tokens < lengths[-1]:
            continue
        load = workload(recipe, lengths, work.world, tokens, gpu=gpu)
        peaks = {f"stage_{stage}": at(stage, load).peak + device.reserve for stage in STAGES}
        sizes.append({"micro_batch_tokens": tokens, "accumulation": load.accumulation, **peaks})
    used = own.peak + device.reserve
    return {
        "own": _row(stage, own, precision) | {
            "reserve": device.reserve,
            "total": used,
            "share": used / device.memory if device.memory else None,
            "fits": used <= device.memory if device.memory else None,
            "resting": own.resting,
            "checkpoint_host": checkpoint_host_bytes(config, precision, stage, work.world),
        },
        "activations": dict(kept.parts),
        "stages": [_row(stage, at(stage, work), precision) for stage in STAGES],
        "micro_batches": sizes,
    }  # fmt: skip


def _row(stage: int, held: Memory, precision: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "precision": precision if stage else "fp32",
        "weights": held.weights,
        "masters": held.masters,
        "moments": held.moments,
        "gradients": held.gradients,
        "buffers": held.buffers,
        "activations": held.activations,
        "temporaries": held.temporaries,
        "states": held.states,
        "peak": held.peak,
        "at_peak": held.at_peak,
    }


def _time_row(
    recipe: Recipe, config: ModelConfig, work: Workload, device: Device, rates: Rates, precision: str
) -> dict[str, Any]:
    found = timing.step_time(recipe, config, work, device, rates, precision)
    useful = useful_flops(config, work.real, work.masked)
    hours = found.step * recipe.training.max_steps / 3600
    return {
        "devices": work.world,
        "accumulation": work.accumulation,
        "step": found.step,
        "hours": hours,
        "device_hours": hours * work.world,
        "tokens_per_second": work.real * work.world / found.step,
        "useful_share": useful / found.step / device.gemm[precision] if device.gemm[precision] else None,
        "products": found.products,
        "elements": found.elements,
        "update": found.update,
        "beside": found.beside,
        "compute": found.compute,
        "collectives": found.collectives,
        "data": found.data,
        "bound": found.bound,
    }


def assumptions(device: Device, rates: Rates, config: ModelConfig, has_corpus: bool) -> list[str]:
    """Everything the figures stand on that was not computed, one sentence each."""
    place = "cpu" if device.kind == "cpu" else "gpu"
    half, matrix = calibration.HALF_WIDTH[place], rates.matrix / 1e12
    said = [
        f"device: {device.name}, peaks, memory and links as in: {device.source}",
        f"tensors beside which {device.reserve / 1e9:.2f} GB go to the process, its libraries and contexts",
    ]
    if rates.measured:
        said.append(
            f"rates measured on this machine on a block, the head and a memory of this model: {matrix:.3f} TFLOP/s of "
            f"products, {rates.head / 1e12:.3f} of the vocabulary head, {rates.element / 1e9:.1f} GB/s of elementwise "
            f"work, {rates.stream / 1e9:.1f} GB/s of memory"
        )
    else:
        said += [
            f"matrix products reach {calibration.LARGE_SHARE[place]:.0%} of the peak where wide, and of that "
            f"H / (H + {half}) at width H: {matrix:.3f} TFLOP/s here",
            f"elementwise work runs at {calibration.ELEMENT_SHARE[place]:.0%} of the memory's "
            f"{device.stream / 1e9:,.0f} GB/s, the update at {calibration.STREAM_SHARE[place]:.0%}",
        ]
    if not has_corpus:
        said.append(
            f"no encoded corpus: pairs of log-normal tweets (spread {SPREAD:g}), cut at max_len; every row is a pair"
        )
    if place == "gpu":
        said += [
            f"the host starts a kernel in {device.launch * 1e6:g} µs, {timing.KERNELS_A_LAYER} of them a layer and "
            "micro-batch, and a step is no faster",
            "fused attention keeps no scores; no memory is lost to fragments of the allocator",
            f"DeepSpeed's bucket of {BUCKET:,} numbers is reserved where the stage uses one",
        ]
    else:
        said.append(
            f"Ray's processes, beside cores that all compute, make a step {timing.RAY_SHARE:.0%} longer (two cores)"
        )
        said.append(
            "resident memory counts what is in use: glibc keeps freed blocks in its arenas and oneDNN up to 1,024 "
            "compiled products, together several times as much; MALLOC_MMAP_MAX_=65536, MALLOC_MMAP_THRESHOLD_=65536, "
            "MALLOC_TRIM_THRESHOLD_=131072 and ONEDNN_PRIMITIVE_CACHE_CAPACITY=16 in the environment prevent it; "
            "a step of Base then took 1.9 times as long"
        )
    node = (
        f"{device.link / 1e9:,.4g} GB/s among the {device.per_node} devices of a node, " if device.per_node > 1 else ""
    )
    between = f"{device.network / 1e9:,.4g} GB/s a device between nodes"
    return [
        *said,
        f"collectives are rings that reach {timing.LINK_SHARE:.0%} of {node + between}, one way, with "
        f"{timing.LATENCY_S * 1e6:g} µs a hop; nothing of them overlaps with computing",
        f"one Ray Data task a worker reads {timing.READ_SAMPLES_S:,.0f} samples/s and masks "
        f"{timing.MASK_TOKENS_S:,.0f} tokens/s, beside the step before",
        "evaluations, checkpoints and start-up are not in the hours; rates are the same in every worker",
        f"text takes {disk.TEXT_BYTES_TOKEN} bytes a token on disk, ids {disk.ENCODED_BYTES_TOKEN}; a checkpoint holds "
        "fp32 weights and moments and the model",
    ]
