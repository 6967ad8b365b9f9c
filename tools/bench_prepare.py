"""How fast `prepare` is and how much memory it takes, on generated pairs, beside pyarrow reading the same file.

    python -m tools.bench_prepare --work FOLDER [--pairs 2000000] [--cores 1,2] [--json OUT.json]
    python -m tools.bench_prepare --work FOLDER --tweets 2000000 [--replies 0.3] [--files 16] …

With --tweets the input is a Twitter dump of API v2: pages of 100 tweets, a share of them replies, whose tweets stand in
other files or, of some, nowhere; the pairs that are there are counted as it is generated. Else it is pairs.

The command runs as a user runs it, once on each number of cores; its CPU seconds are those of all its processes, Ray's
included. pyarrow.csv parses the pairs' file into columns and does nothing else: what reading alone costs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from tools.watch import run_module
from twilbert import cli
from twilbert.sample import sample_pairs

_PAGE = 100  # tweets


def generated(pairs: int, work: Path) -> Path:
    """The input, made when it is missing."""
    raw = work / f"sample-{pairs}" / "pairs.tsv"
    if not raw.exists():
        cli.say(f"generating {pairs:,} pairs")
        sample_pairs(str(raw.parent), pairs, overwrite=True)
    return raw


@dataclass
class Dump:
    """What a generated dump holds."""

    tweets: int
    replies: int
    pairs: int  # replies whose tweet is there
    bytes: int


def generated_dump(tweets: int, replies: float, files: int, work: Path) -> tuple[Path, Dump]:
    """A dump of that many tweets in so many files, made when it is missing."""
    folder = work / f"dump-{tweets}-{replies:g}-{files}"
    index = folder / "dump.counts"
    if not index.exists():
        cli.say(f"generating {tweets:,} tweets")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        dump = Dump(tweets, 0, 0, 0)
        draw = random.Random(1)
        syllables = [a + b for a in "bcdfglmnprst" for b in "aeiou"]
        words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(20_000)]
        for file in range(files):
            with (folder / f"{file:03d}.jsonl").open("w", encoding="utf-8") as stream:
                of_file = range(file, tweets, files)
                for start in range(0, len(of_file), _PAGE):
                    page = [
                        _tweet(i, tweets, replies, files, draw, words, dump) for i in of_file[start : start + _PAGE]
                    ]
                    stream.write(json.dumps({"data": page, "meta": {"result_count": len(page)}}) + "\n")
        dump.bytes = sum(path.stat().st_size for path in folder.iterdir())
        index.write_text(json.dumps(vars(dump)))
    return folder, Dump(**json.loads(index.read_text()))


def _tweet(
    i: int, tweets: int, replies: float, files: int, draw: random.Random, words: list[str], dump: Dump
) -> dict[str, Any]:
    """Tweet number `i` as the API gives it; a reply's parent is in another file, or (one in ten) in none."""
    tweet: dict[str, Any] = {
        "id": str(_id(i)), "text": " ".join(draw.choices(words, k=draw.randint(4, 30))), "author_id": str(i % 9_973),
        "conversation_id": str(_id(i)), "created_at": "2020-03-01T12:00:00.000Z", "lang": "es",
        "public_metrics": {"retweet_count": i % 7, "reply_count": i % 3, "like_count": i % 11, "quote_count": 0},
        "entities": {"mentions": [{"start": 0, "end": 9, "username": "ana_maria", "id": str(i % 9_967)}]},
        "source": "Twitter for Android", "possibly_sensitive": False, "reply_settings": "everyone",
    }  # fmt: skip
    if draw.random() < replies:
        parent = draw.randrange(tweets)
        parent += parent % files == i % files  # the next tweet is in the next file
        is_there = draw.random() < 0.9 and parent < tweets
        dump.replies += 1
        dump.pairs += is_there
        tweet["referenced_tweets"] = [{"type": "replied_to", "id": str(_id(parent if is_there else tweets + i))}]
    return tweet


