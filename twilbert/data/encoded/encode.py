"""Encode a corpus' texts as token ids on Ray Data: one task a shard, one row group in memory at a time.

    CORPUS/train/00000.parquet ─ row group ─▶ encode both texts ─ row group ─▶ encoded/<fingerprint>/train/00000.parquet

Ray must be running: the verb `encode` starts or joins one, `pretrain` has its own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from twilbert import outputs, storage
from twilbert.cluster.ray_errors import user_errors
from twilbert.data.cleaning import recorded
from twilbert.data.corpus import corpus as corpora
from twilbert.data.corpus.corpus import Corpus, Shard, read_shard
from twilbert.data.encoded import format as layout
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.errors import TwilbertError, UsageError

MAX_MAX_LEN = 65_535  # lengths are stored as uint16


def find(corpus: Corpus, tokenizer: Tokenizer, max_len: int) -> EncodedCorpus | None:
    """Return the encoded corpus, or None where it does not exist yet; its shards are not compared.

    UsageError for a `max_len` out of bounds; TwilbertError where the index is damaged.
    """
    if not 1 <= max_len <= MAX_MAX_LEN:
        raise UsageError(f"--max-len {max_len}: must be at least 1 and at most {MAX_MAX_LEN} tokens")
    path, fingerprint = _target(corpus, tokenizer, max_len)
    if not storage.exists(storage.join(path, layout.INDEX_FILE)):
        return None
    encoded = EncodedCorpus.open(path)
    if encoded.fingerprint != fingerprint:
        raise TwilbertError(
            f"{path}: holds the encoding {encoded.fingerprint}; delete it and run twilbert-encode again"
        )
    return encoded


def _target(corpus: Corpus, tokenizer: Tokenizer, max_len: int) -> tuple[str, str]:
    """The folder of the corpus' ids under this tokenizer and longest text, and their fingerprint."""
    fingerprint = layout.fingerprint(tokenizer.fingerprint, max_len, corpus.id)
    return storage.join(corpus.path, "encoded", fingerprint), fingerprint


def encode_corpus(
    corpus: Corpus, tokenizer: Tokenizer, max_len: int, report: Callable[[int, int], None] = lambda done, shards: None
) -> EncodedCorpus:
    """Encode every shard on the running Ray into a new folder, which locally appears whole or not at all.

    `report(done, shards)` is called after each shard. TwilbertError names a shard that cannot be read, or a full disk.
    """
    import ray
    import ray.data

    target, _ = _target(corpus, tokenizer, max_len)
    before = (layout.INDEX_FILE, *corpora.files_before(corpus.path)[1:])
    with outputs.new_folder(target, "encode", overwrite=True, before=before) as out:
        for split in corpus.splits:
            storage.make_dir(storage.join(out, split))
        jobs = [
            {"source": corpus.shard_path(shard), "shard": vars(shard), "out": out, "max_len": max_len}
            for split in corpus.splits
            for shard in corpus.shards(split)
        ]
        entries: dict[str, Any] = {}
        if jobs:
            work = functools.partial(_encode_job, fingerprint=tokenizer.fingerprint, tokenizer=ray.put(tokenizer))
            tasks = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map(work, num_cpus=1)
            with user_errors(f"{corpus.path}: encoding"):
                for entry in tasks.iter_rows():
                    entries[entry["file"]] = entry
                    report(len(entries), len(jobs))
        layout.write_index(
            out,
            tokenizer=tokenizer.fingerprint,
            template=tokenizer.template,
            max_len=max_len,
            corpus=corpus.id,
            cleaning=recorded(corpus.cleaning).name,
            shards={s: [_plain(entries[shard.file]) for shard in corpus.shards(s)] for s in corpus.splits},
        )
    return EncodedCorpus.open(target)


def encode_shard(source: str, shard: Shard, target: str, tokenizer: Tokenizer, max_len: int) -> dict[str, Any]:
    """Encode the corpus' `shard` at `source` by row groups; return its entry for encoded.json (without `file`)."""
    columns = ("orig_text", "reply_text")
    tables = (
        layout.make_table(
            tokenizer.encode_batch(texts.column("orig_text"), max_len),
            tokenizer.encode_batch(texts.column("reply_text"), max_len),
            tokenizer.template,
        )
        for texts in read_shard(source, shard, columns)
    )
    return layout.write_shard(target, tables, tokenizer.template)


def _encode_job(job: dict[str, Any], *, fingerprint: str, tokenizer: Any) -> dict[str, Any]:
    """Encode one shard in a Ray Data task; return its entry for encoded.json."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a task has one CPU
    shard = Shard(**job["shard"])
    target = storage.join(job["out"], shard.file)
    return {"file": shard.file} | encode_shard(
        job["source"], shard, target, _fetch(fingerprint, tokenizer), job["max_len"]
    )


@functools.lru_cache(maxsize=2)
def _fetch(fingerprint: str, shared: Any) -> Tokenizer:
    """The tokenizer of this worker process, cached together with its word cache."""
    import ray

    return ray.get(shared)


def _plain(value: Any) -> Any:
    """A value out of an Arrow row as plain JSON types."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return value
    return [_plain(item) for item in value] if hasattr(value, "__len__") else int(value)
