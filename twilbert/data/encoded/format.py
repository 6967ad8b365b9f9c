"""The encoded corpus: token ids of a corpus under one tokenizer, as Parquet that the stream reads by row group.

    CORPUS/encoded/<fingerprint>/encoded.json          counts by split, shard and row group; written last
    CORPUS/encoded/<fingerprint>/train/00000.parquet   mirrors CORPUS/train/00000.parquet: same rows, order, row groups

An empty `reply_ids` list means that the row is a single tweet. Counts of tokens are of text tokens alone: a pair's
directed sample has orig_len + reply_len + 3 of them once [CLS] and two [SEP] are added, a single tweet's orig_len + 2.
Everything a plan needs (rows, pairs, tokens, maskable tokens of each row group) is in encoded.json, so that planning
opens no Parquet file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from twilbert import storage
from twilbert.data import checksums
from twilbert.data.checksums import Listed
from twilbert.data.corpus.corpus import Corpus
from twilbert.data.tables.files import open_parquet
from twilbert.errors import TwilbertError, UsageError
from twilbert.model.special_tokens import N_SPECIAL

FORMAT = 1
INDEX_FILE = "encoded.json"
_TOTALS = ("rows", "pairs", "singles", "tokens")  # of a split's row groups
SCHEMA = pa.schema(
    [
        ("orig_ids", pa.list_(pa.uint16())),
        ("reply_ids", pa.list_(pa.uint16())),
        ("orig_len", pa.uint16()),
        ("reply_len", pa.uint16()),
        ("orig_maskable", pa.uint16()),
        ("reply_maskable", pa.uint16()),
    ]
)


@dataclass(frozen=True)
class RowGroup:
    """One Parquet row group: where it lies (`file` is relative to the encoded folder) and what it holds."""

    file: str
    index: int
    rows: int
    pairs: int
    singles: int
    tokens: int
    maskable: int


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split; `size` in bytes."""

    file: str
    rows: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The counts of one split and its row groups in file order."""

    name: str
    rows: int
    pairs: int
    singles: int
    tokens: int
    shards: tuple[Shard, ...]
    row_groups: tuple[RowGroup, ...]

    @property
    def samples(self) -> int:
        """Directed samples: a pair gives both orders, a single tweet one."""
        return 2 * self.pairs + self.singles


@dataclass(frozen=True)
class EncodedCorpus:
    """An encoded corpus folder's index; plain values only, so that it travels to workers by pickle."""

    path: str
    fingerprint: str
    tokenizer: str
    corpus: str
    vocab_size: int
    max_len: int
    splits: tuple[Split, ...]

    @classmethod
    def open(cls, corpus_path: str, tokenizer_fingerprint: str, max_len: int) -> EncodedCorpus:
        """The encoded form of the corpus at `corpus_path` under one tokenizer and cut.

        UsageError, with the command that makes it, when it is not there; both fingerprints are named when the corpus
        is encoded, but with another tokenizer or `max_len`.
        """
        corpus = Corpus.open(corpus_path)
        wanted = fingerprint(tokenizer_fingerprint, max_len, corpus.id)
        folder = storage.join(corpus.path, "encoded", wanted)
        if not storage.exists(storage.join(folder, INDEX_FILE)):
            raise UsageError(_missing(corpus.path, corpus.id, tokenizer_fingerprint, max_len))
        encoded = cls.open_folder(folder)
        if encoded.fingerprint != wanted:
            raise _damaged(folder, INDEX_FILE, f"it is of {encoded.fingerprint}, the folder of {wanted}")
        return encoded

    @classmethod
    def open_folder(cls, path: str) -> EncodedCorpus:
        """The encoded corpus in folder `path`; every shard must be there in its full size.

        UsageError when `path` is not an encoded corpus; TwilbertError naming the file when a shard is missing or cut.
        """
        path = storage.absolute(path)
        index_path = storage.join(path, INDEX_FILE)
        if not storage.exists(index_path):
            raise UsageError(f"{path}: not an encoded corpus (no {INDEX_FILE}); twilbert-encode makes one")
        encoded = _from_index(path)
        _check_sizes(encoded)
        return encoded

    @property
    def listed(self) -> list[Listed]:
        """Every shard with the sum that encoded.json has of it."""
        remedy = _remedy(self.path)
        return [
            Listed(storage.join(self.path, shard.file), shard.sha256, remedy)
            for split in self.splits
            for shard in split.shards
        ]

    def split(self, name: str) -> Split:
        """The split `name` ("train" or "valid"); UsageError when the corpus has none."""
        for split in self.splits:
            if split.name == name:
                return split
        raise UsageError(f"{self.path}: has no split {name!r}; it has {', '.join(s.name for s in self.splits)}")


