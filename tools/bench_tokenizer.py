"""Texts a second through our tokenizer, beside bare sentencepiece and the bare `tokenizers` library, one thread each.

    python tools/bench_tokenizer.py TOKENIZER FILE [--texts 200000] [--json FILE]

TOKENIZER is a folder that twilbert-vocab wrote; every tab-separated field of FILE is a text, cleaned first. "first
pass" starts with an empty memory of words, "second pass" meets the same words again, as most of a large corpus does.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sentencepiece
import tokenizers
from check_tokenizer import texts_of

from twilbert import cli, storage
from twilbert.data.text import clean
from twilbert.data.tokenizer import Tokenizer

_BATCH = 8_192  # a row group


def measure(encode: Callable[[list[str]], Any], batches: list[list[str]]) -> tuple[float, float]:
    """CPU seconds and wall seconds to encode all batches."""
    cpu, wall = time.process_time(), time.perf_counter()
    for batch in batches:
        encode(batch)
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> int:
    """Print the table, and write it where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("file", type=Path)
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--json", help="write the figures here too")
    args = parser.parse_args()
    texts = [text for text in map(clean, itertools.islice(texts_of(args.file), args.texts)) if text]
    batches = [texts[i : i + _BATCH] for i in range(0, len(texts), _BATCH)]
    ours = Tokenizer.load(args.tokenizer)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(Path(args.tokenizer) / "spm.model"))
    bare = tokenizers.Tokenizer.from_file(str(Path(args.tokenizer) / "tokenizer.json"))
    runs: list[tuple[str, Callable[[list[str]], Any]]] = [
        ("sentencepiece", lambda batch: processor.encode(batch, num_threads=1)),
        (
            "tokenizers encode_batch_fast",
            lambda b: [e.ids for e in bare.encode_batch_fast(b, add_special_tokens=False)],
        ),
        ("twilbert, first pass", ours.encode_batch),
        ("twilbert, second pass", ours.encode_batch),
    ]
    tokens = int(sum(len(ids) for ids in processor.encode(texts[:_BATCH]))) / len(texts[:_BATCH])
    rows = []
    for name, encode in runs:
        cpu, wall = measure(encode, batches)
        rows.append(
            {"encoder": name, "texts_per_cpu_s": round(len(texts) / cpu), "texts_per_s": round(len(texts) / wall)}
        )
    cli.table(("encoder", "texts per CPU-s", "texts per s"), [tuple(row.values()) for row in rows])
    print(f"{len(texts):,} texts, {tokens:.1f} tokens each")
    if args.json:
        figures = {"texts": len(texts), "tokens_per_text": tokens, "encoders": rows}
        storage.write_json_atomic(storage.absolute(args.json), figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
