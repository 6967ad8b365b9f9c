"""The plan of the stream: which samples a step sees, computed from row-group counts alone.

    row groups of the split ─ seeded permutation an epoch ─▶ windows ─ shuffled inside ─▶ epoch ─▶ epochs end to end
    step s = samples [s·G, (s + 1)·G) of that endless order, so that an epoch's remainder opens the next epoch

A window is `window_row_groups` row groups from all over the split; it holds both orders of its pairs and its single
tweets once. Nothing here depends on the number of workers, except which reader groups a worker reads.

With R > 1 reader groups the permuted row groups of an epoch, end to end, are split into R shares of samples:

    group r in epoch e: positions [⌊(e·N + r)/R⌋, ⌊((e + 1)·N + r)/R⌋) of its own endless order, of N samples an epoch
    step s = samples [s·G/R, (s + 1)·G/R) of every group

Shares differ by at most one sample, so all groups end an epoch in the same step or neighbouring ones, and together
they hold every sample once an epoch. A share that ends inside a row group leaves the rest of it to the next group.
Windows are divided among the groups, so that samples are shuffled over as many steps as without groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from twilbert.data.encoded.format import EncodedCorpus, Split
from twilbert.data.stream.masking import MaskingSettings
from twilbert.data.stream.randomness import Purpose, bits, key
from twilbert.errors import UsageError

_ITEM_SAMPLES = 2**16  # least samples of an item, in whole windows: fewer are not worth a task


@dataclass(frozen=True)
class StreamPlan:
    """Everything that a stream is a pure function of; picklable. Steps, epochs and positions count from 0."""

    encoded: EncodedCorpus
    seed: int
    global_batch_size: int  # samples a step, over all workers
    world_size: int
    accumulation: int  # micro-batches a step and worker
    masking: MaskingSettings = field(default_factory=MaskingSettings)
    split: str = "train"
    window_row_groups: int = 8  # over all reader groups
    reader_groups: int = 1

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "world_size", "accumulation", "window_row_groups", "reader_groups"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: expected at least 1")
        groups = self.reader_groups
        if self.global_batch_size % groups:
            raise UsageError(f"global_batch_size {self.global_batch_size}: does not divide by {groups} reader groups")
        if groups > 1 and groups % self.world_size:
            raise UsageError(f"{self.world_size} workers do not divide {groups} reader groups")
        nonempty_split(self.encoded, self.split)

    @property
    def counts(self) -> Split:
        """The counts of the split that is streamed."""
        return self.encoded.split(self.split)

    @property
    def readers(self) -> int:
        """Workers that read the same reader groups and divide each step's micro-batches among them."""
        return self.world_size if self.reader_groups == 1 else 1

    def groups_of(self, rank: int) -> range:
        """Return the reader groups of worker `rank`: the only one, or every world_size-th."""
        return range(1) if self.reader_groups == 1 else range(rank, self.reader_groups, self.world_size)

    def epoch_of_step(self, step: int) -> int:
        """Return the epoch of the first sample of `step`, of the reader group that is furthest back."""
        return step * self.global_batch_size // self.counts.samples


def nonempty_split(encoded: EncodedCorpus, name: str) -> Split:
    """Return the counts of a split; UsageError when there is none of that name or it is empty."""
    split = encoded.split(name)
    if split.samples == 0:
        raise UsageError(f"{encoded.path}: split {name!r} is empty; prepare a corpus that holds rows")
    return split


@dataclass(frozen=True)
class Window:
    """Samples [start, stop) of a reader group's endless order: the row groups of one shuffle window, in file order.

    The first `skip` samples of its row groups, and those beyond `stop`, belong to other reader groups.
    """

    epoch: int
    row_groups: tuple[int, ...]
    start: int
    stop: int
    skip: int = 0


