"""Plans of a small encoded corpus, and the samples of their micro-batches, that the stream's tests share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream.micro_batch import VALUES, MicroBatch
from twilbert.data.stream.order import StreamPlan
from twilbert.data.stream.stream import micro_batches
from twilbert.model.special_tokens import PAD

SIZE = 24  # samples a step


class Sample(NamedTuple):
    """What the model receives of a sample."""

    id: int
    ids: list[int]
    segments: list[int]
    masked: list[tuple[int, int]]  # positions and labels
    rop: int


def make_plan(encoded: EncodedCorpus, world_size: int = 1, accumulation: int = 2, **options) -> StreamPlan:
    settings = {"seed": 11, "global_batch_size": SIZE, "window_row_groups": 2, **options}
    return StreamPlan(encoded, world_size=world_size, accumulation=accumulation, **settings)


def all_workers(plan: StreamPlan, start: int, stop: int) -> list[MicroBatch]:
    return [batch for rank in range(plan.world_size) for batch in micro_batches(plan, rank, start, stop)]


def samples_of(batch: MicroBatch) -> list[Sample]:
    """The samples of a micro-batch; AssertionError where something lies at their padding."""
    width, samples = batch.input_ids.shape[1], []
    row = batch.masked_index // width
    for i, (sample, length) in enumerate(zip(batch.sample_ids.tolist(), batch.lengths.tolist(), strict=True)):
        positions, labels = batch.masked_index[row == i] % width, batch.masked_labels[row == i]
        assert (batch.input_ids[i, length:] == PAD).all() and (batch.segment_ids[i, length:] == 0).all()
        ids, segments = batch.input_ids[i, :length].tolist(), batch.segment_ids[i, :length].tolist()
        masked = list(zip(positions.tolist(), labels.tolist(), strict=True))
        samples.append(Sample(sample, ids, segments, masked, int(batch.rop_labels[i])))
    return samples


def contents(plan: StreamPlan, start: int, stop: int) -> dict[int, list[Sample]]:
    """The samples of each step, whatever workers and micro-batches they come in."""
    steps: dict[int, list[Sample]] = {step: [] for step in range(start, stop)}
    for batch in all_workers(plan, start, stop):
        steps[batch.step] += samples_of(batch)
    return {step: sorted(samples) for step, samples in steps.items()}


def same(a: MicroBatch, b: MicroBatch) -> bool:
    arrays = [(getattr(a, name), getattr(b, name), dtype) for name, dtype in VALUES.items()]
    counts = ("step", "epoch", "accumulation", "n_masked", "n_rop", "n_samples")
    return all(x.dtype == y.dtype == dtype and np.array_equal(x, y) for x, y, dtype in arrays) and all(
        getattr(a, name) == getattr(b, name) for name in counts
    )
