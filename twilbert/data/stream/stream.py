"""The stream: a worker's micro-batches of any range of steps, the same whatever the number of workers and restarts.

    plan ─▶ items (shuffle windows) ─▶ build (read, shuffle, sort, cut, mask) ─▶ MicroBatch

`micro_batches` does it in this process; `ray_stream.ray_micro_batches` in Ray Data tasks ahead of the consumer, with
the same results. There is no state: to resume, ask for the steps that are left. What each module holds: plan.py which
samples a step sees, cut.py how they become micro-batches, build.py the work itself, objectives.py masks and sequences,
microbatch.py what comes out.
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
from twilbert.data.stream.partition import cut, cut_for, padded, pieces_needed
from twilbert.errors import UsageError

EVALUATION_EPOCH = 2**32  # keys the masks of evaluation: no epoch of training
_SURVEYED_ROW_GROUPS = 8
_SURVEYED_STEPS = 4


def micro_batches(plan: StreamPlan, rank: int, start_step: int, stop_step: int) -> Iterator[MicroBatch]:
    """Worker `rank`'s micro-batches of steps [start_step, stop_step): `plan.accumulation` a step, in order.

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
    lanes: int = 1,
) -> int:
    """The least accumulation at which micro-batches have at most `micro_batch_tokens` padded tokens in the mean.

    Judged on steps made of the lengths of up to 8 row groups, evenly spaced over the split; a step's own mean varies
    around it by sampling. With several lanes a worker cuts its own lanes' samples. UsageError when not even the longest
    sample fits.
    """
    lengths = survey_lengths(encoded, split)
    if lengths[-1] > micro_batch_tokens:
        raise UsageError(
            f"micro_batch_tokens {micro_batch_tokens}: the corpus holds a sample of {lengths[-1]} tokens; "
            f"raise it to at least that, or encode with a smaller max_len"
        )
    return least_accumulation(*typical_steps(lengths, global_batch_size, world_size, lanes), micro_batch_tokens)


def survey_lengths(encoded: EncodedCorpus, split: str) -> np.ndarray:
    """The lengths of the samples of up to 8 row groups, evenly spaced over the split: int64 tokens, ascending."""
    counts = nonempty_split(encoded, split)
    numbers = np.linspace(0, len(counts.row_groups) - 1, min(len(counts.row_groups), _SURVEYED_ROW_GROUPS))
    return np.sort(rows_of.read_lengths(encoded, counts, np.unique(numbers.round().astype(np.int64)).tolist()))


def typical_steps(
    lengths: np.ndarray, global_batch_size: int, world_size: int, lanes: int = 1
) -> tuple[int, np.ndarray]:
    """(workers that share one cut, lengths [steps, samples] of what each cut gets), from ascending `lengths`.

    Steps of evenly spaced quantiles, each with another phase: what a shuffled step looks like, without its luck.
    """
    n_cut, sharers = (global_batch_size, world_size) if lanes == 1 else (global_batch_size // world_size, 1)
    phase = (np.arange(_SURVEYED_STEPS)[:, None] + 0.5) / _SURVEYED_STEPS
    quantile = (np.arange(n_cut) + phase) / n_cut
    return sharers, lengths[(quantile * len(lengths)).astype(np.int64)]


def least_accumulation(sharers: int, steps: np.ndarray, micro_batch_tokens: int) -> int:
    """The least accumulation at which the micro-batches of `steps` are within the limit in the mean."""

    def fits(accumulation: int) -> bool:
        costs = [padded(step, cut_for(sharers)(step, sharers * accumulation)).mean() for step in steps]
        return float(np.mean(costs)) <= micro_batch_tokens

    accumulation = max(1, int(steps.sum() / len(steps) / (sharers * micro_batch_tokens)))
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
    """Worker `rank`'s share of one pass over `split`: both orders of each pair, each single tweet once.

    Samples are sorted by length inside chunks of `chunk_row_groups` row groups, which bounds memory, and cut into
    micro-batches of at most `micro_batch_tokens` padded tokens, or the longest sample's if it is longer; every worker
    gets equally many, some of them maybe empty. Masks depend on (seed, sample) alone. `step` counts chunks; `n_masked`,
    `n_rop` and `n_samples` are those of the whole chunk.
    """
    counts = encoded.split(split)
    for chunk, at in enumerate(range(0, len(counts.row_groups), chunk_row_groups)):
        rows = rows_of.read_rows(encoded, counts, range(at, min(at + chunk_row_groups, len(counts.row_groups))))
        row, direction = rows.samples()
        order = np.argsort(rows.lengths[row], kind="stable")  # samples come in order of their ids
        row, direction = row[order], direction[order]
        length = rows.lengths[row]
        accumulation = -(-pieces_needed(length, micro_batch_tokens) // world_size)
        edges = cut(length, world_size * accumulation)
        n_masked = UNKNOWN
        if masking.kind == "span":
            n_masked = int(span_budget(rows.maskable, masking.budget)[row].sum())
        n_rop = int((rows.reply_len > 0)[row].sum())
        for number in range(accumulation):
            piece = number * world_size + rank
            own = slice(int(edges[piece]), int(edges[piece + 1]))
            alone = {"step": chunk, "epoch": EVALUATION_EPOCH, "accumulation": number}
            alone |= {"n_masked": n_masked, "n_rop": n_rop, "n_samples": len(row)}
            packed = pack(
                rows,
                row[own],
                direction[own],
                np.full(own.stop - own.start, EVALUATION_EPOCH),
                sizes=np.array([own.stop - own.start]),
                counts={name: np.array([value]) for name, value in alone.items()},
                seed=seed,
                masking=masking,
                vocab_size=encoded.vocab_size,
            )
            yield from packed.micro_batches()
