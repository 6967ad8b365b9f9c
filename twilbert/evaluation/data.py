"""The inputs of an evaluation: pairs (a corpus' valid split or raw files), encoded into a scratch folder without Ray,
texts line by line, and pairs with their order as a label.

corpus/valid/*.parquet  ─┐
raw TSV, CSV, JSONL, …  ─┴▶ (tweets, replies), cleaned ─▶ ids in row groups ─▶ scratch/valid/00000.parquet
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from twilbert import storage
from twilbert.data.cleaning import Cleaning
from twilbert.data.corpus.corpus import INDEX_FILE, ROW_GROUP_ROWS, Corpus, read_shard
from twilbert.data.encoded import format as encoded
from twilbert.data.stream import rows as rows_of
from twilbert.data.stream.build import pack
from twilbert.data.stream.masking import MaskingSettings
from twilbert.data.stream.micro_batch import COUNTS, UNKNOWN, MicroBatch
from twilbert.data.stream.stream import EVALUATION_EPOCH
from twilbert.data.tables import blocks, pairs
from twilbert.data.tables.files import sources
from twilbert.data.tables.texts import holds_pairs, text_lines
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.errors import UsageError

Texts = tuple[list[str], list[str | None]]  # tweets and replies; None is a single tweet's
_PIECE_BYTES = 64 * 2**20


def read_pairs(source: str, clean: Cleaning, split: str = "valid") -> Iterator[Texts]:
    """Yield the pairs of a corpus' split, as they are, or of raw files, cleaned by `clean`; only lines that are no
    pairs are dropped.

    UsageError when `source` is neither.
    """
    if storage.exists(storage.join(storage.absolute(source), INDEX_FILE)):
        corpus = Corpus.open(source)
        if split not in corpus.splits:
            raise UsageError(f"{source}: has no split {split!r}; it has {', '.join(corpus.splits)}")
        for shard in corpus.shards(split):
            for table in read_shard(corpus.shard_path(shard), shard, ("orig_text", "reply_text")):
                yield table.column("orig_text").to_pylist(), table.column("reply_text").to_pylist()
        return
    with sources([source]) as listed:
        for one in listed:
            file = pairs.inspect(one)
            if file is None:
                raise UsageError(f"{one.name}: empty; expected tweets and replies as TSV, CSV, JSON lines or Parquet")
            for piece in blocks.cut(file, _PIECE_BYTES):
                for block in pairs.read(piece):
                    replies = [reply if reply is None else clean(reply) for reply in block.reply_texts]
                    yield [clean(tweet) for tweet in block.orig_texts], replies


def encode_pairs(texts: Iterator[Texts], tokenizer: Tokenizer, max_len: int, folder: str) -> encoded.EncodedCorpus:
    """Encode `texts` into `folder`, as a corpus with the one split "valid"; UsageError when there are none.

    A reply without text is none; a pair without a tweet is left out.
    """
    first = next(texts, None)
    if first is None:
        raise UsageError("no pairs to evaluate: the input holds none")
    storage.make_dir(storage.join(folder, "valid"))
    tables = chain.from_iterable(_tables(part, tokenizer, max_len) for part in chain([first], texts))
    file = "valid/00000.parquet"
    entry = {"file": file, **encoded.write_shard(storage.join(folder, file), tables, tokenizer.template)}
    encoded.write_index(
        folder, corpus="scratch", shards={"valid": [entry]}, tokenizer=tokenizer.fingerprint,
        template=tokenizer.template, max_len=max_len,
    )  # fmt: skip
    return encoded.EncodedCorpus.open(folder)


def usable(texts: Texts) -> Iterator[tuple[str, str | None]]:
    """Yield the pairs that `encode_pairs` encodes, in order: its rows."""
    return ((t, r or None) for t, r in zip(*texts, strict=True) if t)


def _tables(texts: Texts, tokenizer: Tokenizer, max_len: int):
    tweets, replies = texts
    size = ROW_GROUP_ROWS
    for at in range(0, len(tweets), size):
        rows = list(usable((tweets[at : at + size], replies[at : at + size])))
        if rows:
            orig, reply = (tokenizer.encode_batch(side, max_len) for side in zip(*rows, strict=True))
            yield encoded.make_table(orig, reply, tokenizer.template)


def chosen_samples(
    corpus: encoded.EncodedCorpus, split: str, rows: Sequence[int], masking: MaskingSettings, seed: int
) -> MicroBatch:
    """Return both orders of chosen rows, masked as in `evaluation_batches`, as one micro-batch sorted by length."""
    counts = corpus.split(split)
    groups = np.cumsum([0, *(group.rows for group in counts.row_groups)])
    needed = np.unique(np.searchsorted(groups, np.asarray(rows), side="right") - 1)
    read = rows_of.read_rows(corpus, counts, needed.tolist())
    row, direction = read.samples()
    chosen = np.flatnonzero(np.isin(read.number[row], np.asarray(rows)))
    chosen = chosen[np.argsort(read.lengths[row[chosen]], kind="stable")]
    row, direction = row[chosen], direction[chosen]
    alone = dict.fromkeys(COUNTS, 0) | {"epoch": EVALUATION_EPOCH, "n_masked": UNKNOWN, "n_samples": len(chosen)}
    packed = pack(
        read,
        row,
        direction,
        np.full(len(chosen), EVALUATION_EPOCH),
        sizes=np.array([len(chosen)]),
        counts={name: np.array([value]) for name, value in alone.items() if name != "width"},
        seed=seed,
        masking=masking,
        template=corpus.template,
    )
    return next(packed.micro_batches())


def read_texts(source: str, cleaning: Callable[[str], str]) -> Iterator[list[str]]:
    """Yield lists of cleaned texts: each line of a text file (plain, gzip, zstd), "" where nothing is left.

    Of a corpus (its valid split) or of files of pairs (TSV, CSV, JSON lines, Parquet): tweets and replies in turn,
    never with the original's cleaning. UsageError when there is no such file.
    """
    path = storage.absolute(source)
    if holds_pairs(path):
        if not isinstance(cleaning, Cleaning):
            raise UsageError(f"{source}: pairs are read with this program's cleaning; give a text file of raw lines")
        for texts in read_pairs(source, cleaning):
            yield [side for pair in zip(*texts, strict=True) for side in pair if side is not None]
        return
    for lines in text_lines(path):
        yield [cleaning(line) for line in lines]


class OrderedRows(NamedTuple):
    """Pairs with the label 1 where the second text replies to the first, 0 where the first replies to the second."""

    firsts: list[str]
    seconds: list[str]
    labels: list[int]


def read_ordered(source: str, cleaning: Callable[[str], str]) -> OrderedRows:
    """Read the rows FIRST, SECOND, LABEL of a TSV (never quoted), cleaned; a header is recognised.

    UsageError, with the line's number, for a line of another form, and when there are none.
    """
    rows = OrderedRows([], [], [])
    number = 0
    for lines in text_lines(storage.absolute(source)):
        for line in lines:
            number += 1
            cells = [cell.strip() for cell in line.split("\t")]
            if number == 1 and len(cells) == 3 and not cells[2].isdigit():
                continue
            texts = [cleaning(cell) for cell in cells[:2]]
            if len(cells) != 3 or cells[2] not in ("0", "1") or not all(texts):
                raise UsageError(
                    f"{source}: line {number}: expected FIRST, SECOND and 1 (the second replies to the first) or 0, "
                    f"two tabs between them; found {len(cells)} cells: {line[:80]!r}"
                )
            rows.firsts.append(texts[0])
            rows.seconds.append(texts[1])
            rows.labels.append(int(cells[2]))
    if not rows.labels:
        raise UsageError(f"{source}: no rows; expected FIRST, SECOND and 1 or 0, two tabs between them")
    return rows


def token_counts(texts: Iterator[Texts], tokenizer: Tokenizer) -> np.ndarray:
    """Count how often each id occurs in `texts`, int64 [V]."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for sides in texts:
        for side in sides:
            counts += np.bincount(tokenizer.encode_batch(side)[0], minlength=len(counts))
    return counts
