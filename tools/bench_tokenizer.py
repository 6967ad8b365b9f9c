"""Texts a second through our tokenizer, beside its model and the bare `tokenizers` library, one thread each.

    python tools/bench_tokenizer.py TOKENIZER FILE [--texts 200000] [--json FILE]

TOKENIZER is a folder that twilbert-vocab wrote (its model: sentencepiece) or one of BERT's word pieces (beside a plain
Python loop of the same algorithm); ids are compared too. Every tab-separated field of FILE is a text, cleaned first.
"first pass" starts with an empty memory of words, "second pass" meets the same words again, as most of a large corpus
does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizers
from check_tokenizer import texts_of

from twilbert import cli, storage
from twilbert.data.text import clean
from twilbert.data.tokenizer import UNK, Tokenizer

_BATCH = 8_192  # a row group


def measure(encode: Callable[[list[str]], Any], batches: list[list[str]]) -> tuple[float, float]:
    """CPU seconds and wall seconds to encode all batches."""
    cpu, wall = time.process_time(), time.perf_counter()
    for batch in batches:
        encode(batch)
    return time.process_time() - cpu, time.perf_counter() - wall


class PlainWordPiece:
    """BERT's WordPiece (Devlin et al. 2018) as one writes it in Python: a character, then a piece, at a time."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self._vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        return [i for word in self._words(text) for i in self._pieces(word)]

    def _words(self, text: str) -> list[str]:
        out = []
        for char in unicodedata.normalize("NFD", text):
            category = unicodedata.category(char)
            if (
                category == "Mn"
                or char in "\0\ufffd"
                or (category in ("Cc", "Cf", "Co", "Cn") and char not in "\t\n\r")
            ):
                continue
            code = ord(char)
            ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
            chinese = 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0xF900 <= code <= 0xFAFF
            alone = ascii_mark or category[0] == "P" or chinese or 0x20000 <= code <= 0x2FA1F
            out.append(f" {char} " if alone else char.lower())
        return "".join(out).split()

    def _pieces(self, word: str) -> list[int]:
        if len(word) > 200:
            return [UNK]
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = word[start:end] if start == 0 else "##" + word[start:end]
                if piece in self._vocabulary:
                    pieces.append(self._vocabulary[piece])
                    start = end
                    break
            else:
                return [UNK]
        return pieces


def reference(folder: Path) -> tuple[str, Callable[[list[str]], list[list[int]]]]:
    """What the folder's tokenizer is measured beside, one thread: its name, and texts to ids."""
    model = folder / "spm.model"
    if not model.exists():
        spec = json.loads((folder / "tokenizer.json").read_text())
        plain = PlainWordPiece(spec["model"]["vocab"])
        return "plain Python loop", lambda batch: [plain.encode(text) for text in batch]
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return "sentencepiece", lambda batch: processor.encode(batch, num_threads=1)


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
    beside, encode_beside = reference(Path(args.tokenizer))
    bare = tokenizers.Tokenizer.from_file(str(Path(args.tokenizer) / "tokenizer.json"))
    runs: list[tuple[str, Callable[[list[str]], Any]]] = [
        (beside, encode_beside),
        (
            "tokenizers encode_batch_fast",
            lambda b: [e.ids for e in bare.encode_batch_fast(b, add_special_tokens=False)],
        ),
        ("twilbert, first pass", ours.encode_batch),
        ("twilbert, second pass", ours.encode_batch),
    ]
    rows = []
    for name, encode in runs:
        cpu, wall = measure(encode, batches)
        rows.append(
            {"encoder": name, "texts_per_cpu_s": round(len(texts) / cpu), "texts_per_s": round(len(texts) / wall)}
        )
    ids, offsets = ours.encode_batch(texts)
    tokens = len(ids) / len(texts)
    expected = itertools.chain.from_iterable(map(encode_beside, batches))
    different = sum(
        ids[a:b].tolist() != want for (a, b), want in zip(itertools.pairwise(offsets), expected, strict=True)
    )
    cli.table(("encoder", "texts per CPU-s", "texts per s"), [tuple(row.values()) for row in rows])
    print(f"{len(texts):,} texts, {tokens:.1f} tokens each; {different} with other ids than {beside}")
    if args.json:
        figures = {"texts": len(texts), "tokens_per_text": tokens, "different": different, "encoders": rows}
        storage.write_json_atomic(storage.absolute(args.json), figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
