"""From an item of the plan to one worker's micro-batches: read, shuffle, sort, cut, lay out, mask.

    windows ─ read ─▶ rows ─ shuffle ─▶ samples [S steps, G] ─ sort by length, cut ─▶ pieces ─ own ─▶ micro-batches

All workers order and cut all samples, from counts alone, and come to the same pieces; only a worker's own are laid out
and masked. With several lanes a worker orders and cuts its own lanes' samples together, and all pieces are its own.
Whole runs of steps are built at once: the cost of a numpy call is paid a run, not a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from twilbert.data.stream import rows as rows_of
from twilbert.data.stream.masking import (
    ROP_NONE,
    ROP_REPLY_FIRST,
    ROP_REPLY_SECOND,
    MaskingSettings,
    Samples,
    lay_out,
    mask_samples,
    ranges,
    span_budget,
)
from twilbert.data.stream.micro_batch import UNKNOWN, VALUES, Packed
from twilbert.data.stream.order import Item, StreamPlan, Window
from twilbert.data.stream.partition import cut_for
from twilbert.data.stream.randomness import Purpose, bits, key
from twilbert.data.stream.rows import Rows

_RUN_TOKENS = 2**18  # tokens laid out and masked at once: large for numpy, small enough to stay in cache


@dataclass(frozen=True, eq=False)
class Steps:
    """The samples of S consecutive steps that a worker reads, G or its lanes' share of them, int64 [S, G].

    Each step is sorted by length, then sample id, then epoch.
    """

    rows: Rows
    row: np.ndarray  # index into `rows`
    direction: np.ndarray
    epoch: np.ndarray
    length: np.ndarray  # tokens, special ones counted


def build(plan: StreamPlan, rank: int, item: Item) -> Iterator[Packed]:
    """Worker `rank`'s micro-batches of the item's steps in order, in runs of whole steps."""
    steps = read_steps(plan, item)
    n_masked, n_rop = step_masked(steps, plan.masking), (steps.rows.reply_len > 0)[steps.row].sum(axis=1)
    if len(item.lanes) < plan.lanes:
        n_masked = n_rop = np.full(len(steps.row), UNKNOWN)
    tokens_a_step = int(steps.length.sum()) // (len(steps.row) * plan.sharers) + 1
    run = max(1, _RUN_TOKENS // tokens_a_step)
    for at in range(0, len(steps.row), run):
        part = slice(at, at + run)
        yield _build_run(plan, rank, item.first_step + at, steps, part, n_masked[part], n_rop[part])


def read_steps(plan: StreamPlan, item: Item) -> Steps:
    """Read the item's windows and deal their shuffled samples to its steps."""
    size = plan.global_batch_size // plan.lanes
    parts, lanes = [], []
    first_row = 0
    for windows in item.lanes:
        row, direction, epoch = [], [], []
        for window in windows:
            rows = rows_of.read_rows(plan.encoded, plan.counts, window.row_groups)
            window_row, window_direction = shuffled(plan.seed, window, rows)
            begin = max(item.first_step * size, window.start) - window.start
            end = min(item.stop_step * size, window.stop) - window.start
            row.append(first_row + window_row[begin:end])
            direction.append(window_direction[begin:end])
            epoch.append(np.full(end - begin, window.epoch))
            parts.append(rows)
            first_row += len(rows.number)
        lanes.append([np.concatenate(x).reshape(-1, size) for x in (row, direction, epoch)])
    rows = rows_of.concatenate(parts)
    row_SG, direction_SG, epoch_SG = (np.concatenate(x, axis=1) for x in zip(*lanes, strict=True))
    length_SG = rows.lengths[row_SG]
    order_SG = np.lexsort((epoch_SG, 2 * rows.number[row_SG] + direction_SG, length_SG), axis=1)
    sorted_ = (np.take_along_axis(x, order_SG, axis=1) for x in (row_SG, direction_SG, epoch_SG, length_SG))
    return Steps(rows, *sorted_)


