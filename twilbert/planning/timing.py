"""Seconds of a step on any number of devices, and the part that limits it.

    step = max(data, compute + collectives)          nothing of DeepSpeed's communication overlaps (overlap_comm false)

compute      matrix products, elementwise work, accumulation of gradients, the update; on a GPU at least the time in
             which the host starts its kernels, on a CPU what Ray's processes take
collectives  rings: 2(N-1)/N of a tensor for an all_reduce, (N-1)/N for an all_gather or a reduce_scatter
data         what a worker's Ray Data task reads, cuts and masks while the step before runs
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from twilbert.model.config import ModelConfig, count_parameters
from twilbert.planning.calibration import Rates
from twilbert.planning.devices import Device
from twilbert.planning.operations import accumulation_bytes, element_bytes, executed_flops, update_bytes
from twilbert.planning.workload import Workload
from twilbert.recipe.pretraining import Recipe

LINK_SHARE = 0.8
"""Share of a link's rate that collectives reach."""
LATENCY_S = 20e-6
"""Latency of one hop of a collective; there are 2·log2(N)."""
KERNELS_A_LAYER = 60
"""Forward and backward of a block; as many for head, embeddings and loss together."""
RAY_SHARE = 0.08
"""Share by which Ray's processes lengthen a step on CPUs whose cores all compute (two cores, one worker, Base: 8 and
9 % in two runs of tools/bench_overhead.py)."""
READ_SAMPLES_S = 300_000.0
"""Samples a second read, sorted and cut by one Ray Data task."""
MASK_TOKENS_S = 2_000_000.0
"""Tokens a second laid out and masked by it."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by part."""

    products: float
    elements: float
    update: float
    collectives: float
    data: float
    launch: float
    beside: float
    """Taken from a CPU's cores by Ray's processes."""

    @property
    def compute(self) -> float:
        """Work that needs no other device."""
        return max(self.products + self.elements, self.launch) + self.update + self.beside

    @property
    def step(self) -> float:
        """Wall time."""
        return max(self.data, self.compute + self.collectives)

    @property
    def bound(self) -> str:
        """The part that limits the step: data, compute or collectives."""
        if self.data >= self.compute + self.collectives:
            return "data"
        return "compute" if self.compute >= self.collectives else "collectives"


def step_time(
    recipe: Recipe, config: ModelConfig, work: Workload, device: Device, rates: Rates, precision: str
) -> StepTime:
    """Return the time of the mean step of `work` on one of its devices."""
    stage, gpu, step = recipe.training.zero_stage, device.kind != "cpu", work.step
    number = 2 if precision == "bf16" and stage else 4
    parameters = float(count_parameters(config)["total"])
    flops = executed_flops(config, step)
    head = flops.pop("vocabulary_head")
    products = sum(flops.values()) / rates.matrix + head / rates.head
    elements = element_bytes(config, step, number, gpu=gpu) / rates.element
    elements += len(config.memory_layers) * rates.memory_token * step.real
    moved = work.accumulation * accumulation_bytes(parameters, precision, stage)
    update = (moved + update_bytes(recipe, parameters, precision, stage, work.world)) / rates.stream
    samples_read = recipe.training.global_batch_size / (work.world if recipe.corpus.lanes > 1 else 1)
    return StepTime(
        products=products,
        elements=elements,
        update=update,
        collectives=_collectives(config, stage, number, parameters, work, device),
        data=samples_read / READ_SAMPLES_S + step.real / MASK_TOKENS_S,
        launch=work.accumulation * (config.n_encoders + 1) * KERNELS_A_LAYER * device.launch,
        beside=0.0 if gpu else RAY_SHARE * (products + elements + update),
    )


def _collectives(
    config: ModelConfig, stage: int, number: int, parameters: float, work: Workload, device: Device
) -> float:
    """Return the seconds of a step's collectives: gradients in fp32, weights in the compute type."""
    n = work.world
    if n == 1:
        return 0.0
    # Between nodes as many rings run as a node has network cards, one a device.
    link = device.link if n <= device.per_node else min(device.link, device.network * device.per_node)
    link *= LINK_SHARE
    ring, hops = (n - 1) / n, 2 * math.log2(n) * LATENCY_S
    gradients, weights = 4 * parameters, number * parameters
    if stage == 0:
        moved, calls = 2 * gradients, 2
    elif stage == 1:
        moved, calls = 2 * gradients + weights, 3
    elif stage == 2:  # every micro-batch's bucket goes to all: DeepSpeed reduces it with one all_reduce
        moved, calls = work.accumulation * 2 * gradients + weights, work.accumulation + 2
    else:
        moved = work.accumulation * (2 * weights + gradients)
        calls = work.accumulation * 3 * (config.n_encoders + 2)
    calls += 2 * len(config.memory_layers) * work.accumulation  # the query norm's statistics
    return ring * moved / link + calls * hops
