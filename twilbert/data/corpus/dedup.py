"""Second and third pass of `prepare`: de-duplicate partitions into train shards, and write a valid split without leaks.

A partition holds whole conversations, so repeats (rows of the same ids and texts) are removed there, all but the first
in the order of the input; equal ids with other texts have lost digits and are no repeats. Every train row is compared
with the hashes of all valid rows from the first pass; what they share is left out of the valid split.
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
from twilbert.data.corpus.spill import NO_HASHES, in_valid, read_partition

_VALID_SHARD_ROWS = 2**20
_HASHES_FILE = "valid.npz"


@dataclass
class PartitionResult:
    """A partition's train shard, its candidates for valid, and the valid hashes that occur in train too."""

    partition: int
    repeated: int = 0
    single_tweets: int = 0  # of train
    train: Shard | None = None
    valid: str | None = None  # the file of candidates
    shared_ids: np.ndarray = field(default_factory=lambda: NO_HASHES)
    shared_texts: np.ndarray = field(default_factory=lambda: NO_HASHES)


def first_of_each(rows: pa.Table) -> np.ndarray:
    """Return the ascending positions of the first row of each ids and texts, where null equals null."""
    key = np.zeros(rows.num_rows, np.int64)
    for name in ("orig_id", "reply_id", "texts_hash"):
        column = rows[name].combine_chunks().dictionary_encode(null_encoding="encode")
        codes = column.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        key = np.unique(key * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)[1]
    return np.sort(np.unique(key, return_index=True)[1])


def merge_partition(folder: str, out: str, spills: list[str], threshold: int, partition: int) -> PartitionResult:
    """De-duplicate one partition; write its train shard under `out` and its candidates for valid under `folder`."""
    result = PartitionResult(partition)
    rows = read_partition(folder, spills, partition)
    first = first_of_each(rows)
    result.repeated = rows.num_rows - len(first)
    held_out = in_valid(rows["orig_hash"].to_numpy()[first], threshold)
    train, valid = rows.take(pa.array(first[~held_out])), rows.take(pa.array(first[held_out]))
    del rows
    result.single_tweets = train["reply_id"].null_count
    if train.num_rows:
        with np.load(io.BytesIO(storage.read_bytes(storage.join(folder, _HASHES_FILE)))) as valid_hashes:
            ids = np.concatenate([train["orig_hash"].to_numpy(), train["reply_hash"].to_numpy()])
            result.shared_ids = np.intersect1d(ids, valid_hashes["ids"])
            result.shared_texts = np.intersect1d(train["texts_hash"].to_numpy(), valid_hashes["texts"])
        (result.train,) = write_shards([train], out, "train", first=partition)
    if valid.num_rows:
        result.valid = f"valid-{partition:05d}.arrow"
        system, inner = storage.filesystem(storage.join(folder, result.valid))
        with system.open_output_stream(inner) as sink, pa.ipc.new_file(sink, valid.schema) as writer:
            writer.write_table(valid)
    return result


def write_hashes(folder: str, ids: list[np.ndarray], texts: list[np.ndarray]) -> None:
    """Write the hashes of the ids and of the texts of the valid split into `folder`, for `merge_partition`."""
    buffer = io.BytesIO()
    np.savez(buffer, ids=np.unique(np.concatenate(ids)), texts=np.unique(np.concatenate(texts)))
    storage.write_bytes_atomic(storage.join(folder, _HASHES_FILE), buffer.getvalue())


def write_valid(folder: str, out: str, results: list[PartitionResult]) -> tuple[list[Shard], int, dict[str, int]]:
    """Write valid without the rows that share an id or both texts with train.

    Returns its shards, the single tweets among its rows, and the rows dropped by reason.
    """
    ids = np.concatenate([NO_HASHES, *(result.shared_ids for result in results)])
    texts = np.concatenate([NO_HASHES, *(result.shared_texts for result in results)])
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
    """Write the rows of all tables into shards of row groups of ROW_GROUP_ROWS; yield each shard.

    The bytes depend on the rows alone, not on their division into tables. Train has one shard a call; valid starts a
    new one every 2^20 rows.
    """
    limit = _VALID_SHARD_ROWS if split == "valid" else 2**63
    storage.make_dir(storage.join(out, split))
    groups = _row_groups(tables)
    group = next(groups, None)
    number = first
    while group is not None:
        name, rows = f"{number:05d}.parquet", 0
        path = storage.join(out, split, name)
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
        yield Shard(f"{split}/{name}", rows, storage.sha256_file(path))
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
