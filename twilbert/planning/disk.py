"""Bytes on disk: the corpus as text and as ids, and what checkpoints keep."""

from __future__ import annotations

from typing import Any

from twilbert.data.encoded import EncodedCorpus
from twilbert.recipe import Recipe

TEXT_BYTES_TOKEN = 2.3
"""Of a corpus of generated tweets as zstd Parquet with its message ids; real text may take half as much again."""
ENCODED_BYTES_TOKEN = 2.0
"""Of token ids as zstd Parquet, counts included."""
_PAIRS = 1_000_000


def disk(
    recipe: Recipe, parameters: float, number: int, tokens_a_sample: float, encoded: EncodedCorpus | None
) -> dict[str, Any]:
    """Bytes by what they are for; without an encoded corpus those of a million pairs."""
    training = recipe.training
    model = number * parameters
    checkpoint = 12 * parameters + model
    every = training.save_keep_every
    kept = training.max_steps // every if every else 0
    counted = min(training.save_total_limit + 2, -(-training.max_steps // training.save_steps)) + kept
    if encoded is not None:
        pairs = sum(split.rows for split in encoded.splits)
        tokens = sum(split.tokens for split in encoded.splits)
        ids = float(sum(shard.size for split in encoded.splits for shard in split.shards))
    else:
        pairs, tokens = _PAIRS, _PAIRS * (tokens_a_sample - 3)
        ids = ENCODED_BYTES_TOKEN * tokens
    found = {
        "corpus_rows": pairs,
        "corpus_text": TEXT_BYTES_TOKEN * tokens,
        "corpus_encoded": ids,
        "checkpoint": checkpoint,
        "checkpoints_kept": counted,
        "checkpoints": counted * checkpoint,
        "model": model,
    }
    found["total"] = found["corpus_text"] + found["corpus_encoded"] + found["checkpoints"] + found["model"]
    return found
