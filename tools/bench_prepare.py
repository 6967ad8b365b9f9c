"""How fast `prepare` is and how much memory it takes, on generated pairs, beside pyarrow reading the same file.

    python tools/bench_prepare.py --pairs 5000000 --work /tmp/bench

Memory is what a process holds alone plus its share of files it maps: RSS without shared memory, where Ray's object
store lies, sampled every half second over the process tree (Ray's daemons included, whatever their parent).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.csv as pacsv

from twilbert import cli
from twilbert.sample import sample_pairs


class Watch(threading.Thread):
    """Samples a process and all that came from it: peak memory of any one, and CPU seconds of all."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root = psutil.Process(pid)
        self.done = threading.Event()
        self.peak: dict[str, int] = {}  # by kind of process
        self.cpu: dict[int, float] = {}  # of each process seen
        self._known: dict[int, psutil.Process] = {pid: self.root}

    def run(self) -> None:
        while not self.done.wait(0.5):
            self._sample()

    def _sample(self) -> None:
        for process in list(self._known.values()):
            try:
                for child in process.children():
                    self._known.setdefault(child.pid, child)
            except psutil.Error:
                continue
        for pid, process in self._known.items():
            try:
                memory, times = process.memory_info(), process.cpu_times()
                name = process.cmdline()[0] if process.cmdline() else process.name()
            except psutil.Error:
                continue
            self.cpu[pid] = times.user + times.system
            kind = re.split(r"[.(]", name.removeprefix("ray::"))[0] if name.startswith("ray::") else Path(name).name
            self.peak[kind] = max(self.peak.get(kind, 0), memory.rss - memory.shared)


def bench(pairs: int, work: Path, num_cpus: int | None) -> dict:
    """Generate when missing, prepare in a process of its own, and return the figures."""
    raw = work / f"sample-{pairs}" / "pairs.tsv"
    if not raw.exists():
        started = time.monotonic()
        sample_pairs(str(raw.parent), pairs, overwrite=True)
        cli.say(f"generated {pairs:,} pairs in {time.monotonic() - started:.0f} s")
    out = work / f"corpus-{pairs}"
    shutil.rmtree(out, ignore_errors=True)
    options = ["--num-cpus", str(num_cpus)] if num_cpus else []
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "twilbert.prepare", str(raw), "--out", str(out), *options], env=environment
    )
    watch = Watch(process.pid)
    watch.start()
    code = process.wait()
    wall = time.monotonic() - started
    watch.done.set()
    watch.join()
    if code:
        raise SystemExit(code)
    info = json.loads((out / "corpus.json").read_text())
    started_cpu, started = time.process_time(), time.monotonic()
    rows = 0
    parse = pacsv.ParseOptions(delimiter="\t", quote_char=False)
    convert = pacsv.ConvertOptions(column_types=dict.fromkeys(("ORIG_ID", "REPLY_ID"), pa.string()))
    for batch in pacsv.open_csv(raw, parse_options=parse, convert_options=convert):
        rows += batch.num_rows
    cpu = sum(watch.cpu.values())
    return {
        "pairs": pairs,
        "raw_bytes": raw.stat().st_size,
        "prepare_s": round(wall, 1),
        "prepare_rows_per_s": round(info["lines_read"] / wall),
        "prepare_cpu_s": round(cpu, 1),
        "prepare_rows_per_cpu_s": round(info["lines_read"] / cpu),
        "peak_mb": {k: v >> 20 for k, v in sorted(watch.peak.items(), key=lambda item: -item[1])},
        "arrow_csv_s": round(time.monotonic() - started, 1),
        "arrow_csv_rows_per_cpu_s": round(rows / (time.process_time() - started_cpu)),
        "lines_read": info["lines_read"],
        "kept": info["kept"],
        "dropped": info["dropped"],
        "rejected": info["rejected"],
        "nothing_lost": info["lines_read"] == info["kept"] + sum(info["dropped"].values()) + info["rejected"] == rows,
        "shards": {name: len(split["shards"]) for name, split in info["splits"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[500_000])
    parser.add_argument("--work", type=Path, required=True, help="folder for the input and the corpus; inputs are kept")
    parser.add_argument("--num-cpus", type=int, help="logical CPUs of the local Ray")
    args = parser.parse_args()
    for pairs in args.pairs:
        result = bench(pairs, args.work, args.num_cpus)
        cli.table(["figure", "value"], [[key, f"{v:,}" if type(v) is int else str(v)] for key, v in result.items()])
        print(json.dumps(result))


if __name__ == "__main__":
    main()
