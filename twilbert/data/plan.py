"""The plan of the stream: which samples a step sees, computed from row-group counts alone.

    row groups of the split ─ seeded permutation an epoch ─▶ windows ─ shuffled inside ─▶ epoch ─▶ epochs end to end
    step s = samples [s·G, (s + 1)·G) of that endless order, so that an epoch's remainder opens the next epoch

A window is `window_row_groups` row groups from all over the split; it holds both orders of its pairs and its single
tweets once. Nothing here depends on how many workers there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from twilbert.data.encoded import EncodedCorpus, Split
from twilbert.data.objectives import MaskingSettings
from twilbert.data.randomness import Purpose, bits, key
from twilbert.errors import UsageError

_ITEM_SAMPLES = 2**14  # an item covers whole windows of at least so many samples: less is not worth a task


@dataclass(frozen=True)
class StreamPlan:
    """What a stream is a pure function of; picklable. Steps, epochs and positions count from 0."""

    encoded: EncodedCorpus
    seed: int
    global_batch_size: int  # samples a step, over all workers
    world_size: int
    accumulation: int  # micro-batches a step and worker
    masking: MaskingSettings = field(default_factory=MaskingSettings)
    split: str = "train"
    window_row_groups: int = 8

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "world_size", "accumulation", "window_row_groups"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: expected at least 1")
        nonempty_split(self.encoded, self.split)

    @property
    def counts(self) -> Split:
        """The counts of the split that is streamed."""
        return self.encoded.split(self.split)

    @property
    def n_pieces(self) -> int:
        """Micro-batches a step, over all workers; piece m is worker m % world_size's, number m // world_size."""
        return self.world_size * self.accumulation

    def epoch_of_step(self, step: int) -> int:
        """The epoch of the first sample of `step`."""
        return step * self.global_batch_size // self.counts.samples


def nonempty_split(encoded: EncodedCorpus, name: str) -> Split:
    """The counts of a split; UsageError when there is none of that name or it holds nothing."""
    split = encoded.split(name)
    if split.samples == 0:
        raise UsageError(f"{encoded.path}: split {name!r} is empty; prepare a corpus that holds rows")
    return split


@dataclass(frozen=True)
class Window:
    """Samples [start, stop) of the endless order: the row groups (numbers in file order) of one shuffle window."""

    epoch: int
    row_groups: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Item:
    """Steps [first_step, stop_step) that are built together, with every window they reach into."""

    first_step: int
    stop_step: int
    windows: tuple[Window, ...]


def samples_of_row_groups(split: Split) -> np.ndarray:
    """Directed samples of each row group, int64."""
    return np.array([2 * group.pairs + group.singles for group in split.row_groups], np.int64)


def epoch_windows(plan: StreamPlan, epoch: int) -> list[Window]:
    """The windows of one epoch in order; they hold every sample of the split once."""
    counts = samples_of_row_groups(plan.counts)
    numbers = np.arange(len(counts), dtype=np.uint64)
    order = np.argsort(bits(key(plan.seed, Purpose.ROW_GROUP_ORDER, epoch), numbers), kind="stable")
    windows = []
    position = epoch * plan.counts.samples
    for at in range(0, len(order), plan.window_row_groups):
        members = order[at : at + plan.window_row_groups]
        stop = position + int(counts[members].sum())
        windows.append(Window(epoch, tuple(members.tolist()), position, stop))
        position = stop
    return windows


def windows_from(plan: StreamPlan, position: int) -> Iterator[Window]:
    """Windows of the endless order, from the one that holds sample `position` on."""
    epoch = position // plan.counts.samples
    while True:
        yield from (window for window in epoch_windows(plan, epoch) if window.stop > position)
        epoch += 1


def items(plan: StreamPlan, start_step: int, stop_step: int) -> Iterator[Item]:
    """The steps [start_step, stop_step) as items: those that start in one window, or in several small ones."""
    size = plan.global_batch_size
    upcoming = windows_from(plan, start_step * size)
    reached: list[Window] = []
    first = start_step
    while first < stop_step:
        reached = [window for window in reached if window.stop > first * size]
        while not reached or reached[-1].stop < first * size + _ITEM_SAMPLES:
            reached.append(next(upcoming))
        covered = next(window.stop for window in reached if window.stop >= first * size + _ITEM_SAMPLES)
        stop = min(stop_step, -(-covered // size))
        while reached[-1].stop < stop * size:
            reached.append(next(upcoming))
        yield Item(first, stop, tuple(window for window in reached if window.start < stop * size))
        first = stop
