"""The encoded corpus: token ids of a corpus under one tokenizer, as Parquet that the stream reads by row group.

    CORPUS/encoded/<fingerprint>/encoded.json          counts by split, shard and row group; written last
    CORPUS/encoded/<fingerprint>/train/00000.parquet   mirrors CORPUS/train/00000.parquet: same rows, order, row groups

An empty `reply_ids` list means that the row is a single tweet. Ids are uint16; of a larger vocabulary uint32.
Counts of tokens are of text tokens alone: special ones come by the tokenizer's `template` when samples are laid out.
The counts of each row group are in encoded.json, so that planning a stream opens no Parquet file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twilbert import storage
from twilbert.data import checksums
from twilbert.data.checksums import Listed
from twilbert.data.cleaning import FIRST
from twilbert.data.tables.files import open_parquet
from twilbert.data.tokenizer.template import Template, ours
from twilbert.errors import TwilbertError, UsageError

FORMAT = 1
INDEX_FILE = "encoded.json"
_TOTALS = ("rows", "pairs", "singles", "tokens")  # sums over a split's row groups
_COUNTS = ("orig_len", "reply_len", "orig_maskable", "reply_maskable")  # uint16 columns after the ids


@dataclass(frozen=True)
class Counts:
    """What a row group holds."""

    rows: int
    pairs: int
    singles: int
    tokens: int
    maskable: int


@dataclass(frozen=True)
class RowGroup(Counts):
    """One Parquet row group: number `index` of `file`, which is relative to the encoded folder."""

    file: str
    index: int


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split; `size` in bytes."""

    file: str
    rows: int
    size: int
    sha256: str
    row_groups: tuple[Counts, ...]


@dataclass(frozen=True)
class Split:
    """The counts of one split and its shards in order."""

    rows: int
    pairs: int
    singles: int
    tokens: int
    shards: tuple[Shard, ...]

    @cached_property
    def row_groups(self) -> tuple[RowGroup, ...]:
        """The row groups of all shards in file order."""
        numbered = ((shard.file, i, counts) for shard in self.shards for i, counts in enumerate(shard.row_groups))
        return tuple(RowGroup(**vars(counts), file=file, index=i) for file, i, counts in numbered)

    @property
    def samples(self) -> int:
        """Directed samples: a pair gives both orders, a single tweet one."""
        return 2 * self.pairs + self.singles


