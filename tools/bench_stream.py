"""Measure the stream, Parquet ids to finished micro-batches: real tokens a second of CPU, by stage, plain and with Ray.

    python tools/bench_stream.py [CORPUS/encoded/FINGERPRINT] [--steps 256] [--repeats 5] [--ray] [--json OUT.json]

Without a corpus, 131,072 pairs of random ids with gamma-distributed lengths stand in for conversations. Rates are of
CPU time of the process (medians of the repeats), so that a busy machine does not count; Ray's are of wall time, with
the CPU time that the consuming process spent.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from twilbert import cli
from twilbert.data.encoded.format import EncodedCorpus, make_table, write_index, write_shard
from twilbert.data.stream import build, rows
from twilbert.data.stream.masking import MaskingSettings
from twilbert.data.stream.micro_batch import MicroBatch, Packed
from twilbert.data.stream.order import StreamPlan, items
from twilbert.data.stream.ray_stream import ray_micro_batches
from twilbert.data.stream.stream import accumulation_for, micro_batches
from twilbert.data.tokenizer.template import ours

# Stage by the function that does it; a stage's own time excludes the stages it calls.
STAGES = {
    "read": (rows, "read_rows"),
    "shuffle, sort": (build, "read_steps"),
    "cut": (build, "cut_steps"),
    "lay out": (build, "lay_out"),
    "mask": (build, "mask_samples"),
    "assemble": (build, "pack"),
}


def fabricate(folder: Path, n_row_groups: int = 16, rows_each: int = 8192) -> EncodedCorpus:
    """Pairs of random ids, each text 1 + gamma(2.2, 6) tokens long, at most 128: 14 in the mean."""
    rng, template = np.random.default_rng(0), ours(30_000)

    def texts() -> tuple[np.ndarray, np.ndarray]:
        lengths = np.clip(rng.gamma(2.2, 6.0, rows_each).astype(np.int64) + 1, 1, 128)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return rng.integers(5, 30_000, offsets[-1]).astype(np.uint16), offsets

    file = "train/00000.parquet"
    (folder / "train").mkdir()
    shard = write_shard(
        str(folder / file), (make_table(texts(), texts(), template) for _ in range(n_row_groups)), template
    )
    shards = {"train": [{"file": file, **shard}]}
    write_index(str(folder), tokenizer="0" * 64, template=template, max_len=128, corpus="fabricated", shards=shards)
    return EncodedCorpus.open(str(folder))


def consume(stream: Any) -> Counter:
    """Run a stream to its end; real and padded tokens, and micro-batches."""
    total: Counter = Counter()
    for batch in stream:
        assert isinstance(batch, MicroBatch)
        total.update(real=batch.real_tokens, padded=batch.padded_tokens, micro_batches=1)
    return total


def stage_seconds(plan: StreamPlan, rank: int, n_steps: int) -> tuple[dict[str, float], Counter]:
    """CPU seconds of each stage over `n_steps` steps, packing into Arrow and back included, and the tokens."""
    spent: defaultdict[str, float] = defaultdict(float)
    inside: list[float] = []  # time spent in stages called by the running ones

    def timed(name: str, function: Callable) -> Callable:
        def wrapper(*args: Any, **options: Any) -> Any:
            inside.append(0.0)
            begin = time.process_time()
            result = function(*args, **options)
            whole = time.process_time() - begin
            spent[name] += whole - inside.pop()
            if inside:
                inside[-1] += whole
            return result

        return wrapper

    originals = {name: getattr(module, function) for name, (module, function) in STAGES.items()}
    for name, (module, function) in STAGES.items():
        setattr(module, function, timed(name, originals[name]))
    try:
        begin = time.process_time()
        tables = [run.to_table() for item in items(plan, rank, 0, n_steps) for run in build.build(plan, rank, item)]
        built = time.process_time()
        total = Counter()
        for table in tables:
            total += consume(Packed.from_table(table).micro_batches())
        done = time.process_time()
    finally:
        for name, (module, function) in STAGES.items():
            setattr(module, function, originals[name])
    spent["rest"] = built - begin - sum(spent.values())
    spent["decode"] = done - built
    return dict(spent), total


def measure(encoded: EncodedCorpus, args: argparse.Namespace) -> dict:
    """All figures of one corpus: a dictionary for JSON."""
    accumulation = args.accumulation or accumulation_for(
        encoded, "train", args.batch, args.world, args.tokens, args.lanes
    )
    masking = MaskingSettings(args.masking)
    plan = StreamPlan(encoded, 0, args.batch, args.world, accumulation, masking, reader_groups=args.lanes)
    consume(micro_batches(plan, 0, 0, 4))
    by_stage: list[dict[str, float]] = []
    plain: list[float] = []
    total: Counter = Counter()
    for _ in range(args.repeats):
        seconds, total = stage_seconds(plan, 0, args.steps)
        by_stage.append(seconds)
        begin = time.process_time()
        consume(micro_batches(plan, 0, 0, args.steps))
        plain.append(time.process_time() - begin)
    figures: dict[str, Any] = {
        "steps": args.steps, "global_batch_size": args.batch, "world_size": args.world, "lanes": args.lanes,
        "accumulation": accumulation,
        "masking": args.masking, "real_tokens": total["real"], "padding": 1 - total["real"] / total["padded"],
        "padded_tokens_a_micro_batch": total["padded"] / total["micro_batches"],
        "stage_cpu_seconds": {name: statistics.median(each[name] for each in by_stage) for name in by_stage[0]},
        "plain_tokens_per_cpu_second": total["real"] / statistics.median(plain),
    }  # fmt: skip
    if args.ray:
        figures["ray"] = measure_ray(plan, args)
    return figures


def measure_ray(plan: StreamPlan, args: argparse.Namespace) -> dict:
    """The Ray Data version, consumed as fast as it comes."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        wall, cpu, first = [], [], []
        total: Counter = Counter()
        for _ in range(args.repeats + 1):  # the first starts the worker processes
            begin, begin_cpu = time.perf_counter(), time.process_time()
            stream = ray_micro_batches(plan, 0, 0, args.steps)
            next(stream)
            first.append(time.perf_counter() - begin)
            total = consume(stream)
            wall.append(time.perf_counter() - begin)
            cpu.append(time.process_time() - begin_cpu)
    finally:
        ray.shutdown()
    return {
        "tokens_per_second": total["real"] / statistics.median(wall[1:]),
        "consumer_cpu_seconds": statistics.median(cpu[1:]),
        "wall_seconds": statistics.median(wall[1:]),
        "first_batch_seconds_cold": first[0],
        "first_batch_seconds": statistics.median(first[1:]),
    }


