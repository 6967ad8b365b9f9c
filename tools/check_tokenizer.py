"""Compare a tokenizer's ids with sentencepiece's on every text of files, and print the differences by file.

    python tools/check_tokenizer.py TOKENIZER FILE_OR_FOLDER… [--json FILE]
    python tools/check_tokenizer.py --corpus CORPUS [--type unigram] [--vocab-size 30000] FILE_OR_FOLDER…

TOKENIZER is a folder that twilbert-vocab wrote; with --corpus one is trained first, in a temporary folder. Every
tab-separated field of every line is a text. Columns: `different`: sentencepiece given clean(text) gives other ids than
the tokenizer given clean(text); `changed`: texts that the normaliser in tokenizer.json still changes after clean();
`different raw`: sentencepiece given the normalised raw text against the tokenizer given the raw text; `[UNK]`: texts
with an unknown token. Exit code 1 when a BPE tokenizer differs anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from twilbert import cli, storage
from twilbert.data.text import clean
from twilbert.data.tokenizer import UNK, Tokenizer
from twilbert.data.tokenizer_json import text_normaliser
from twilbert.vocab import compare, vocab

_BATCH = 20_000
_KINDS = (".tsv", ".csv", ".txt")


def files_under(paths: list[str]) -> list[Path]:
    """Every text file named, or anywhere under the folders named."""
    found: list[Path] = []
    for path in map(Path, paths):
        found += sorted(f for f in path.rglob("*") if f.suffix in _KINDS) if path.is_dir() else [path]
    return found


def texts_of(file: Path) -> Iterator[str]:
    """Every tab-separated field that is no number; bytes that are no UTF-8 become U+FFFD."""
    with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            yield from (field for field in line.rstrip("\r\n").split("\t") if field and not field.isdigit())


def check(file: Path, tokenizer: Tokenizer, model: bytes) -> dict[str, int]:
    """The counts of one file."""
    settings = tokenizer.settings
    normaliser = text_normaliser(lowercase=settings["lowercase"], strip_accents=settings["strip_accents"])
    folds = settings["lowercase"] or settings["strip_accents"]
    counts: dict[str, int] = dict.fromkeys(("texts", "different", "changed", "different_raw", "unknown"), 0)
    texts = texts_of(file)
    while batch := list(itertools.islice(texts, _BATCH)):
        cleaned = [clean(text) for text in batch]
        normalised = [normaliser.normalize_str(text) for text in cleaned]
        counts["texts"] += len(batch)
        counts["different"] += len(compare(model, tokenizer, cleaned, normalised if folds else cleaned))
        counts["changed"] += sum(a != b for a, b in zip(cleaned, normalised, strict=True))
        raw = [normaliser.normalize_str(text) for text in batch]
        counts["different_raw"] += len(compare(model, tokenizer, batch, raw))
        counts["unknown"] += int((tokenizer.encode_batch(batch)[0] == UNK).sum())
    return counts


def main() -> int:
    """Print the table; 1 when BPE differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="[TOKENIZER] FILE_OR_FOLDER")
    parser.add_argument("--corpus", help="train a tokenizer on this corpus first")
    parser.add_argument("--type", default="bpe")
    parser.add_argument("--vocab-size", type=int, default=30_000)
    parser.add_argument("--json", help="write the counts here too")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if args.corpus:
            folder = storage.join(stack.enter_context(tempfile.TemporaryDirectory()), "tokenizer")
            vocab(args.corpus, folder, vocab_size=args.vocab_size, model_type=args.type)
        else:
            folder = args.paths.pop(0)
        tokenizer, model = Tokenizer.load(folder), storage.read_bytes(storage.join(folder, "spm.model"))
        results = {str(file): check(file, tokenizer, model) for file in files_under(args.paths)}
    results["all"] = {key: sum(row[key] for row in results.values()) for key in next(iter(results.values()))}
    cli.table(
        ("file", "texts", "different", "changed", "different raw", "[UNK]"),
        [(name, *row.values()) for name, row in results.items()],
    )
    if args.json:
        storage.write_json_atomic(storage.absolute(args.json), {"type": tokenizer.settings["type"], "files": results})
    differs = results["all"]["different"] + results["all"]["different_raw"]
    return 1 if differs and tokenizer.settings["type"] == "bpe" else 0


if __name__ == "__main__":
    raise SystemExit(main())
