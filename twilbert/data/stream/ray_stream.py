"""The stream in Ray Data tasks: micro-batches are built ahead of the consumer, in other processes, in order.

    items ─ ray.data.range ─▶ task: build(item) yields Arrow blocks of whole runs of steps ─▶ consumer: views, no copy

A task yields its blocks one by one, so that the first steps arrive before the window is built. The bytes built and not
yet consumed are capped; a task waits at the cap. Ray is imported only when a stream starts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Any, cast

import pyarrow as pa

from twilbert.cluster.ray_errors import user_errors
from twilbert.data.stream.build import build
from twilbert.data.stream.micro_batch import MicroBatch, Packed
from twilbert.data.stream.order import Item, StreamPlan, items

READ_AHEAD_BYTES = 128 * 2**20  # built and not yet consumed, a worker
_BLOCK_BYTES = 2 * 2**20  # a block leaves its task at this size
_ITEMS_AN_EXECUTION = 256  # items of one Ray Data execution: the next is started when it is used up
_PAUSE_S = 0.1  # between two rounds of the executor over its tasks, which cost 1 ms of the consumer's CPU each


class RestingExecutor:
    """An ExecutionCallback that makes Ray Data's executor thread sleep between two rounds over its tasks.

    A back-pressured executor polls without pause and, in a training worker, competes with the step for the GIL.
    """

    def before_execution_starts(self, executor: Any) -> None:
        """Do nothing."""

    def on_execution_step(self, executor: Any) -> None:
        """Sleep."""
        time.sleep(_PAUSE_S)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Do nothing."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Do nothing."""


def ray_micro_batches(
    plan: StreamPlan,
    rank: int,
    start_step: int,
    stop_step: int,
    *,
    read_ahead_bytes: int = READ_AHEAD_BYTES,
    parallel_tasks: int = 1,
) -> Generator[MicroBatch]:
    """Yield the micro-batches of `stream.micro_batches`, built in Ray Data tasks ahead of the consumer.

    Needs a running Ray; its tasks take no logical CPU. Arrays are read-only views of shared memory. `close()` stops the
    tasks: call it on a stream that is not exhausted before Ray shuts down, or the exit hangs.
    TwilbertError, naming the file, when a shard cannot be read.
    """
    remaining = items(plan, rank, start_step, stop_step)
    while some := list(islice(remaining, _ITEMS_AN_EXECUTION)):
        blocks = _blocks(plan, rank, some, read_ahead_bytes, parallel_tasks)
        try:
            with user_errors():
                for table in blocks:
                    yield from Packed.from_table(table).micro_batches()
        finally:
            blocks.close()


def _blocks(
    plan: StreamPlan, rank: int, some: list[Item], read_ahead_bytes: int, parallel_tasks: int
) -> Generator[pa.Table]:
    """Arrow blocks of the items' micro-batches in order, from one Ray Data execution."""
    import ray
    from ray.data import DataContext, ExecutionResources, TaskPoolStrategy

    def work(numbers: pa.Table) -> Iterator[pa.Table]:
        for number in numbers.column("item").to_pylist():
            for run in build(plan, rank, some[number]):
                yield run.to_table()

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it reports each execution's beginning, progress and end
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=read_ahead_bytes)
    context.target_max_block_size = _BLOCK_BYTES
    callbacks: list[Any] = [RestingExecutor]  # by its methods: the class they are declared in is not public
    context.custom_execution_callback_classes = callbacks
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # its type decides whether a restart may help
    with DataContext.current(context):  # copied into the dataset when it is created; other datasets keep theirs
        dataset = ray.data.from_items(list(range(len(some))), override_num_blocks=len(some)).map_batches(
            work,
            num_cpus=0,  # logical: else workers that take every CPU of a cluster wait for ever
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=TaskPoolStrategy(size=parallel_tasks),
        )
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        tables = cast(Generator[pa.Table], iter(batches))  # its close ends the execution
    try:
        yield from tables
    finally:
        tables.close()
