"""A prepared corpus: Parquet shards of cleaned pairs in two splits, and corpus.json, which lists them.

CORPUS/corpus.json          written last: a folder without it is not a corpus
CORPUS/train/00000.parquet  orig_id, orig_text, reply_id, reply_text (the last two null in a single tweet)
CORPUS/valid/00000.parquet
CORPUS/rejects.jsonl        every refused line: file, line, reason
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from twilbert import storage
from twilbert.data import checksums
from twilbert.data.checksums import Listed
from twilbert.data.tables.files import open_parquet
from twilbert.errors import TwilbertError, UsageError

FORMAT = 1
INDEX_FILE = "corpus.json"
_REMEDY = "restore it, or run twilbert-prepare again"
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
    """The rows of a split and its shards, in order."""

    rows: int
    shards: tuple[Shard, ...]


def files_before(path: str) -> list[str]:
    """Return the files of a corpus that 0.2 wrote, corpus.json first; none where there is no corpus."""
    try:
        corpus = Corpus.open(path)
    except TwilbertError:
        return []
    shards = [shard.file for split in corpus.splits.values() for shard in split.shards]
    return ["corpus.json", "rejects.jsonl", *(f"{split}/" for split in SPLITS), *shards]


def corpus_id(shards: Iterable[Shard]) -> str:
    """Return 16 hex digits of a SHA-256 over the shards' sums: they change with any byte of any shard."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk or in an object store; holds no open file and can be pickled."""

    id: str
    splits: dict[str, Split]
    cleaning: dict[str, str] = field(default_factory=dict, repr=False)
    path: str = ""

    @classmethod
    def open(cls, path: str) -> Corpus:
        """Read CORPUS/corpus.json; UsageError, with the remedy, when it is missing or of another format.

        TwilbertError when it is damaged or was edited.
        """
        path = storage.absolute(path)
        index = storage.join(path, INDEX_FILE)
        try:
            corpus = replace(checksums.read_index(index, cls, FORMAT, _REMEDY), path=path)
        except FileNotFoundError as error:
            what = "has no corpus.json, so it is not a finished corpus" if storage.exists(path) else "no such folder"
            raise UsageError(f"{path}: {what}; make one with: twilbert-prepare RAW… --out {path}") from error
        splits = corpus.splits.values()
        same_id = corpus.id == corpus_id(shard for split in splits for shard in split.shards)
        if not same_id or any(split.rows != sum(shard.rows for shard in split.shards) for split in splits):
            raise TwilbertError(f"{index}: damaged or edited: its id or rows are not those of its shards; {_REMEDY}")
        return corpus

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Return the shards of `split` ("train" or "valid") in order; UsageError for any other name."""
        if split not in self.splits:
            raise UsageError(f"{self.path}: no split {split!r}; it has {', '.join(self.splits)}")
        return self.splits[split].shards

    def shard_path(self, shard: Shard) -> str:
        """Return a shard's path."""
        return storage.join(self.path, *shard.file.split("/"))

    @property
    def listed(self) -> list[Listed]:
        """Every shard with the sum in corpus.json."""
        return [_listed(self.shard_path(shard), shard) for split in self.splits.values() for shard in split.shards]


def read_shard(path: str, shard: Shard, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield `columns` of the row groups of the shard at `path`, in order, after comparing its SHA-256.

    TwilbertError naming the file when it is missing, damaged, or not the one of corpus.json.
    """
    checksums.check_file(_listed(path, shard))
    try:
        with open_parquet(path) as file:
            if file.metadata.num_rows != shard.rows:
                raise TwilbertError(f"{path}: {file.metadata.num_rows} rows, corpus.json says {shard.rows}; {_REMEDY}")
            for i in range(file.num_row_groups):
                yield file.read_row_group(i, columns=list(columns))
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TwilbertError(f"{path}: cannot be read ({reason}); {_REMEDY}") from error


def _listed(path: str, shard: Shard) -> Listed:
    return Listed(path, shard.sha256, _REMEDY)