def _id(i: int) -> int:
    return 1_230_000_000_000_000_000 + (i << 22)


def prepare(raw: Path, out: Path, cores: int, dump: Dump | None = None) -> dict[str, Any]:
    """One run on that many cores."""
    shutil.rmtree(out, ignore_errors=True)
    form = ["--format", "twitter"] if dump else []
    took = run_module(["twilbert.prepare", str(raw), *form, "--out", str(out), "--num-cpus", str(cores)], cores)
    info = json.loads((out / "corpus.json").read_text())
    read, accounted = info["lines_read"], info["kept"] + sum(info["dropped"].values()) + info["rejected"]
    if read != accounted:
        raise SystemExit(f"{read:,} rows read, {accounted:,} kept, dropped or rejected")
    if dump:
        counts, read = info["twitter"], dump.tweets
        cli.say(f"pairs there: {dump.pairs:,}, pairs found: {counts['pairs']:,}")
        if (counts["tweets"], counts["replies"], counts["pairs"]) != (dump.tweets, dump.replies, dump.pairs):
            raise SystemExit(f"generated {dump}, prepare counts {counts}")
    return {
        "cores": cores, "seconds": took.wall, "cpu_seconds": took.cpu, "rows": read, "kept": info["kept"],
        "rows_per_second": read / took.wall, "rows_per_cpu_second": read / took.cpu, "peak_mb": took.peak_mb,
        "load": os.getloadavg()[0],
    }  # fmt: skip


def parsed_alone(raw: Path) -> dict[str, float]:
    """pyarrow.csv over the same file."""
    parse = pacsv.ParseOptions(delimiter="\t", quote_char=False)
    convert = pacsv.ConvertOptions(column_types=dict.fromkeys(("ORIG_ID", "REPLY_ID"), pa.string()))
    cpu, began = time.process_time(), time.monotonic()
    rows = sum(batch.num_rows for batch in pacsv.open_csv(raw, parse_options=parse, convert_options=convert))
    seconds = time.monotonic() - began
    return {"rows_per_second": rows / seconds, "rows_per_cpu_second": rows / (time.process_time() - cpu)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2_000_000)
    parser.add_argument("--work", type=Path, required=True, help="folder for the input and the corpus; inputs are kept")
    parser.add_argument("--tweets", type=int, default=0, help="measure a Twitter dump of so many instead of pairs")
    parser.add_argument("--replies", type=float, default=0.3, help="their share among the tweets")
    parser.add_argument("--files", type=int, default=16, help="of the dump")
    parser.add_argument("--cores", default=[1, 2], type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    if args.tweets:
        raw, dump = generated_dump(args.tweets, args.replies, args.files, args.work)
        size, rows = dump.bytes, args.tweets
    else:
        raw, dump = generated(args.pairs, args.work), None
        size, rows = raw.stat().st_size, args.pairs
    runs = [prepare(raw, args.work / f"corpus-{rows}", cores, dump) for cores in args.cores]
    figures: dict[str, Any] = {"rows": rows, "bytes": size, "prepare": runs}
    table = [
        [f"prepare, {run['cores']} cores", f"{run['rows_per_second']:,.0f}", f"{run['rows_per_cpu_second']:,.0f}",
         f"{run['seconds']:.1f}", f"{run['load']:.1f}", " ".join(f"{k} {v}" for k, v in [*run["peak_mb"].items()][:4])]
        for run in runs
    ]  # fmt: skip
    if dump is None:
        alone = figures["pyarrow.csv"] = parsed_alone(raw)
        table.append(
            ["pyarrow.csv", f"{alone['rows_per_second']:,.0f}", f"{alone['rows_per_cpu_second']:,.0f}", "", "", ""]
        )
    what = "tweets" if dump else "pairs"
    cli.table(["what", f"{what}/s", f"{what}/CPU-s", "seconds", "load", "peak MiB of processes"], table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"written: {args.json}")


if __name__ == "__main__":
    main()
