"""Small worlds for tests: an encoded corpus of random ids, and a text corpus of given pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twilbert import storage
from twilbert.data import checksums
from twilbert.data.corpus import corpus as corpora
from twilbert.data.encoded.format import EncodedCorpus, make_table, write_index, write_shard
from twilbert.data.tokenizer.template import Template, ours


def make_encoded(
    folder: str | Path,
    rows_per_row_group: Sequence[int] = (40, 40, 40, 25),
    single_share: float = 0.1,
    vocab_size: int = 200,
    seed: int = 0,
    n_shards: int = 2,
    valid_rows: int | Sequence[int] = 30,
    max_len: int = 128,
    lengths: tuple[int, int] = (1, 20),
    unk_share: float = 0.02,
    template: Template | None = None,
) -> EncodedCorpus:
    """Write an encoded corpus into `folder` and open it.

    `rows_per_row_group` are the train split's row groups in file order, dealt in contiguous runs to `n_shards` files;
    `valid_rows` is one row group or a list of them. A text has lengths[0]..lengths[1] tokens (uniform), each an
    ordinary id, or [UNK] with probability `unk_share`; `single_share` of the rows have no reply.
    """
    rng = np.random.default_rng(seed)
    template = template or ours(vocab_size)

    def ragged(lengths_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        offsets = np.concatenate([[0], np.cumsum(lengths_R)]).astype(np.int64)
        flat = template.drawn(rng.integers(0, template.n_ordinary, offsets[-1]))
        flat[rng.random(len(flat)) < unk_share] = template.unk
        return flat.astype(template.dtype), offsets

    def tables(groups: Sequence[int]):
        for rows in groups:
            orig_R, reply_R = rng.integers(lengths[0], lengths[1] + 1, (2, rows))
            reply_R[rng.random(rows) < single_share] = 0
            yield make_table(ragged(np.minimum(orig_R, max_len)), ragged(np.minimum(reply_R, max_len)), template)

    def shard(split: str, number: int, groups: Sequence[int]) -> dict:
        file = f"{split}/{number:05d}.parquet"
        (Path(folder) / split).mkdir(parents=True, exist_ok=True)
        return {"file": file, **write_shard(str(Path(folder) / file), tables(groups), template)}

    dealt = [part.tolist() for part in np.array_split(np.asarray(rows_per_row_group), n_shards)]
    valid = [valid_rows] if isinstance(valid_rows, int) else list(valid_rows)
    write_index(
        str(folder),
        tokenizer=f"{seed:064x}",
        template=template,
        max_len=max_len,
        corpus=f"{seed:016x}",
        shards={
            "train": [shard("train", i, groups) for i, groups in enumerate(dealt)],
            "valid": [shard("valid", 0, valid)],
        },
    )
    return EncodedCorpus.open(str(folder))


def make_corpus(
    folder: str | Path,
    train: Sequence[tuple[str, str | None]],
    valid: Sequence[tuple[str, str | None]] = (("hola", "adiós"),),
    n_shards: int = 1,
    row_group_rows: int = 8_192,
) -> corpora.Corpus:
    """Write a corpus folder of (tweet, reply or None) rows, the train split in `n_shards` files, and open it."""
    splits, entries = {}, []
    for split, rows, count in (("train", train, n_shards), ("valid", valid, 1)):
        (Path(folder) / split).mkdir(parents=True)
        shards = []
        for number, chosen in enumerate(np.array_split(np.arange(len(rows)), count)):
            columns = [
                [f"{split}{i}" for i in chosen],
                [rows[i][0] for i in chosen],
                [None if rows[i][1] is None else f"{split}{i}r" for i in chosen],
                [rows[i][1] for i in chosen],
            ]
            file = f"{split}/{number:05d}.parquet"
            table = pa.Table.from_arrays([pa.array(c, pa.string()) for c in columns], schema=corpora.SCHEMA)
            pq.write_table(table, Path(folder) / file, row_group_size=row_group_rows, compression="zstd")
            shards.append(corpora.Shard(file, len(chosen), storage.sha256_file(str(Path(folder) / file))))
        splits[split] = {"rows": len(rows), "shards": [vars(shard) for shard in shards]}
        entries += shards
    index = {"format": corpora.FORMAT, "id": corpora.corpus_id(entries), "cleaning": {}, "splits": splits}
    checksums.write_json(str(Path(folder) / "corpus.json"), index)
    return corpora.Corpus.open(str(folder))


def make_texts(n: int, seed: int = 0, n_words: int = 600) -> list[str]:
    """Cleaned texts of 3..14 Zipfian words of Spanish-looking syllables, with url, user, emoji and punctuation."""
    rng = np.random.default_rng(seed)
    syllables = ("ca", "ma", "pe", "lo", "ti", "ra", "nes", "dor", "qué", "ño", "bur", "la", "url", "ción", "us", "er")
    syllables = (*syllables, "jaja", "aa", "güi", "sá")
    words = ["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(n_words)]
    words += ["url", "user", "burla", "👩‍👩‍👧", "😂😂", "¡Ñandú!", "...", "#Éxito", "RT", "M&M"]
    weights = 1 / np.arange(1, len(words) + 1)
    rng.shuffle(words)
    return [
        " ".join(rng.choice(words, rng.integers(3, 15), p=weights / weights.sum())) + rng.choice(["", ".", "...", "!"])
        for _ in range(n)
    ]
