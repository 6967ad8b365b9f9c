"""First pass of `prepare`: clean a piece of raw input and spill its rows to disk, partitioned by the hash of ORIG_ID.

Each spill file is Arrow IPC with one record batch a partition: all rows of a conversation end in one partition,
whatever file they came from, and a partition is read without the others. Pieces and their spills are ordered, and so
are the rows of a partition, whichever process wrote them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from twilbert import storage
from twilbert.data.cleaning import Cleaning
from twilbert.data.corpus.corpus import SCHEMA
from twilbert.data.tables import pairs

# Hashes travel with the rows: 64 bits of BLAKE2b of the ids and of both texts (0 where there is no reply).
SPILL_SCHEMA = pa.schema(
    [*SCHEMA, ("orig_hash", pa.uint64()), ("reply_hash", pa.uint64()), ("texts_hash", pa.uint64())]
)
NO_HASHES = np.empty(0, np.uint64)
_SPILL_BYTES = 64 * 2**20  # cleaned rows in memory before a spill


@dataclass
class PieceResult:
    """Counts and files of a piece; records = kept + sum(dropped) + sum(reasons), before de-duplication."""

    piece: int
    lines: int = 0  # physical lines, from which the next piece's are numbered
    records: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # of rejected lines
    dropped: Counter[str] = field(default_factory=Counter)
    spills: list[str] = field(default_factory=list)
    rejects: list[str] = field(default_factory=list)  # files that list the refused lines
    valid_ids: np.ndarray = field(default_factory=lambda: NO_HASHES)  # of ids in the valid split
    valid_texts: np.ndarray = field(default_factory=lambda: NO_HASHES)


def hashes(values: Iterable[str]) -> np.ndarray:
    """Return 64 bits of BLAKE2b of each string, uint64: the same on every machine and in every version."""
    blake2b = hashlib.blake2b
    return np.frombuffer(b"".join([blake2b(v.encode(), digest_size=8).digest() for v in values]), dtype="<u8")


def valid_threshold(share: float) -> int:
    """Return the hash of an ORIG_ID below which a conversation is held out."""
    return min(int(share * 2.0**64), 2**64 - 1)


def in_valid(orig_hash: np.ndarray, threshold: int) -> np.ndarray:
    """Return which rows are held out, by the top bits of the hash (the partition takes the low ones)."""
    return orig_hash < np.uint64(threshold)


def spill_pairs(
    stretches: Iterable[pairs.Pairs], index: int, folder: str, partitions: int, threshold: int, cleaning: Cleaning
) -> PieceResult:
    """Clean and spill the pairs of one piece into `folder`."""
    result = PieceResult(index)
    unspilled: list[pa.Table] = []
    valid_ids, valid_texts = [NO_HASHES], [NO_HASHES]
    for block in stretches:
        if block.rejects:
            append_rejects(result, block.rejects, folder)
        result.lines += block.lines
        result.records += block.records
        result.reasons.update(reason for _, reason in block.rejects)
        if block.blank:
            result.dropped["blank_line"] += block.blank
        table = _cleaned(block, result.dropped, cleaning)
        result.kept += table.num_rows
        orig, reply, texts = (table[name].to_numpy() for name in ("orig_hash", "reply_hash", "texts_hash"))
        held_out = in_valid(orig, threshold)
        valid_ids += [orig[held_out], reply[held_out]]
        valid_texts.append(texts[held_out])
        unspilled.append(table)
        if sum(table.nbytes for table in unspilled) >= _SPILL_BYTES:
            _spill(unspilled, result, folder, partitions)
            unspilled = []
    if any(table.num_rows for table in unspilled):
        _spill(unspilled, result, folder, partitions)
    ids = np.unique(np.concatenate(valid_ids))
    result.valid_ids = ids[ids != 0]
    result.valid_texts = np.unique(np.concatenate(valid_texts))
    return result


def _cleaned(block: pairs.Pairs, dropped: Counter[str], clean: Cleaning) -> pa.Table:
    """The rows of a block that are not dropped, cleaned and hashed; counts the others in `dropped`."""
    orig_ids: list[str] = []
    tweets: list[str] = []
    reply_ids: list[str | None] = []
    replies: list[str | None] = []
    for orig_id, orig_text, reply_id, reply_text in zip(
        block.orig_ids, block.orig_texts, block.reply_ids, block.reply_texts, strict=True
    ):
        tweet = clean(orig_text)
        reply = clean(reply_text) or None if reply_text is not None else None
        reason = clean.drop_reason(tweet, reply)
        if reason:
            dropped[reason] += 1
            continue
        orig_ids.append(orig_id if orig_id is not None else id_of_text(tweet))
        tweets.append(tweet)
        replies.append(reply)
        # An empty reply (a lone …) leaves a single tweet.
        reply_ids.append(None if reply is None else reply_id if reply_id is not None else id_of_text(reply))
    has_reply = np.array([reply is not None for reply in replies], dtype=bool)
    columns = [
        *(pa.array(values, pa.string()) for values in (orig_ids, tweets, reply_ids, replies)),
        pa.array(hashes(orig_ids)),
        pa.array(np.where(has_reply, hashes(i or "" for i in reply_ids), np.uint64(0))),
        pa.array(hashes(f"{tweet}\t{reply or ''}" for tweet, reply in zip(tweets, replies, strict=True))),
    ]
    return pa.Table.from_arrays(columns, schema=SPILL_SCHEMA)


def id_of_text(text: str) -> str:
    """Return an id for a text without one: the same for equal texts."""
    return "t" + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _spill(tables: list[pa.Table], result: PieceResult, folder: str, partitions: int) -> None:
    """Write rows into the piece's next spill file."""
    name = f"{result.piece:06d}-{len(result.spills):03d}.arrow"
    table = pa.concat_tables(tables).combine_chunks()
    write_partitions(
        storage.join(folder, name), table, table["orig_hash"].to_numpy() % np.uint64(partitions), partitions
    )
    result.spills.append(name)


def write_partitions(path: str, table: pa.Table, partition: np.ndarray, partitions: int) -> None:
    """Write the rows of a table as one record batch a partition, each in the rows' order."""
    partition = partition.astype(np.int64)
    order = np.argsort(partition, kind="stable")
    ends = np.searchsorted(partition[order], np.arange(1, partitions + 1))
    table = table.take(pa.array(order)).combine_chunks()
    system, inner = storage.filesystem(path)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with system.open_output_stream(inner) as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        start = 0
        for end in ends.tolist():
            part = table.slice(start, end - start).to_batches()
            writer.write_batch(part[0] if part else pa.RecordBatch.from_pylist([], schema=table.schema))
            start = end


def read_partition(folder: str, spills: list[str], partition: int, schema: pa.Schema = SPILL_SCHEMA) -> pa.Table:
    """Return all rows of a partition, in the order of the input."""
    batches = []
    for name in spills:
        system, inner = storage.filesystem(storage.join(folder, name))
        with system.open_input_file(inner) as source:
            batches.append(pa.ipc.open_file(source).get_batch(partition))
    return pa.Table.from_batches(batches, schema=schema)


def append_rejects(result: Any, rejects: Sequence[tuple], folder: str) -> None:
    """Write refused lines, numbered within the piece, to a file: there may be very many."""
    name = f"rejects-{result.piece:06d}-{len(result.rejects):05d}.json"
    storage.write_bytes_atomic(
        storage.join(folder, name), json.dumps(sorted(rejects, key=lambda reject: reject[0])).encode()
    )
    result.rejects.append(name)