def fingerprint(tokenizer_fingerprint: str, max_len: int, corpus_id: str) -> str:
    """16 hex digits that name what the ids depend on: tokenizer, cut and corpus."""
    return hashlib.sha256(f"{tokenizer_fingerprint}:{max_len}:{corpus_id}".encode()).hexdigest()[:16]


def read_row_group(encoded: EncodedCorpus, row_group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one row group, all columns or those named; TwilbertError naming the file when it cannot be read."""
    try:
        with open_parquet(storage.join(encoded.path, row_group.file)) as file:
            table = file.read_row_group(row_group.index, columns=list(columns) if columns is not None else None)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(encoded.path, row_group.file, str(error)) from error
    if table.num_rows != row_group.rows:
        reason = f"row group {row_group.index} has {table.num_rows} rows, the index says {row_group.rows}"
        raise _damaged(encoded.path, row_group.file, reason)
    return table


def make_table(orig: tuple[np.ndarray, np.ndarray], reply: tuple[np.ndarray, np.ndarray]) -> pa.Table:
    """A table of SCHEMA from two ragged columns, each (flat uint16 ids, int64 offsets [rows + 1])."""
    columns: list[pa.Array] = []
    lengths: list[pa.Array] = []
    maskable: list[pa.Array] = []
    for flat, offsets in (orig, reply):
        columns.append(pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(flat, pa.uint16())))
        lengths.append(pa.array(np.diff(offsets).astype(np.uint16)))
        before = np.concatenate([[0], np.cumsum(flat >= N_SPECIAL, dtype=np.int64)])
        maskable.append(pa.array(np.diff(before[offsets]).astype(np.uint16)))
    return pa.Table.from_arrays([*columns, *lengths, *maskable], schema=SCHEMA)


def count_row_group(table: pa.Table) -> dict[str, int]:
    """The counts of one row group as encoded.json holds them."""
    lengths = {side: table.column(f"{side}_len").to_numpy() for side in ("orig", "reply")}
    pairs = int(np.count_nonzero(lengths["reply"]))
    return {
        "rows": table.num_rows,
        "pairs": pairs,
        "singles": table.num_rows - pairs,
        "tokens": sum(int(n.sum(dtype=np.int64)) for n in lengths.values()),
        "maskable": sum(int(table.column(f"{s}_maskable").to_numpy().sum(dtype=np.int64)) for s in ("orig", "reply")),
    }


def write_shard(path: str, tables: Iterable[pa.Table]) -> dict[str, Any]:
    """Write a shard, one row group a table, holding one at a time; its entry for encoded.json (without `file`).

    TwilbertError when the disk is full.
    """
    groups: list[dict[str, int]] = []
    system, inner = storage.filesystem(path)
    with storage.explained_write(path):
        with pq.ParquetWriter(inner, SCHEMA, filesystem=system, compression="zstd", write_page_checksum=True) as writer:
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
    path: str, *, tokenizer: str, vocab_size: int, max_len: int, corpus: str, shards: dict[str, list[dict[str, Any]]]
) -> None:
    """Write encoded.json, which completes the folder `path`; `shards` holds write_shard's entries by split."""
    splits = {}
    for name, entries in shards.items():
        groups = [group for entry in entries for group in entry["row_groups"]]
        totals = {key: sum(group[key] for group in groups) for key in _TOTALS}
        splits[name] = {**totals, "shards": entries}
    index = {
        "format": FORMAT,
        "fingerprint": fingerprint(tokenizer, max_len, corpus),
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "max_len": max_len,
        "corpus": corpus,
        "splits": splits,
    }
    checksums.write_json(storage.join(path, INDEX_FILE), index)


def _from_index(path: str) -> EncodedCorpus:
    where = storage.join(path, INDEX_FILE)
    index = checksums.read_json(where, object, _remedy(path))
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise UsageError(f"{where}: format {found!r}, this version reads {FORMAT}; run twilbert-encode again")
    try:
        splits = tuple(_split_from_index(name, entry) for name, entry in index["splits"].items())
        encoded = EncodedCorpus(
            path=path,
            fingerprint=index["fingerprint"],
            tokenizer=index["tokenizer"],
            corpus=index["corpus"],
            vocab_size=index["vocab_size"],
            max_len=index["max_len"],
            splits=splits,
        )
        if encoded.fingerprint != fingerprint(encoded.tokenizer, encoded.max_len, encoded.corpus):
            raise ValueError("its fingerprint is not that of its tokenizer, max_len and corpus")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, INDEX_FILE, repr(error)) from error
    return encoded