@dataclass(frozen=True)
class Item:
    """Steps [first_step, stop_step) that are built together, and for each reader group all windows they reach into."""

    first_step: int
    stop_step: int
    windows: tuple[tuple[Window, ...], ...]


def samples_of_row_groups(split: Split) -> np.ndarray:
    """Return the directed samples of each row group, int64."""
    return np.array([2 * group.pairs + group.singles for group in split.row_groups], np.int64)


def epoch_windows(plan: StreamPlan, epoch: int, group: int = 0) -> list[Window]:
    """Return the windows of a reader group's share of an epoch; all groups' hold every sample of the split once."""
    counts = samples_of_row_groups(plan.counts)
    numbers = np.arange(len(counts), dtype=np.uint64)
    order = np.argsort(bits(key(plan.seed, Purpose.ROW_GROUP_ORDER, epoch), numbers), kind="stable")
    edges = np.concatenate([[0], np.cumsum(counts[order])])  # where in the epoch each row group begins
    origin = _share_start(plan, epoch, group)
    begin = sum(_share_start(plan, epoch + 1, n) - _share_start(plan, epoch, n) for n in range(group))
    end = begin + _share_start(plan, epoch + 1, group) - origin
    if begin == end:
        return []
    first, past = int(np.searchsorted(edges, begin, "right")) - 1, int(np.searchsorted(edges, end, "left"))
    width = -(-plan.window_row_groups // plan.reader_groups)
    windows = []
    for at in range(first, past, width):
        upto = min(at + width, past)
        start, stop = max(int(edges[at]), begin), min(int(edges[upto]), end)
        members = tuple(order[at:upto].tolist())
        windows.append(Window(epoch, members, origin + start - begin, origin + stop - begin, start - int(edges[at])))
    return windows


def windows_from(plan: StreamPlan, position: int, group: int = 0) -> Iterator[Window]:
    """Yield the windows of a reader group's endless order, from the one that holds its sample `position`."""
    epoch = ((position + 1) * plan.reader_groups - 1 - group) // plan.counts.samples  # the last that starts by then
    while True:
        yield from (window for window in epoch_windows(plan, epoch, group) if window.stop > position)
        epoch += 1


def items(plan: StreamPlan, rank: int, start_step: int, stop_step: int) -> Iterator[Item]:
    """Yield worker `rank`'s items of [start_step, stop_step): the steps that start in one window or several small ones.

    Where a worker reads several groups, the first one's windows decide.
    """
    size = plan.global_batch_size // plan.reader_groups
    groups = plan.groups_of(rank)
    least = -(-_ITEM_SAMPLES // len(groups))
    sources = [_WindowSource(windows_from(plan, start_step * size, group)) for group in groups]
    first = start_step
    while first < stop_step:
        covered = sources[0].window_end(min(first * size + least, stop_step * size))
        stop = min(stop_step, -(-covered // size))
        yield Item(first, stop, tuple(source.take(first * size, stop * size) for source in sources))
        first = stop


class _WindowSource:
    """The windows of a reader group between the current item and the furthest position requested so far."""

    def __init__(self, upcoming: Iterator[Window]) -> None:
        self._upcoming = upcoming
        self._windows = [next(upcoming)]

    def window_end(self, position: int) -> int:
        """Return the end of the first window that ends at `position` or beyond."""
        while self._windows[-1].stop < position:
            self._windows.append(next(self._upcoming))
        return next(window.stop for window in self._windows if window.stop >= position)

    def take(self, start: int, stop: int) -> tuple[Window, ...]:
        """Return the windows of positions [start, stop) and drop those before."""
        self.window_end(stop)
        self._windows = [window for window in self._windows if window.stop > start]
        return tuple(window for window in self._windows if window.start < stop)


def _share_start(plan: StreamPlan, epoch: int, group: int) -> int:
    """Where in a group's endless order its share of `epoch` begins; over the groups they sum to e·N (Hermite)."""
    return (epoch * plan.counts.samples + group) // plan.reader_groups
