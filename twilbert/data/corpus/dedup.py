"""Second and third pass of `prepare`: partitions → de-duplicated train shards, and a valid split that leaks nothing.

A conversation lies whole in one partition, so rows of the same ids and texts are found there; the first one in the
order of the input stays (equal ids with other texts are ids that have lost digits, not repeats). What train and valid
share is found by comparing every train row with the valid rows' hashes, which the first pass stored.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twilbert import storage
from twilbert.data.corpus.corpus import ROW_GROUP_ROWS, SCHEMA, Shard
from twilbert.data.corpus.spill import in_valid, read_partition

_VALID_SHARD_ROWS = 2**20


@dataclass
class PartitionResult:
    """What a partition gave: its train shard, its candidates for valid, and the valid hashes that train holds too."""

    partition: int
    repeated: int = 0
    single_tweets: int = 0  # of train
    train: Shard | None = None
    valid: str | None = None  # the file of candidates
    shared_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    shared_texts: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))


def first_of_each(rows: pa.Table) -> np.ndarray:
    """Ascending positions of the first row of each ids and texts; a null reply_id is a value like others."""
    key = np.zeros(rows.num_rows, np.int64)
    for column in ("orig_id", "reply_id", "texts_hash"):
        codes = _codes(rows[column])
        key = np.unique(key * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)[1]
    return np.sort(np.unique(key, return_index=True)[1])


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """A whole number for each distinct value; null is one of them."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def merge_partition(folder: str, out: str, spills: list[str], partition: int, threshold: int) -> PartitionResult:
    """De-duplicate one partition: write its train shard under `out`, its candidates for valid under `folder`."""
    result = PartitionResult(partition)
    rows = read_partition(folder, spills, partition)
    kept = first_of_each(rows)
    result.repeated = rows.num_rows - len(kept)
    held_out = in_valid(rows["orig_hash"].to_numpy()[kept], threshold)
    train = rows.take(pa.array(kept[~held_out]))
    valid = rows.take(pa.array(kept[held_out]))
    del rows
    result.single_tweets = train["reply_id"].null_count
    if train.num_rows:
        known_ids, known_texts = read_hashes(storage.join(folder, "valid.npz"))
        ids = np.concatenate([train["orig_hash"].to_numpy(), train["reply_hash"].to_numpy()])
        result.shared_ids = np.intersect1d(ids, known_ids)
        result.shared_texts = np.intersect1d(train["texts_hash"].to_numpy(), known_texts)
        (result.train,) = write_shards([train], out, "train", first=partition)
    if valid.num_rows:
        result.valid = f"valid-{partition:05d}.arrow"
        system, inner = storage.filesystem(storage.join(folder, result.valid))
        with system.open_output_stream(inner) as sink, pa.ipc.new_file(sink, valid.schema) as writer:
            writer.write_table(valid)
    return result


def write_hashes(path: str, ids: np.ndarray, texts: np.ndarray) -> None:
    """Store the sorted hashes of the ids and of the texts in the valid split."""
    buffer = io.BytesIO()
    np.savez(buffer, ids=ids, texts=texts)
    storage.write_bytes_atomic(path, buffer.getvalue())


def read_hashes(path: str) -> tuple[np.ndarray, np.ndarray]:
    """What `write_hashes` stored."""
    with np.load(io.BytesIO(storage.read_bytes(path))) as arrays:
        return arrays["ids"], arrays["texts"]


def write_valid(folder: str, out: str, results: list[PartitionResult]) -> tuple[list[Shard], int, dict[str, int]]:
    """Write valid without the rows that share an id or both texts with train; returns shards, how many of the rows
    are single tweets, and the rows dropped.
    """
    ids = np.unique(np.concatenate([np.empty(0, np.uint64), *(r.shared_ids for r in results)]))
    texts = np.unique(np.concatenate([np.empty(0, np.uint64), *(r.shared_texts for r in results)]))
    dropped = {"shares_id_with_train": 0, "shares_texts_with_train": 0}
    single_tweets = 0

    def unshared() -> Iterator[pa.Table]:
        nonlocal single_tweets
        for result in results:
            if result.valid is None:
                continue
            system, inner = storage.filesystem(storage.join(folder, result.valid))
            with system.open_input_file(inner) as source:
                rows = pa.ipc.open_file(source).read_all()
            by_id = np.isin(rows["orig_hash"].to_numpy(), ids) | np.isin(rows["reply_hash"].to_numpy(), ids)
            by_text = np.isin(rows["texts_hash"].to_numpy(), texts) & ~by_id
            dropped["shares_id_with_train"] += int(by_id.sum())
            dropped["shares_texts_with_train"] += int(by_text.sum())
            rows = rows.filter(pa.array(~(by_id | by_text)))
            single_tweets += rows["reply_id"].null_count
            yield rows

    shards = list(write_shards(unshared(), out, "valid"))
    return shards, single_tweets, dropped


def write_shards(tables: Iterable[pa.Table], out: str, split: str, first: int = 0) -> Iterator[Shard]:
    """Write tables one after the other into shards of row groups of exactly ROW_GROUP_ROWS (the last one smaller).

    The bytes depend on the rows alone, not on how they were cut into tables. Train has one shard a call, however long;
    valid starts a new one every 2^20 rows.
    """
    limit = _VALID_SHARD_ROWS if split == "valid" else 2**63
    storage.make_dir(storage.join(out, split))
    groups = _row_groups(tables)
    group = next(groups, None)
    number = first
    while group is not None:
        name, rows = f"{split}/{number:05d}.parquet", 0
        path = storage.join(out, split, f"{number:05d}.parquet")
        system, inner = storage.filesystem(path)
        with (
            system.open_output_stream(inner) as sink,
            pq.ParquetWriter(
                sink, SCHEMA, compression="zstd", use_dictionary=False, write_page_checksum=True
            ) as writer,
        ):
            while group is not None and rows < limit:
                writer.write_table(group)
                rows += group.num_rows
                group = next(groups, None)
        yield Shard(name, rows, storage.sha256_file(path))
        number += 1


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    rest = SCHEMA.empty_table()
    for table in tables:
        rows = pa.concat_tables([rest, table.select(SCHEMA.names)])
        whole = rows.num_rows - rows.num_rows % ROW_GROUP_ROWS
        for start in range(0, whole, ROW_GROUP_ROWS):
            yield rows.slice(start, ROW_GROUP_ROWS).combine_chunks()
        rest = rows.slice(whole)
    if rest.num_rows:
        yield rest.combine_chunks()
