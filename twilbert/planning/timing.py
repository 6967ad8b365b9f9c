"""Seconds of a step on any number of devices, and what bounds them.

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
from twilbert.planning.operations import (
    accumulation_bytes,
    element_bytes,
    executed_flops,
    update_bytes,
)
from twilbert.planning.workload import Workload
from twilbert.recipe.pretraining import Recipe

LINK_SHARE = 0.8
"""What collectives reach of a link."""
LATENCY_S = 20e-6
"""Of one hop of a collective; there are 2·log2(N)."""
KERNELS_A_LAYER = 60
"""Forward and backward of a block; as many for head, embeddings and loss together."""
RAY_SHARE = 0.08
"""More time for a step on CPUs: Ray's processes wake beside cores that all compute (two of them, one worker, Base:
8 and 9 % in two runs of tools/bench_overhead.py)."""
READ_SAMPLES_S = 300_000.0
"""Samples a second that one Ray Data task reads, sorts and cuts."""
MASK_TOKENS_S = 2_000_000.0
"""Tokens a second that it lays out and masks."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step on `world` devices."""

    world: int
    products: float
    elements: float
    update: float
    collectives: float
    data: float
    launch: float
    beside: float
    """What Ray's processes take from a CPU's cores."""

    @property
    def compute(self) -> float:
        """All that a device does alone."""
        return max(self.products + self.elements, self.launch) + self.update + self.beside

    @property
    def step(self) -> float:
        """Wall time."""
        return max(self.data, self.compute + self.collectives)

    @property
    def bound(self) -> str:
        """Which of the three is the largest."""
        parts = {"compute": self.compute, "collectives": self.collectives, "data": self.data}
        if self.data < self.compute + self.collectives:
            parts.pop("data")
        return max(parts, key=lambda name: parts[name])


def step_time(
    recipe: Recipe, config: ModelConfig, work: Workload, device: Device, rates: Rates, precision: str
) -> StepTime:
    """The typical step of one of `work.world` devices."""
    stage, gpu = recipe.training.zero_stage, device.kind != "cpu"
    number = 2 if precision == "bf16" and stage else 4
    parameters = float(count_parameters(config)["total"])
    flops = executed_flops(config, work)
    head = flops.pop("vocabulary_head")
    memory = len(config.memory_layers) * rates.memory_token * work.real
    elements = element_bytes(config, work, number, gpu=gpu)
    moved = work.accumulation * accumulation_bytes(parameters, precision, stage)
    moved += update_bytes(recipe, parameters, precision, stage, work.world)
    read = recipe.training.global_batch_size / (work.world if recipe.corpus.lanes > 1 else 1)
    products = sum(flops.values()) / rates.matrix + head / rates.head
    elements = elements / rates.element + memory
    update = moved / rates.stream
    return StepTime(
        world=work.world,
        products=products,
        elements=elements,
        update=update,
        beside=0.0 if gpu else RAY_SHARE * (products + elements + update),
        collectives=_collectives(config, stage, number, parameters, work, device),
        data=read / READ_SAMPLES_S + work.real / MASK_TOKENS_S,
        launch=work.accumulation * (config.n_encoders + 1) * KERNELS_A_LAYER * device.launch,
    )


def _collectives(
    config: ModelConfig, stage: int, number: int, parameters: float, work: Workload, device: Device
) -> float:
    """Seconds of a step's collectives: gradients in fp32, weights in the compute type."""
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
