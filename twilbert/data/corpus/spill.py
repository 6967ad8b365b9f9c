"""First pass of `prepare`: a piece of raw input → cleaned rows, spilled to disk by the hash of their ORIG_ID.

Each spill file is Arrow IPC with one record batch a partition: all rows of one conversation meet in one partition,
whatever file they came from, and a partition is read without touching the others. Spills of a piece, and pieces, have
an order, so the rows of a partition do too, wherever and whenever they were made.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from twilbert import storage
from twilbert.data.cleaning import clean, drop_reason
from twilbert.data.corpus.corpus import SCHEMA
from twilbert.data.tables import pairs
from twilbert.data.tables.blocks import Piece

# Hashes travel with the rows: 64 bits of BLAKE2b of the ids and of both texts (0 where there is no reply).
SPILL_SCHEMA = pa.schema(
    [*SCHEMA, ("orig_hash", pa.uint64()), ("reply_hash", pa.uint64()), ("texts_hash", pa.uint64())]
)
_SPILL_BYTES = 64 * 2**20  # cleaned rows held before they are spilled


@dataclass
class PieceResult:
    """What became of a piece's records; records = kept + sum(dropped) + rejected, before de-duplication."""

    piece: int
    lines: int = 0  # physical lines, to number the next piece's
    records: int = 0
    kept: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # of rejected lines
    dropped: Counter[str] = field(default_factory=Counter)
    spills: list[str] = field(default_factory=list)
    rejects: list[str] = field(default_factory=list)  # files that list the refused lines
    valid_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # hashes of ids in the valid split
    valid_texts: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))


def hashes(values: Iterable[str]) -> np.ndarray:
    """64 bits of BLAKE2b of each string, uint64: the same on every machine and in every version."""
    blake2b = hashlib.blake2b
    return np.frombuffer(b"".join([blake2b(v.encode(), digest_size=8).digest() for v in values]), dtype="<u8")


def valid_threshold(share: float) -> int:
    """Conversations whose ORIG_ID hashes below this are held out."""
    return min(int(share * 2.0**64), 2**64 - 1)


def in_valid(orig_hash: np.ndarray, threshold: int) -> np.ndarray:
    """Which rows are held out: the top bits of the hash decide (the partition takes the low ones)."""
    return orig_hash < np.uint64(threshold)


def spill_piece(piece: Piece, index: int, folder: str, partitions: int, threshold: int) -> PieceResult:
    """Read, clean and spill one piece into `folder`; TwilbertError when it cannot be read to its end."""
    result = PieceResult(index)
    held: list[pa.Table] = []
    held_bytes = 0
    valid_ids: list[np.ndarray] = []
    valid_texts: list[np.ndarray] = []
    for block in pairs.read(piece):
        if block.rejects:
            _append_rejects(result, block, folder)
        result.lines += block.lines
        result.records += block.records
        result.rejected += len(block.rejects)
        result.reasons.update(reason for _, reason in block.rejects)
        if block.blank:
            result.dropped["blank_line"] += block.blank
        table = _cleaned(block, result.dropped)
        result.kept += table.num_rows
        orig = table["orig_hash"].to_numpy()
        out = in_valid(orig, threshold)
        valid_ids += [orig[out], table["reply_hash"].to_numpy()[out]]
        valid_texts.append(table["texts_hash"].to_numpy()[out])
        held.append(table)
        held_bytes += table.nbytes
        if held_bytes >= _SPILL_BYTES:
            result.spills.append(_spill(held, f"{index:06d}-{len(result.spills):03d}.arrow", folder, partitions))
            held, held_bytes = [], 0
    if any(table.num_rows for table in held):
        result.spills.append(_spill(held, f"{index:06d}-{len(result.spills):03d}.arrow", folder, partitions))
    if valid_ids:
        ids = np.unique(np.concatenate(valid_ids))
        result.valid_ids = ids[ids != 0]
        result.valid_texts = np.unique(np.concatenate(valid_texts))
    return result


def _cleaned(block: pairs.Pairs, dropped: Counter[str]) -> pa.Table:
    """The rows of a block that are worth keeping, cleaned and hashed; counts the others in `dropped`."""
    orig_ids: list[str] = []
    tweets: list[str] = []
    reply_ids: list[str | None] = []
    replies: list[str | None] = []
    for orig_id, orig_text, reply_id, reply_text in zip(
        block.orig_ids, block.orig_texts, block.reply_ids, block.reply_texts, strict=True
    ):
        tweet = clean(orig_text)
        reply = clean(reply_text) or None if reply_text is not None else None
        reason = drop_reason(tweet, reply)
        if reason:
            dropped[reason] += 1
            continue
        orig_ids.append(orig_id if orig_id is not None else made_id(tweet))
        tweets.append(tweet)
        replies.append(reply)
        # A reply that held nothing (a lone …) leaves a single tweet.
        reply_ids.append(None if reply is None else reply_id if reply_id is not None else made_id(reply))
    has_reply = np.array([reply is not None for reply in replies], dtype=bool)
    columns = [
        *(pa.array(values, pa.string()) for values in (orig_ids, tweets, reply_ids, replies)),
        pa.array(hashes(orig_ids)),
        pa.array(np.where(has_reply, hashes(i or "" for i in reply_ids), np.uint64(0))),
        pa.array(hashes(f"{tweet}\t{reply or ''}" for tweet, reply in zip(tweets, replies, strict=True))),
    ]
    return pa.Table.from_arrays(columns, schema=SPILL_SCHEMA)


def made_id(text: str) -> str:
    """An id for a text that has none: the same text gets the same id, in every file."""
    return "t" + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _spill(tables: list[pa.Table], name: str, folder: str, partitions: int) -> str:
    """Write rows as one record batch a partition, each in the rows' order; returns the file's name."""
    table = pa.concat_tables(tables).combine_chunks()
    partition = (table["orig_hash"].to_numpy() % np.uint64(partitions)).astype(np.int64)
    order = np.argsort(partition, kind="stable")
    ends = np.searchsorted(partition[order], np.arange(1, partitions + 1))
    table = table.take(pa.array(order)).combine_chunks()
    system, inner = storage.filesystem(storage.join(folder, name))
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with system.open_output_stream(inner) as sink, pa.ipc.new_file(sink, SPILL_SCHEMA, options=options) as writer:
        start = 0
        for end in ends.tolist():
            part = table.slice(start, end - start).to_batches()
            writer.write_batch(part[0] if part else _NOTHING)
            start = end
    return name


_NOTHING = pa.RecordBatch.from_pylist([], schema=SPILL_SCHEMA)


def read_partition(folder: str, spills: list[str], partition: int) -> pa.Table:
    """All rows of a partition, in the order of the input."""
    batches = []
    for name in spills:
        system, inner = storage.filesystem(storage.join(folder, name))
        with system.open_input_file(inner) as source:
            batches.append(pa.ipc.open_file(source).get_batch(partition))
    return pa.Table.from_batches(batches, schema=SPILL_SCHEMA)


def _append_rejects(result: PieceResult, block: pairs.Pairs, folder: str) -> None:
    """Note refused lines, numbered within the piece, in a file of their own: there may be very many."""
    name = f"rejects-{result.piece:06d}-{len(result.rejects):05d}.json"
    storage.write_bytes_atomic(storage.join(folder, name), json.dumps(sorted(block.rejects)).encode())
    result.rejects.append(name)
