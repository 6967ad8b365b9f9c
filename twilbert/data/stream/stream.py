"""The stream: a worker's micro-batches of any range of steps, the same whatever the number of workers and restarts.

    order (plan ─▶ items of shuffle windows) ─▶ build (rows ─▶ partition ─▶ masking) ─▶ micro_batch

`micro_batches` runs in this process; `ray_stream.ray_micro_batches` in Ray Data tasks ahead of the consumer, with the
same results. There is no state: to resume, ask for the steps that are left.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream import rows as rows_of
from twilbert.data.stream.build import build, pack
from twilbert.data.stream.masking import MaskingSettings, span_budget
from twilbert.data.stream.micro_batch import UNKNOWN, MicroBatch
from twilbert.data.stream.order import StreamPlan, items, nonempty_split
from twilbert.data.stream.partition import balanced, padded, partitioner, pieces_needed
from twilbert.errors import UsageError

EVALUATION_EPOCH = 2**32  # keys the masks of evaluation: no epoch of training
_SURVEYED_ROW_GROUPS = 8
_SURVEYED_STEPS = 4


def micro_batches(plan: StreamPlan, rank: int, start_step: int, stop_step: int) -> Iterator[MicroBatch]:
    """Yield worker `rank`'s micro-batches of steps [start_step, stop_step): `plan.accumulation` a step, in order.

    TwilbertError, naming the file, when a shard cannot be read.
    """
    for item in items(plan, rank, start_step, stop_step):
        for run in build(plan, rank, item):
            yield from run.micro_batches()


def accumulation_for(
    encoded: EncodedCorpus,
    split: str,
    global_batch_size: int,
    world_size: int,
    micro_batch_tokens: int,
    reader_groups: int = 1,
) -> int:
    """Return the least accumulation at which micro-batches have at most `micro_batch_tokens` padded tokens on average.

    Measured on steps made of the lengths of up to 8 row groups, evenly spaced over the split. UsageError when not even
    the longest sample fits.
    """
    lengths = survey_lengths(encoded, split)
    if lengths[-1] > micro_batch_tokens:
        raise UsageError(
            f"micro_batch_tokens {micro_batch_tokens}: the corpus holds a sample of {lengths[-1]} tokens; "
            f"raise it to at least that, or encode with a smaller max_len"
        )
    return least_accumulation(*typical_steps(lengths, global_batch_size, world_size, reader_groups), micro_batch_tokens)


def survey_lengths(encoded: EncodedCorpus, split: str) -> np.ndarray:
    """Return the tokens of the samples of up to 8 row groups, evenly spaced over the split; int64, ascending."""
    counts = nonempty_split(encoded, split)
    numbers = np.linspace(0, len(counts.row_groups) - 1, min(len(counts.row_groups), _SURVEYED_ROW_GROUPS))
    return np.sort(rows_of.read_lengths(encoded, counts, np.unique(numbers.round().astype(np.int64)).tolist()))


def typical_steps(
    lengths: np.ndarray, global_batch_size: int, world_size: int, reader_groups: int = 1
) -> tuple[int, np.ndarray]:
    """Return (workers that share a partition, lengths [steps, samples] to partition), from ascending `lengths`.

    Each step is evenly spaced quantiles with another phase: an average shuffled step.
    """
    samples, readers = (global_batch_size, world_size) if reader_groups == 1 else (global_batch_size // world_size, 1)
    phase = (np.arange(_SURVEYED_STEPS)[:, None] + 0.5) / _SURVEYED_STEPS
    quantile = (np.arange(samples) + phase) / samples
    return readers, lengths[(quantile * len(lengths)).astype(np.int64)]


def least_accumulation(readers: int, steps: np.ndarray, micro_batch_tokens: int) -> int:
    """Return the least accumulation at which the micro-batches of `steps` are within the limit on average."""
    partition = partitioner(readers)

    def fits(accumulation: int) -> bool:
        costs = [padded(step, partition(step, readers * accumulation)).mean() for step in steps]
        return float(np.mean(costs)) <= micro_batch_tokens

    accumulation = max(1, int(steps.sum() / len(steps) / (readers * micro_batch_tokens)))
    while not fits(accumulation):
        accumulation += 1
    return accumulation


def evaluation_batches(
    encoded: EncodedCorpus,
    split: str,
    rank: int,
    world_size: int,
    micro_batch_tokens: int,
    masking: MaskingSettings,
    seed: int,
    chunk_row_groups: int = 8,
) -> Iterator[MicroBatch]:
    """Yield worker `rank`'s share of one pass over `split`: both orders of each pair, each single tweet once.

    Samples are sorted by length inside chunks of `chunk_row_groups` row groups, which bounds memory, and partitioned
    into micro-batches of at most `micro_batch_tokens` padded tokens, or the longest sample's if it is longer; every
    worker gets equally many, possibly empty ones. Masks depend on (seed, sample) alone. `step` counts chunks;
    `n_masked`, `n_rop` and `n_samples` are those of the whole chunk.
    """
    counts = encoded.split(split)
    for chunk, at in enumerate(range(0, len(counts.row_groups), chunk_row_groups)):
        rows = rows_of.read_rows(encoded, counts, range(at, min(at + chunk_row_groups, len(counts.row_groups))))
        row, direction = rows.samples()
        order = np.argsort(rows.lengths[row], kind="stable")  # samples come in order of their ids
        row, direction = row[order], direction[order]
        length = rows.lengths[row]
        accumulation = -(-pieces_needed(length, micro_batch_tokens) // world_size)
        edges = balanced(length, world_size * accumulation)
        of_chunk = {
            "step": chunk,
            "epoch": EVALUATION_EPOCH,
            "n_masked": span_budget(rows.maskable, masking.budget)[row].sum() if masking.kind == "span" else UNKNOWN,
            "n_rop": (rows.reply_len > 0)[row].sum(),
            "n_samples": len(row),
        }
        for number in range(accumulation):
            own = slice(*edges[number * world_size + rank :][:2].tolist())
            packed = pack(
                rows,
                row[own],
                direction[own],
                np.full(own.stop - own.start, EVALUATION_EPOCH),
                sizes=np.array([own.stop - own.start]),
                counts={name: np.array([value]) for name, value in (of_chunk | {"accumulation": number}).items()},
                seed=seed,
                masking=masking,
                template=encoded.template,
            )
            yield from packed.micro_batches()