@dataclass(frozen=True)
class EncodedCorpus:
    """The index of an encoded corpus folder; plain values only, so that it travels to workers by pickle."""

    fingerprint: str
    tokenizer: str
    corpus: str
    vocab_size: int
    max_len: int
    splits: dict[str, Split]
    cleaning: str = FIRST
    """The rules by which the corpus' texts were cleaned."""
    special_tokens: Template | None = None
    """None in what 0.2.0 wrote, and our own tokenizers write."""
    path: str = ""

    @classmethod
    def open(cls, path: str) -> EncodedCorpus:
        """Open the encoded corpus in folder `path`; its shards are only read later (`checksums.check_files(listed)`).

        UsageError when `path` is not an encoded corpus; TwilbertError when its index is damaged.
        """
        path = storage.absolute(path)
        index = storage.join(path, INDEX_FILE)
        try:
            encoded = replace(checksums.read_index(index, cls, FORMAT, _remedy(path)), path=path)
        except FileNotFoundError as error:
            raise UsageError(f"{path}: not an encoded corpus (no {INDEX_FILE}); run twilbert-encode first") from error
        if encoded.fingerprint != fingerprint(encoded.tokenizer, encoded.max_len, encoded.corpus):
            raise _damaged(path, INDEX_FILE, "its fingerprint is not that of its tokenizer, max_len and corpus")
        for name, split in encoded.splits.items():
            if any(getattr(split, key) != sum(getattr(group, key) for group in split.row_groups) for key in _TOTALS):
                raise _damaged(path, INDEX_FILE, f"the counts of split {name!r} are not those of its row groups")
        return encoded

    @property
    def template(self) -> Template:
        """The special tokens of the vocabulary, and where they stand."""
        return self.special_tokens or ours(self.vocab_size)

    @property
    def listed(self) -> list[Listed]:
        """Every shard with the sum in encoded.json."""
        shards = [shard for split in self.splits.values() for shard in split.shards]
        return [Listed(storage.join(self.path, shard.file), shard.sha256, _remedy(self.path)) for shard in shards]

    def split(self, name: str) -> Split:
        """Return the split `name` ("train" or "valid"); UsageError when the corpus has none."""
        if name not in self.splits:
            raise UsageError(f"{self.path}: has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]


def fingerprint(tokenizer_fingerprint: str, max_len: int, corpus_id: str) -> str:
    """Return 16 hex digits of the tokenizer, longest text and corpus that the ids depend on."""
    return hashlib.sha256(f"{tokenizer_fingerprint}:{max_len}:{corpus_id}".encode()).hexdigest()[:16]


def read_row_group(encoded: EncodedCorpus, row_group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
    """Read all or some columns of a row group; TwilbertError naming the file when it cannot be read."""
    try:
        with open_parquet(storage.join(encoded.path, row_group.file)) as file:
            table = file.read_row_group(row_group.index, columns=list(columns) if columns is not None else None)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(encoded.path, row_group.file, str(error)) from error
    if table.num_rows != row_group.rows:
        reason = f"row group {row_group.index} has {table.num_rows} rows, the index says {row_group.rows}"
        raise _damaged(encoded.path, row_group.file, reason)
    return table


def schema(template: Template) -> pa.Schema:
    """Return the columns of a shard under a tokenizer."""
    ids = pa.list_(pa.from_numpy_dtype(template.dtype))
    return pa.schema([("orig_ids", ids), ("reply_ids", ids), *((name, pa.uint16()) for name in _COUNTS)])


def make_table(
    orig: tuple[np.ndarray, np.ndarray], reply: tuple[np.ndarray, np.ndarray], template: Template
) -> pa.Table:
    """Return a table of `schema` from two ragged columns, each (flat ids, int64 offsets [rows + 1])."""
    columns: list[pa.Array] = []
    lengths: list[pa.Array] = []
    maskable: list[pa.Array] = []
    for flat, offsets in (orig, reply):
        columns.append(
            pa.ListArray.from_arrays(
                pa.array(offsets.astype(np.int32)), pa.array(flat.astype(template.dtype, copy=False))
            )
        )
        lengths.append(pa.array(np.diff(offsets).astype(np.uint16)))
        before = np.concatenate([[0], np.cumsum(template.is_ordinary(flat), dtype=np.int64)])
        maskable.append(pa.array(np.diff(before[offsets]).astype(np.uint16)))
    return pa.Table.from_arrays([*columns, *lengths, *maskable], schema=schema(template))


def count_row_group(table: pa.Table) -> dict[str, int]:
    """Return the counts of one row group for encoded.json."""
    lengths = {side: table.column(f"{side}_len").to_numpy() for side in ("orig", "reply")}
    pairs = int(np.count_nonzero(lengths["reply"]))
    return {
        "rows": table.num_rows,
        "pairs": pairs,
        "singles": table.num_rows - pairs,
        "tokens": sum(int(n.sum(dtype=np.int64)) for n in lengths.values()),
        "maskable": sum(int(table.column(f"{s}_maskable").to_numpy().sum(dtype=np.int64)) for s in ("orig", "reply")),
    }


def write_shard(path: str, tables: Iterable[pa.Table], template: Template) -> dict[str, Any]:
    """Write a shard of one row group a table; return its entry for encoded.json (without `file`).

    Holds one table at a time. TwilbertError when the disk is full.
    """
    groups: list[dict[str, int]] = []
    system, inner = storage.filesystem(path)
    with storage.explained_write(path):
        columns = schema(template)
        with pq.ParquetWriter(
            inner, columns, filesystem=system, compression="zstd", write_page_checksum=True
        ) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=max(1, table.num_rows))
                groups.append(count_row_group(table))
        if storage.is_local(path):
            storage.sync_file(path)
    return {
        "rows": sum(group["rows"] for group in groups),
        "size": storage.size(path),
        "sha256": storage.sha256_file(path),
        "row_groups": groups,
    }


def write_index(
    path: str,
    *,
    tokenizer: str,
    template: Template,
    max_len: int,
    corpus: str,
    shards: dict[str, list[dict[str, Any]]],
    cleaning: str = FIRST,
) -> None:
    """Write encoded.json, which completes the folder `path`; `shards` are the entries of `write_shard` by split."""
    splits = {}
    for name, entries in shards.items():
        groups = [group for entry in entries for group in entry["row_groups"]]
        totals = {key: sum(group[key] for group in groups) for key in _TOTALS}
        splits[name] = {**totals, "shards": entries}
    index = {
        "format": FORMAT,
        "fingerprint": fingerprint(tokenizer, max_len, corpus),
        "tokenizer": tokenizer,
        "vocab_size": template.size,
        "special_tokens": None if template == ours(template.size) else asdict(template),
        "max_len": max_len,
        "corpus": corpus,
        "cleaning": cleaning,
        "splits": splits,
    }
    checksums.write_json(storage.join(path, INDEX_FILE), index)


def _damaged(folder: str, file: str, reason: str) -> TwilbertError:
    return TwilbertError(f"{storage.join(folder, file)}: cannot be read ({reason}); {_remedy(folder)}")


def _remedy(folder: str) -> str:
    return f"delete {folder} and run twilbert-encode again"
