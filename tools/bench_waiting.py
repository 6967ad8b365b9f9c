"""Measure what feeding a model from the stream costs: bf16 micro-batches from Ray Data against the same from memory.

    python tools/bench_waiting.py CORPUS/encoded/FINGERPRINT [--micro-batches 3] [--blocks 4] [--json OUT.json]

A block is so many forward and backward passes of one size of the released model, first fed from a list in memory with
no stream open, then from `ray_micro_batches` that streams the same; blocks alternate, so that a drift of the machine
falls on both. Of each block, seconds spent waiting for data and seconds in all; CPU seconds of this process too, which
other work on the machine disturbs less. The stream's first micro-batch is asked for, and its read-ahead filled, before
the clock starts: what a start costs, once a run, is printed apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from twilbert import cli, cluster, recipe_file, scoring
from twilbert.data.encoded import EncodedCorpus
from twilbert.data.microbatch import MicroBatch
from twilbert.data.plan import StreamPlan
from twilbert.data.ray_stream import ray_micro_batches
from twilbert.data.stream import accumulation_for, micro_batches
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel

_AHEAD = 256  # steps streamed beyond those that are trained, as in a run: more than the read-ahead


def passes(model: PretrainingModel, feed: Iterator[MicroBatch], n: int) -> dict[str, float]:
    """Forward and backward of the next n micro-batches: seconds in all, seconds waiting for data, CPU seconds."""
    waited, begin, begin_cpu = 0.0, time.perf_counter(), time.process_time()
    device = next(model.parameters()).device
    for _ in range(n):
        asked = time.perf_counter()
        batch = next(feed)
        waited += time.perf_counter() - asked
        out = model(*scoring.tensors(batch, device))
        (out.mlm_loss_sum / 1000 + out.rop_loss_sum / 1000).backward()
        model.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {"wall": time.perf_counter() - begin, "waited": waited, "cpu": time.process_time() - begin_cpu}


def measure(args: argparse.Namespace) -> dict:
    """The blocks of both feeds."""
    encoded = EncodedCorpus.open_folder(args.encoded)
    accumulation = accumulation_for(encoded, "train", args.batch, 1, args.tokens)
    plan = StreamPlan(encoded, 0, args.batch, 1, accumulation)
    steps = -(-(args.micro_batches + 1) // accumulation)
    memory = list(islice(micro_batches(plan, 0, 0, steps), args.micro_batches + 1))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipe_file.load(args.recipe)
    model = PretrainingModel(ModelConfig.from_dict(recipe.architecture(encoded.vocab_size))).to(device, torch.bfloat16)
    passes(model, iter(memory), 1)
    blocks: dict[str, list[dict[str, float]]] = {"memory": [], "stream": []}
    starts = []
    with cluster.ensure_ray(2):
        cluster.quiet_ray_data()
        for _ in range(args.blocks):
            blocks["memory"].append(passes(model, iter(memory[1:]), args.micro_batches))
            begin = time.perf_counter()
            stream = ray_micro_batches(plan, 0, 0, steps + _AHEAD)
            next(stream)
            starts.append(time.perf_counter() - begin)
            time.sleep(args.settle)
            blocks["stream"].append(passes(model, stream, args.micro_batches))
            for _ in stream:  # to its end: Ray does not forgive a shutdown while a thread of Ray Data waits for blocks
                pass
    tokens = [batch.real_tokens for batch in memory[1:]]
    return {
        "recipe": args.recipe, "device": str(device), "threads": torch.get_num_threads(), "accumulation": accumulation,
        "micro_batches_a_block": args.micro_batches, "real_tokens_a_block": sum(tokens), "first_batch_seconds": starts,
        "blocks": blocks,
    }  # fmt: skip


def report(figures: dict) -> None:
    """Print medians over the blocks, and the differences."""
    median = {
        feed: {key: statistics.median(block[key] for block in blocks) for key in ("wall", "waited", "cpu")}
        for feed, blocks in figures["blocks"].items()
    }
    tokens, n = figures["real_tokens_a_block"], figures["micro_batches_a_block"]
    rows = []
    for feed, m in median.items():
        seconds = [f"{m['wall'] / n:.2f}", f"{m['cpu'] / n:.2f}"]
        rows.append([feed, *seconds, f"{100 * m['waited'] / m['wall']:.3f} %", f"{tokens / m['wall']:.0f}"])
    cli.table(["fed from", "s a micro-batch", "CPU s", "waiting for data", "real tokens/s"], rows)
    for key in ("wall", "cpu"):
        print(f"stream against memory, {key}: {100 * (median['stream'][key] / median['memory'][key] - 1):+.1f} %")
    starts = figures["first_batch_seconds"]
    print(f"first micro-batch of a stream: {starts[0]:.2f} s cold, {min(starts):.2f} s at best")


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoded", help="an encoded corpus folder")
    parser.add_argument("--recipe", default="base.yaml", help="whose model")
    parser.add_argument("--micro-batches", type=int, default=3, help="of a block")
    parser.add_argument("--blocks", type=int, default=4, help="of each feed")
    parser.add_argument("--settle", type=float, default=6, help="seconds in which a stream fills its read-ahead")
    parser.add_argument("--batch", type=int, default=2048, help="samples a step")
    parser.add_argument("--tokens", type=int, default=8192, help="padded tokens a micro-batch, in the mean")
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args()
    figures = measure(args)
    report(figures)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")
        print(f"written: {args.json}")


if __name__ == "__main__":
    main()
