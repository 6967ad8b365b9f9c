"""How fast `encode` is beside the bare tokenizer, on the same texts in one run, and how it grows with cores.

    python -m tools.bench_encode CORPUS TOKENIZER [--max-len 128] [--cores 1,2] [--repeats 3] [--json OUT.json]

    chain         what a worker of the command does: read a shard's texts, tokenize, cut, write ids as Parquet
    tokenizers    the tokenizers library alone over the same texts, in memory, ids as Python lists
    command       twilbert-encode as a user runs it, on each number of cores, with Ray's start in it

Chain and tokenizer take turns in one process, one thread each, a new tokenizer (with nothing remembered) every turn;
figures are medians of CPU seconds. Exit 1 when the chain has less than 70 % of the tokenizer's rate.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before the library starts its threads

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import tokenizers

from tools.watch import run_module
from twilbert import cli
from twilbert.data import encoding
from twilbert.data.corpus import Corpus, Shard, read_shard
from twilbert.data.tokenizer import Tokenizer

BOUND = 0.70
COLUMNS = ("orig_text", "reply_text")


def sources(corpus: Corpus) -> dict[str, Shard]:
    """The shards of all splits by their paths."""
    return {corpus.shard_path(shard): shard for split in corpus.splits for shard in corpus.shards(split)}


def chain(shards: dict[str, Shard], folder: Path, max_len: int, into: Path) -> float:
    """CPU seconds of encoding the shards."""
    tokenizer = Tokenizer.load(str(folder))
    began = time.process_time()
    for number, (path, shard) in enumerate(shards.items()):
        encoding.encode_shard(path, shard, str(into / f"{number}.parquet"), tokenizer, max_len)
    return time.process_time() - began


def bare(batches: list[list[str]], folder: Path) -> float:
    """CPU seconds of the library over the texts."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    began = time.process_time()
    for batch in batches:
        _ = [each.ids for each in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
    return time.process_time() - began


def command(corpus: Path, tokenizer: Path, max_len: int, cores: int, into: Path) -> dict[str, float]:
    """One run of twilbert-encode over a copy of the corpus without its encodings."""
    copy = into / "corpus"
    shutil.copytree(corpus, copy, ignore=shutil.ignore_patterns("encoded"))
    arguments = ["twilbert.encode", str(copy), "--tokenizer", str(tokenizer), "--max-len", str(max_len)]
    took = run_module(arguments, cores)
    shutil.rmtree(copy)
    return {"cores": cores, "seconds": took.wall, "cpu_seconds": took.cpu}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--max-len", type=int, default=128)
    parser.add_argument("--cores", default=[1, 2], type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    shards = sources(Corpus.open(str(args.corpus)))
    batches = [
        [text for text in group.column(name).to_pylist() if text]
        for path, shard in shards.items()
        for group in read_shard(path, shard, COLUMNS)
        for name in COLUMNS
    ]
    texts = sum(map(len, batches))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        turns = [
            (chain(shards, args.tokenizer, args.max_len, folder), bare(batches, args.tokenizer))
            for _ in range(args.repeats)
        ]
        runs = [command(args.corpus, args.tokenizer, args.max_len, cores, folder) for cores in args.cores]
    ours, alone = (statistics.median(column) for column in zip(*turns, strict=True))
    ratio = alone / ours
    rows: list[list[Any]] = [["chain", f"{texts / ours:,.0f}", ""], ["tokenizers", f"{texts / alone:,.0f}", ""]]
    rows += [
        [f"command, {run['cores']} cores", f"{texts / run['cpu_seconds']:,.0f}", f"{texts / run['seconds']:,.0f}"]
        for run in runs
    ]
    cli.table(["what", "texts/CPU-s", "texts/s"], rows)
    verdict = "kept" if ratio >= BOUND else "MISSED"
    print(f"{texts:,} texts in {len(shards)} shards; the chain has {ratio:.2f} of the tokenizer's rate: "
          f"at least {BOUND:g} {verdict}")  # fmt: skip
    if args.json:
        figures = {"texts": texts, "chain_cpu_seconds": ours, "tokenizers_cpu_seconds": alone, "ratio": ratio}
        args.json.write_text(json.dumps(figures | {"turns": turns, "command": runs}, indent=1) + "\n")
        print(f"written: {args.json}")
    return 0 if ratio >= BOUND else 1


if __name__ == "__main__":
    raise SystemExit(main())