def shuffled(seed: int, window: Window, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The window's samples in the order of the stream: row (index into `rows`) and direction."""
    own = slice(window.skip, window.skip + window.stop - window.start)
    row, direction = (x[own] for x in rows.samples())
    sample_ids = 2 * rows.number[row] + direction
    order = np.argsort(bits(key(seed, Purpose.SAMPLE_ORDER, window.epoch, sample_ids), 0), kind="stable")
    return row[order], direction[order]


def step_masked(steps: Steps, masking: MaskingSettings) -> np.ndarray:
    """Masked tokens of each step over all workers, int64 [S]: from counts under span masking, else UNKNOWN."""
    if masking.kind != "span":
        return np.full(len(steps.row), UNKNOWN)
    return span_budget(steps.rows.maskable, masking.budget)[steps.row].sum(axis=1)


def cut_steps(plan: StreamPlan, length_SG: np.ndarray) -> np.ndarray:
    """The edges of all pieces of each step among its sorted samples, int64 [S, pieces + 1]."""
    cut = cut_for(plan.sharers)
    return np.stack([cut(length, plan.sharers * plan.accumulation) for length in length_SG])


def _build_run(
    plan: StreamPlan, rank: int, first_step: int, steps: Steps, part: slice, n_masked: np.ndarray, n_rop: np.ndarray
) -> Packed:
    length_SG = steps.length[part]
    n_steps, size = length_SG.shape
    edges, turn = cut_steps(plan, length_SG), rank % plan.sharers
    step_at = np.arange(n_steps)[:, None] * size
    begin = (edges[:, turn : -1 : plan.sharers] + step_at).ravel()  # [S · accumulation]
    end = (edges[:, turn + 1 :: plan.sharers] + step_at).ravel()
    own = ranges(begin, end - begin)
    step = first_step + np.arange(n_steps)
    each = np.repeat(np.arange(n_steps), plan.accumulation)
    return pack(
        steps.rows,
        steps.row[part].ravel()[own],
        steps.direction[part].ravel()[own],
        steps.epoch[part].ravel()[own],
        sizes=end - begin,
        counts={
            "step": step[each],
            "epoch": (step * plan.global_batch_size // plan.counts.samples)[each],
            "accumulation": np.tile(np.arange(plan.accumulation), n_steps),
            "n_masked": n_masked[each],
            "n_rop": n_rop[each],
            "n_samples": np.full(len(each), plan.global_batch_size),
        },
        seed=plan.seed,
        masking=plan.masking,
        vocab_size=plan.encoded.vocab_size,
    )


def pack(
    rows: Rows,
    row: np.ndarray,
    direction: np.ndarray,
    epoch: np.ndarray,
    *,
    sizes: np.ndarray,
    counts: dict[str, np.ndarray],
    seed: int,
    masking: MaskingSettings,
    vocab_size: int,
) -> Packed:
    """Lay out and mask samples (int64 [n] each) as consecutive micro-batches of `sizes` samples, the longest last."""
    length = rows.lengths[row]
    last = np.cumsum(sizes)
    width = np.ones(len(sizes), np.int64)  # a micro-batch of no samples is [0, 1]
    width[sizes > 0] = length[last[sizes > 0] - 1]
    token_edges = np.concatenate([[0], np.cumsum(sizes * width)])
    sample_edges = np.concatenate([[0], last])
    in_batch = np.arange(len(row)) - np.repeat(sample_edges[:-1], sizes)
    starts = np.repeat(token_edges[:-1], sizes) + in_batch * np.repeat(width, sizes)

    reply_first = direction == 1
    orig_at, orig_len, reply_at, reply_len = (
        x[row] for x in (rows.orig_at, rows.orig_len, rows.reply_at, rows.reply_len)
    )
    ids, segments = lay_out(
        rows.pool,
        np.where(reply_first, reply_at, orig_at),
        np.where(reply_first, reply_len, orig_len),
        np.where(reply_first, orig_at, reply_at),
        np.where(reply_first, orig_len, reply_len),
        starts,
        int(token_edges[-1]),
    )
    sample_ids = 2 * rows.number[row] + direction
    masked = mask_samples(ids, Samples(starts, length, epoch, sample_ids), seed, masking, vocab_size)
    masked_edges = np.searchsorted(masked.index, token_edges)
    rop = np.where(reply_len > 0, np.where(reply_first, ROP_REPLY_FIRST, ROP_REPLY_SECOND), ROP_NONE)
    values = {
        "input_ids": (masked.ids, token_edges),
        "segment_ids": (segments, token_edges),
        "lengths": (length, sample_edges),
        "masked_index": (masked.index - np.repeat(token_edges[:-1], np.diff(masked_edges)), masked_edges),
        "masked_labels": (masked.labels, masked_edges),
        "rop_labels": (rop, sample_edges),
        "sample_ids": (sample_ids, sample_edges),
    }
    typed = {name: (flat.astype(VALUES[name], copy=False), edges) for name, (flat, edges) in values.items()}
    return Packed({**counts, "width": width}, typed)
