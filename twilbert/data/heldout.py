"""Held-out pairs for evaluation: a corpus' valid split or raw files, encoded here into a scratch folder, without Ray.

corpus/valid/*.parquet  ─┐
raw TSV, CSV, JSONL, …  ─┴▶ (tweets, replies), cleaned ─▶ ids in row groups ─▶ scratch/valid/00000.parquet
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from twilbert import storage
from twilbert.data import encoded, raw_files, raw_parse
from twilbert.data.corpus import ROW_GROUP_ROWS, Corpus
from twilbert.data.encoding import read_text_row_groups
from twilbert.data.text import clean
from twilbert.data.tokenizer import Tokenizer
from twilbert.errors import UsageError

Texts = tuple[list[str], list[str | None]]  # tweets and replies; None is a single tweet's
_PIECE_BYTES = 64 * 2**20


def read_pairs(source: str, split: str = "valid") -> Iterator[Texts]:
    """The pairs of a corpus' split, or of raw files as they are: cleaned, none dropped but lines that are no pairs.

    UsageError when `source` is neither.
    """
    if storage.exists(storage.join(storage.absolute(source), "corpus.json")):
        corpus = Corpus.open(source)
        if split not in corpus.splits:
            raise UsageError(f"{source}: has no split {split!r}; it has {', '.join(corpus.splits)}")
        for shard in corpus.shards(split):
            columns = ("orig_text", "reply_text")
            for table in read_text_row_groups(corpus.shard_path(shard), columns, shard.rows):
                yield table.column("orig_text").to_pylist(), table.column("reply_text").to_pylist()
        return
    for path in raw_files.find([source]):
        file = raw_files.inspect(path)
        if file is None:
            raise UsageError(f"{path}: empty; expected tweets and replies as TSV, CSV, JSON lines or Parquet")
        for piece in raw_files.cut(file, _PIECE_BYTES):
            for block in raw_parse.read_blocks(piece):
                yield [clean(t) for t in block.orig_texts], [r if r is None else clean(r) for r in block.reply_texts]


def encode_pairs(texts: Iterator[Texts], tokenizer: Tokenizer, max_len: int, folder: str) -> encoded.EncodedCorpus:
    """`texts` as an encoded corpus with the one split "valid" in `folder`; UsageError when there are none.

    A reply without text is none; a pair without a tweet is left out.
    """
    first = next(texts, None)
    if first is None:
        raise UsageError("no pairs to evaluate: the input holds none")
    storage.make_dir(storage.join(folder, "valid"))
    tables = chain.from_iterable(_tables(part, tokenizer, max_len) for part in chain([first], texts))
    file = "valid/00000.parquet"
    entry = {"file": file, **encoded.write_shard(storage.join(folder, file), tables)}
    made = {"tokenizer": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "max_len": max_len}
    encoded.write_index(folder, corpus="scratch", shards={"valid": [entry]}, **made)
    return encoded.EncodedCorpus.open_folder(folder)


def _tables(texts: Texts, tokenizer: Tokenizer, max_len: int):
    tweets, replies = texts
    size = ROW_GROUP_ROWS
    for at in range(0, len(tweets), size):
        rows = [(t, r or None) for t, r in zip(tweets[at : at + size], replies[at : at + size], strict=True) if t]
        if rows:
            sides = zip(*rows, strict=True)
            yield encoded.make_table(*(tokenizer.encode_batch(side, max_len) for side in sides))


def token_counts(texts: Iterator[Texts], tokenizer: Tokenizer) -> np.ndarray:
    """How often each id occurs in `texts`, int64 [V]."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for sides in texts:
        for side in sides:
            counts += np.bincount(tokenizer.encode_batch(side)[0], minlength=len(counts))
    return counts
