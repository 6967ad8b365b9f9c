"""Build a worker's micro-batches of one item of the plan: read, shuffle, sort, partition, lay out, mask.

    windows ─ read ─▶ rows ─ shuffle ─▶ samples [S steps, G] ─ sort by length, partition ─▶ micro-batches ─ mask ─▶

Workers that share a reader group all order and partition its samples, from counts alone and so alike; each lays out
and masks its own micro-batches only. Whole runs of steps are built at once: a numpy call costs once a run, not a step.
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
from twilbert.data.stream.partition import partitioner
from twilbert.data.stream.randomness import Purpose, bits, key
from twilbert.data.stream.rows import Rows
from twilbert.data.tokenizer.template import Template

_RUN_TOKENS = 2**18  # tokens laid out and masked at once: large for numpy, small enough to stay in cache


@dataclass(frozen=True, eq=False)
class Steps:
    """The samples of S steps that a worker reads, int64 [S, G]; each step sorted by length, then sample id and epoch.

    G is the global batch size, or the worker's reader groups' share of it.
    """

    rows: Rows
    row: np.ndarray  # index into `rows`
    direction: np.ndarray
    epoch: np.ndarray
    length: np.ndarray  # tokens, special ones included


def build(plan: StreamPlan, rank: int, item: Item) -> Iterator[Packed]:
    """Yield worker `rank`'s micro-batches of the item's steps in order, in runs of whole steps."""
    steps = read_steps(plan, item)
    n_steps = len(steps.row)
    n_masked = n_rop = np.full(n_steps, UNKNOWN)
    if len(item.windows) == plan.reader_groups:
        n_rop = (steps.rows.reply_len > 0)[steps.row].sum(axis=1)
        if plan.masking.kind == "span":
            n_masked = span_budget(steps.rows.maskable, plan.masking.budget)[steps.row].sum(axis=1)
    tokens_a_step = int(steps.length.sum()) // (n_steps * plan.readers) + 1
    run = max(1, _RUN_TOKENS // tokens_a_step)
    for at in range(0, n_steps, run):
        part = slice(at, at + run)
        yield _build_run(plan, rank, item.first_step + at, steps, part, n_masked[part], n_rop[part])


def read_steps(plan: StreamPlan, item: Item) -> Steps:
    """Read the item's windows and deal their shuffled samples to its steps."""
    size = plan.global_batch_size // plan.reader_groups
    parts, groups = [], []
    first_row = 0
    for windows in item.windows:
        row, direction, epoch = [], [], []
        for window in windows:
            rows = rows_of.read_rows(plan.encoded, plan.counts, window.row_groups)
            window_row, window_direction = _shuffled(plan.seed, window, rows)
            begin = max(item.first_step * size, window.start) - window.start
            end = min(item.stop_step * size, window.stop) - window.start
            row.append(first_row + window_row[begin:end])
            direction.append(window_direction[begin:end])
            epoch.append(np.full(end - begin, window.epoch))
            parts.append(rows)
            first_row += len(rows.number)
        groups.append([np.concatenate(x).reshape(-1, size) for x in (row, direction, epoch)])
    rows = rows_of.concatenate(parts)
    row_SG, direction_SG, epoch_SG = (np.concatenate(x, axis=1) for x in zip(*groups, strict=True))
    length_SG = rows.lengths[row_SG]
    order_SG = np.lexsort((epoch_SG, 2 * rows.number[row_SG] + direction_SG, length_SG), axis=1)
    return Steps(rows, *(np.take_along_axis(x, order_SG, axis=1) for x in (row_SG, direction_SG, epoch_SG, length_SG)))


def _shuffled(seed: int, window: Window, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Row (index into `rows`) and direction of the window's samples in the order of the stream."""
    own = slice(window.skip, window.skip + window.stop - window.start)
    row, direction = (x[own] for x in rows.samples())
    sample_ids = 2 * rows.number[row] + direction
    order = np.argsort(bits(key(seed, Purpose.SAMPLE_ORDER, window.epoch, sample_ids), 0), kind="stable")
    return row[order], direction[order]


def _build_run(
    plan: StreamPlan, rank: int, first_step: int, steps: Steps, part: slice, n_masked: np.ndarray, n_rop: np.ndarray
) -> Packed:
    length_SG = steps.length[part]
    n_steps, size = length_SG.shape
    partition, n_pieces = partitioner(plan.readers), plan.readers * plan.accumulation
    edges = np.stack([partition(length, n_pieces) for length in length_SG])  # [S, pieces + 1]
    turn, step_at = rank % plan.readers, np.arange(n_steps)[:, None] * size
    begin = (edges[:, turn : -1 : plan.readers] + step_at).ravel()  # [S · accumulation]
    end = (edges[:, turn + 1 :: plan.readers] + step_at).ravel()
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
        template=plan.encoded.template,
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
    template: Template,
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
    columns = (rows.orig_at, rows.orig_len, rows.reply_at, rows.reply_len)
    orig_at, orig_len, reply_at, reply_len = (x[row] for x in columns)
    ids, segments = lay_out(
        rows.pool,
        np.where(reply_first, reply_at, orig_at),
        np.where(reply_first, reply_len, orig_len),
        np.where(reply_first, orig_at, reply_at),
        np.where(reply_first, orig_len, reply_len),
        starts,
        int(token_edges[-1]),
        template,
    )
    sample_ids = 2 * rows.number[row] + direction
    masked = mask_samples(ids, Samples(starts, length, epoch, sample_ids), seed, masking, template)
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
    types = {**VALUES, "input_ids": template.dtype}
    typed = {name: (flat.astype(types[name], copy=False), edges) for name, (flat, edges) in values.items()}
    return Packed({**counts, "width": width}, typed)
