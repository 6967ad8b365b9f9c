"""The plan of the stream: which samples a step sees, computed from row-group counts alone.

    row groups of the split ─ seeded permutation an epoch ─▶ windows ─ shuffled inside ─▶ epoch ─▶ epochs end to end
    step s = samples [s·G, (s + 1)·G) of that endless order, so that an epoch's remainder opens the next epoch

A window is `window_row_groups` row groups from all over the split; it holds both orders of its pairs and its single
tweets once. Nothing here depends on how many workers there are, but for who reads which lane.

With L > 1 lanes the permuted row groups of an epoch, laid end to end, are cut into L shares of samples, one a lane:

    lane l in epoch e: positions [⌊(e·N + l)/L⌋, ⌊((e + 1)·N + l)/L⌋) of its own endless order, of N samples an epoch
    step s = samples [s·G/L, (s + 1)·G/L) of every lane

Shares differ by one sample at most, and so do lanes in how far they are: all end an epoch in the same step or
neighbouring ones, each lane's remainder opens its next epoch, and the lanes together hold every sample once an epoch.
A share that ends inside a row group leaves the rest of it to the next lane. Windows are divided among the lanes, so
that samples are shuffled over as many steps as without lanes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from twilbert.data.encoded.format import EncodedCorpus, Split
from twilbert.data.stream.masking import MaskingSettings
from twilbert.data.stream.randomness import Purpose, bits, key
from twilbert.errors import UsageError

_ITEM_SAMPLES = 2**16  # an item covers whole windows of at least so many samples: less is not worth a task


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
    window_row_groups: int = 8  # over all lanes
    lanes: int = 1

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "world_size", "accumulation", "window_row_groups", "lanes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: expected at least 1")
        if self.global_batch_size % self.lanes:
            raise UsageError(f"global_batch_size {self.global_batch_size}: does not divide by {self.lanes} lanes")
        if self.lanes > 1 and self.lanes % self.world_size:
            raise UsageError(f"{self.world_size} workers do not divide {self.lanes} lanes")
        nonempty_split(self.encoded, self.split)

    @property
    def counts(self) -> Split:
        """The counts of the split that is streamed."""
        return self.encoded.split(self.split)

    @property
    def sharers(self) -> int:
        """Workers that read the same lanes, cut the same samples and take every sharers-th piece each."""
        return self.world_size if self.lanes == 1 else 1

    def lanes_of(self, rank: int) -> range:
        """The lanes that worker `rank` reads: all there is of one, else every world_size-th."""
        return range(1) if self.lanes == 1 else range(rank, self.lanes, self.world_size)

    def epoch_of_step(self, step: int) -> int:
        """The epoch of the first sample of `step`: of the lane that is furthest back, where there are several."""
        return step * self.global_batch_size // self.counts.samples


def nonempty_split(encoded: EncodedCorpus, name: str) -> Split:
    """The counts of a split; UsageError when there is none of that name or it holds nothing."""
    split = encoded.split(name)
    if split.samples == 0:
        raise UsageError(f"{encoded.path}: split {name!r} is empty; prepare a corpus that holds rows")
    return split


@dataclass(frozen=True)
class Window:
    """Samples [start, stop) of a lane's endless order: the row groups (numbers in file order) of one shuffle window.

    The first `skip` samples of its row groups, one after another, and those beyond its own are other lanes'.
    """

    epoch: int
    row_groups: tuple[int, ...]
    start: int
    stop: int
    skip: int = 0


@dataclass(frozen=True)
class Item:
    """Steps [first_step, stop_step) that are built together: for each lane read, every window they reach into."""

    first_step: int
    stop_step: int
    lanes: tuple[tuple[Window, ...], ...]


def samples_of_row_groups(split: Split) -> np.ndarray:
    """Directed samples of each row group, int64."""
    return np.array([2 * group.pairs + group.singles for group in split.row_groups], np.int64)


def epoch_windows(plan: StreamPlan, epoch: int, lane: int = 0) -> list[Window]:
    """The windows of one lane's share of an epoch in order; those of all lanes hold every sample of the split once."""
    counts = samples_of_row_groups(plan.counts)
    numbers = np.arange(len(counts), dtype=np.uint64)
    order = np.argsort(bits(key(plan.seed, Purpose.ROW_GROUP_ORDER, epoch), numbers), kind="stable")
    edges = np.concatenate([[0], np.cumsum(counts[order])])  # where in the epoch each row group begins
    origin = _share_start(plan, epoch, lane)
    begin = sum(_share_start(plan, epoch + 1, n) - _share_start(plan, epoch, n) for n in range(lane))
    end = begin + _share_start(plan, epoch + 1, lane) - origin
    first, past = int(np.searchsorted(edges, begin, "right")) - 1, int(np.searchsorted(edges, end, "left"))
    width = -(-plan.window_row_groups // plan.lanes)
    windows = []
    for at in range(first, past, width) if begin < end else ():
        upto = min(at + width, past)
        start, stop = max(int(edges[at]), begin), min(int(edges[upto]), end)
        members = tuple(order[at:upto].tolist())
        windows.append(Window(epoch, members, origin + start - begin, origin + stop - begin, start - int(edges[at])))
    return windows


def windows_from(plan: StreamPlan, position: int, lane: int = 0) -> Iterator[Window]:
    """Windows of a lane's endless order, from the one that holds its sample `position` on."""
    epoch = ((position + 1) * plan.lanes - 1 - lane) // plan.counts.samples  # the last whose share starts by then
    while True:
        yield from (window for window in epoch_windows(plan, epoch, lane) if window.stop > position)
        epoch += 1


def items(plan: StreamPlan, rank: int, start_step: int, stop_step: int) -> Iterator[Item]:
    """Worker `rank`'s items of [start_step, stop_step): the steps that start in one window, or in several small ones.

    Where a worker reads several lanes, the first one's windows decide.
    """
    size = plan.global_batch_size // plan.lanes
    lanes = plan.lanes_of(rank)
    least = -(-_ITEM_SAMPLES // len(lanes))
    reaches = [_Reach(windows_from(plan, start_step * size, lane)) for lane in lanes]
    first = start_step
    while first < stop_step:
        covered = reaches[0].window_end(min(first * size + least, stop_step * size))
        stop = min(stop_step, -(-covered // size))
        yield Item(first, stop, tuple(reach.take(first * size, stop * size) for reach in reaches))
        first = stop


class _Reach:
    """The windows of a lane that have been reached and are not passed yet."""

    def __init__(self, upcoming: Iterator[Window]) -> None:
        self._upcoming = upcoming
        self._windows = [next(upcoming)]

    def window_end(self, position: int) -> int:
        """Where the first window ends that ends at `position` or beyond."""
        while self._windows[-1].stop < position:
            self._windows.append(next(self._upcoming))
        return next(window.stop for window in self._windows if window.stop >= position)

    def take(self, start: int, stop: int) -> tuple[Window, ...]:
        """The windows of positions [start, stop); those before them are let go."""
        self.window_end(stop)
        self._windows = [window for window in self._windows if window.stop > start]
        return tuple(window for window in self._windows if window.start < stop)


def _share_start(plan: StreamPlan, epoch: int, lane: int) -> int:
    """The position in a lane's endless order at which its share of `epoch` begins.

    Over the lanes the shares of e epochs sum to e·N, by Hermite's identity for the floor.
    """
    return (epoch * plan.counts.samples + lane) // plan.lanes
