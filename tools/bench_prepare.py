"""How fast `prepare` is and how much memory it takes, on generated pairs, beside pyarrow reading the same file.

    python -m tools.bench_prepare --work FOLDER [--pairs 2000000] [--cores 1,2] [--json OUT.json]

The command runs as a user runs it, once on each number of cores; its CPU seconds are those of all its processes, Ray's
included. pyarrow.csv parses the same file into columns and does nothing else: what reading alone costs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from tools.watch import run_module
from twilbert import cli
from twilbert.sample import sample_pairs


def generated(pairs: int, work: Path) -> Path:
    """The input, made when it is missing."""
    raw = work / f"sample-{pairs}" / "pairs.tsv"
    if not raw.exists():
        cli.say(f"generating {pairs:,} pairs")
        sample_pairs(str(raw.parent), pairs, overwrite=True)
    return raw


def prepare(raw: Path, out: Path, cores: int) -> dict[str, Any]:
    """One run on that many cores."""
    shutil.rmtree(out, ignore_errors=True)
    took = run_module(["twilbert.prepare", str(raw), "--out", str(out), "--num-cpus", str(cores)], cores)
    info = json.loads((out / "corpus.json").read_text())
    read, accounted = info["lines_read"], info["kept"] + sum(info["dropped"].values()) + info["rejected"]
    if read != accounted:
        raise SystemExit(f"{read:,} lines read, {accounted:,} kept, dropped or rejected")
    return {
        "cores": cores, "seconds": took.wall, "cpu_seconds": took.cpu, "pairs": read, "kept": info["kept"],
        "pairs_per_second": read / took.wall, "pairs_per_cpu_second": read / took.cpu, "peak_mb": took.peak_mb,
    }  # fmt: skip


def parsed_alone(raw: Path) -> dict[str, float]:
    """pyarrow.csv over the same file."""
    parse = pacsv.ParseOptions(delimiter="\t", quote_char=False)
    convert = pacsv.ConvertOptions(column_types=dict.fromkeys(("ORIG_ID", "REPLY_ID"), pa.string()))
    cpu, began = time.process_time(), time.monotonic()
    rows = sum(batch.num_rows for batch in pacsv.open_csv(raw, parse_options=parse, convert_options=convert))
    seconds = time.monotonic() - began
    return {"pairs_per_second": rows / seconds, "pairs_per_cpu_second": rows / (time.process_time() - cpu)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2_000_000)
    parser.add_argument("--work", type=Path, required=True, help="folder for the input and the corpus; inputs are kept")
    parser.add_argument("--cores", default=[1, 2], type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    raw = generated(args.pairs, args.work)
    runs = [prepare(raw, args.work / f"corpus-{args.pairs}", cores) for cores in args.cores]
    alone = parsed_alone(raw)
    rows = [
        [f"prepare, {run['cores']} cores", f"{run['pairs_per_second']:,.0f}", f"{run['pairs_per_cpu_second']:,.0f}",
         f"{run['seconds']:.1f}", max(run["peak_mb"].values())]
        for run in runs
    ]  # fmt: skip
    rows.append(["pyarrow.csv", f"{alone['pairs_per_second']:,.0f}", f"{alone['pairs_per_cpu_second']:,.0f}", "", ""])
    cli.table(["what", "pairs/s", "pairs/CPU-s", "seconds", "largest process, MiB"], rows)
    if args.json:
        figures = {"pairs": args.pairs, "bytes": raw.stat().st_size, "prepare": runs, "pyarrow.csv": alone}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"written: {args.json}")


if __name__ == "__main__":
    main()