def report(figures: dict) -> None:
    """Print the figures as a table."""
    seconds = figures["stage_cpu_seconds"]
    tokens, whole = figures["real_tokens"], sum(seconds.values())
    table = [
        [name, f"{s * 1e9 / tokens:.1f}", f"{100 * s / whole:.0f} %", f"{tokens / max(s, 1e-9) / 1e6:.0f}"]
        for name, s in seconds.items()
    ]
    table.append(["all, by stage", f"{whole * 1e9 / tokens:.1f}", "100 %", f"{tokens / whole / 1e6:.1f}"])
    plain = figures["plain_tokens_per_cpu_second"]
    table.append(["plain stream", f"{1e9 / plain:.1f}", "", f"{plain / 1e6:.1f}"])
    if "ray" in figures:
        rate = figures["ray"]["tokens_per_second"]
        table.append(["Ray stream (wall)", f"{1e9 / rate:.1f}", "", f"{rate / 1e6:.1f}"])
    cli.table(["stage", "ns a real token", "share", "M real tokens/s"], table)
    print(
        f"{figures['accumulation']} micro-batches a step and worker, {figures['padded_tokens_a_micro_batch']:.0f} "
        f"padded tokens each, padding {100 * figures['padding']:.2f} %"
    )
    if "ray" in figures:
        ray_figures = figures["ray"]
        print(
            f"Ray: first batch {ray_figures['first_batch_seconds']:.2f} s (cold "
            f"{ray_figures['first_batch_seconds_cold']:.2f} s), {ray_figures['wall_seconds']:.2f} s in all, of it "
            f"{ray_figures['consumer_cpu_seconds']:.2f} s CPU in the consumer"
        )


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoded", nargs="?", help="an encoded corpus folder")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2048, help="samples a step")
    parser.add_argument("--world", type=int, default=1, help="workers; the first one's share is measured")
    parser.add_argument("--lanes", type=int, default=1, help="lanes of the plan")
    parser.add_argument("--tokens", type=int, default=8192, help="padded tokens a micro-batch, in the mean")
    parser.add_argument("--accumulation", type=int, help="micro-batches a step and worker, in place of --tokens")
    parser.add_argument("--masking", choices=["span", "token"], default="span")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ray", action="store_true", help="measure the Ray Data version too")
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        encoded = EncodedCorpus.open(args.encoded) if args.encoded else fabricate(Path(folder))
        figures = measure(encoded, args)
    report(figures)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")
        print(f"written: {args.json}")


if __name__ == "__main__":
    main()