def _split_from_index(name: str, entry: dict[str, Any]) -> Split:
    shards = tuple(Shard(s["file"], s["rows"], s["size"], s["sha256"]) for s in entry["shards"])
    row_groups = tuple(
        RowGroup(file=shard["file"], index=i, **group)
        for shard in entry["shards"]
        for i, group in enumerate(shard["row_groups"])
    )
    counts = {key: entry[key] for key in _TOTALS}
    if counts != {key: sum(getattr(group, key) for group in row_groups) for key in _TOTALS}:
        raise ValueError(f"the counts of split {name!r} are not those of its row groups")
    return Split(name=name, **counts, shards=shards, row_groups=row_groups)


def _check_sizes(encoded: EncodedCorpus) -> None:
    """One listing a split, not one request a shard: object stores hold thousands."""
    for split in encoded.splits:
        system, inner = storage.filesystem(storage.join(encoded.path, split.name))
        infos = system.get_file_info(fs.FileSelector(inner, allow_not_found=True))
        sizes = {f"{split.name}/{info.base_name}": info.size for info in infos if info.is_file}
        for shard in split.shards:
            if shard.file not in sizes:
                raise _damaged(encoded.path, shard.file, "no such file")
            if sizes[shard.file] != shard.size:
                raise _damaged(encoded.path, shard.file, f"{sizes[shard.file]} bytes, the index says {shard.size}")


def _damaged(folder: str, file: str, reason: str) -> TwilbertError:
    return TwilbertError(f"{storage.join(folder, file)}: cannot be read ({reason}); {_remedy(folder)}")


def _remedy(folder: str) -> str:
    return f"delete {folder} and run twilbert-encode again"


def _missing(corpus_path: str, corpus_id: str, tokenizer_fingerprint: str, max_len: int) -> str:
    command = f"twilbert-encode {corpus_path} --tokenizer TOKENIZER --max-len {max_len}"
    wanted = fingerprint(tokenizer_fingerprint, max_len, corpus_id)
    base = storage.join(corpus_path, "encoded")
    others = []
    for name in storage.list_dir(base):
        index_path = storage.join(base, name, INDEX_FILE)
        if storage.exists(index_path):
            other = _from_index(storage.join(base, name))
            others.append(
                f"{other.fingerprint} (tokenizer {other.tokenizer[:16]}, max_len {other.max_len}, "
                f"corpus {other.corpus})"
            )
    asked = f"{wanted} (tokenizer {tokenizer_fingerprint[:16]}, max_len {max_len}, corpus {corpus_id})"
    if not others:
        return f"{corpus_path}: not encoded yet, {asked} is asked for; run: {command}"
    return (
        f"{corpus_path}: the tokenizer does not match the encoded corpus: {asked} is asked for, "
        f"there is {' and '.join(others)}; give the tokenizer it was encoded with, or run: {command}"
    )
