"""A prepared corpus: Parquet shards of cleaned pairs in two splits, and corpus.json, which says what they hold.

CORPUS/corpus.json          written last: a folder without it is not a corpus
CORPUS/train/00000.parquet  orig_id, orig_text, reply_id, reply_text (the last two null in a single tweet)
CORPUS/valid/00000.parquet
CORPUS/rejects.jsonl        every refused line: file, line, reason
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from twilbert import storage
from twilbert.errors import TwilbertError, UsageError

FORMAT = 1
ROW_GROUP_ROWS = 8_192
SPLITS = ("train", "valid")
SCHEMA = pa.schema(
    [("orig_id", pa.string()), ("orig_text", pa.string()), ("reply_id", pa.string()), ("reply_text", pa.string())]
)


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split; `file` is relative to the corpus folder."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The rows of a split and the shards that hold them, in order."""

    rows: int
    shards: tuple[Shard, ...]


def corpus_id(shards: Iterable[Shard]) -> str:
    """16 hex digits that change when any byte of any shard does: SHA-256 over the shards' own."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk or in an object store; holds no open file and can be pickled."""

    path: str
    id: str
    splits: dict[str, Split]
    info: dict[str, Any] = field(repr=False)  # corpus.json as it was read

    @classmethod
    def open(cls, path: str) -> Corpus:
        """Read CORPUS/corpus.json; UsageError, with the remedy, when it is missing or of another format."""
        path = storage.absolute(path)
        try:
            info = storage.read_json(storage.join(path, "corpus.json"))
        except (FileNotFoundError, NotADirectoryError) as error:
            what = "holds no corpus.json, so it is not a finished corpus" if storage.exists(path) else "no such folder"
            raise UsageError(f"{path}: {what}; make one with: twilbert-prepare RAW… --out {path}") from error
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            found = info.get("format") if isinstance(info, dict) else None
            raise UsageError(
                f"{path}: corpus format {found!r}, this version reads {FORMAT}; run twilbert-prepare again"
            )
        try:
            splits = {
                name: Split(split["rows"], tuple(Shard(s["file"], s["rows"], s["sha256"]) for s in split["shards"]))
                for name, split in info["splits"].items()
            }
            return cls(path, info["id"], splits, info)
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path}/corpus.json: entry {error} is missing or wrong; run twilbert-prepare again"
            ) from error

    def shards(self, split: str) -> tuple[Shard, ...]:
        """The shards of `split` ("train" or "valid") in order; UsageError for any other name."""
        if split not in self.splits:
            raise UsageError(f"{self.path}: no split {split!r}; it has {', '.join(self.splits)}")
        return self.splits[split].shards

    def shard_path(self, shard: Shard) -> str:
        """Where a shard lies."""
        return storage.join(self.path, *shard.file.split("/"))

    def verify(self) -> None:
        """Read every shard and compare its SHA-256; TwilbertError naming the first that is missing or differs."""
        for split in self.splits.values():
            for shard in split.shards:
                path = self.shard_path(shard)
                try:
                    found = storage.sha256_file(path)
                except FileNotFoundError as error:
                    raise TwilbertError(f"{path}: missing; restore it, or run twilbert-prepare again") from error
                if found != shard.sha256:
                    raise TwilbertError(
                        f"{path}: damaged, its SHA-256 is not the one in corpus.json; "
                        "restore it, or run twilbert-prepare again"
                    )
