"""What a LAMB step costs on Base's parameters: against torch's AdamW, against the memory, and in collectives.

    python -m tools.bench_optimizer [--repeats 15] [--threads 2] [--json OUT.json]

Steps of torch.optim.AdamW(foreach=True), of twilbert's optimisers and a triad (a = b + s·c, the machine's memory
bandwidth) take turns in one process; figures are medians, the ratio is of the medians. The floor of an optimiser is
the bytes it must move at that bandwidth. Then two processes over gloo take ZeRO 1 steps of Base, and every collective
is counted, with the bytes each rank puts in. Exit 1 when LAMB takes longer than AdamW.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.train.training_runs import spawn
from tools.collectives import counting
from twilbert import cli, recipe_file
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.train.engine import make_engine
from twilbert.train.optimizer import OPTIMIZERS
from twilbert.train.shards import Fragment

TRIAD = 2**25  # fp32 elements of each of the triad's three vectors: 128 MiB, far over any cache
BOUND = 1.0
# fp32 vectors read and written. Adam: gradient, weights, both moments in; weights and moments out.
# LAMB must know every norm before it moves a weight: update out, then weights and update in, weights out; not the
# weights out of the first pass.
VECTORS = {"torch AdamW (foreach)": 7, "adamw": 7, "lamb": 4 + 3 + 3, "lamb, ZeRO 0": 1 + 4 + 3 + 3}  # a look for NaN


def base_shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape of Base's parameters, without memory for them."""
    with torch.device("meta"):
        model = PretrainingModel(ModelConfig())
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


# ---- one process ---------------------------------------------------------------------------------------------------


def measure_steps(threads: int, repeats: int) -> dict[str, Any]:
    """Medians of interleaved steps in seconds, the bandwidth, the floors."""
    torch.set_num_threads(threads)
    shapes = base_shapes()
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    turns: dict[str, Callable[[], float]] = {"triad": triad()}
    # All take turns on the same weights and gradients: the values do not matter, cold caches do.
    weights = {name: torch.nn.Parameter(0.02 * torch.randn(shape)) for name, shape in shapes.items()}
    for p in weights.values():
        p.grad = 1e-3 * torch.randn(p.shape)
    turns["torch AdamW (foreach)"] = torch_step(list(weights.values()))
    start_alone()
    turns |= {name: twilbert_step(name, weights, shapes, sharded=True) for name in ("adamw", "lamb")}
    turns["lamb, ZeRO 0"] = twilbert_step("lamb", weights, shapes, sharded=False)
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(repeats + 2):
        for name, turn in turns.items():
            took = turn()
            if number >= 2:  # the first ones allocate
                seconds[name].append(took)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    bandwidth = 3 * 4 * TRIAD / medians["triad"]
    rows = {
        name: {
            "seconds": medians[name],
            "fastest": min(seconds[name]),
            "bytes": 4 * numbers * VECTORS[name],
            "floor_seconds": 4 * numbers * VECTORS[name] / bandwidth,
        }
        for name in turns
        if name != "triad"
    }
    dist.destroy_process_group()
    ratio = medians["lamb"] / medians["torch AdamW (foreach)"]
    return {
        "threads": threads, "repeats": repeats, "parameters": numbers, "tensors": len(shapes),
        "bandwidth": bandwidth, "steps": rows, "lamb_over_adamw": ratio,
    }  # fmt: skip


def start_alone() -> None:
    """A process group of this process, for the all_reduce of a sharded step."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """`work` as something that returns how long it took, in seconds."""

    def run() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return run


def triad() -> Callable[[], float]:
    """a = b + s·c; the sum is written without being read first."""
    a, b, c = (torch.full((TRIAD,), value) for value in (0.0, 1.0, 2.0))
    return timed(lambda: torch.add(b, c, alpha=3.0, out=a))


def torch_step(parameters: list[torch.nn.Parameter]) -> Callable[[], float]:
    """One step of torch's AdamW with decay."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-9, weight_decay=0.01, foreach=True)
    return timed(optimizer.step)


def twilbert_step(
    name: str, weights: dict[str, torch.nn.Parameter], shapes: dict[str, tuple[int, ...]], *, sharded: bool
) -> Callable[[], float]:
    """One step of a twilbert optimiser on one flat tensor of all weights, as ZeRO 1 hands it in a world of one."""
    flat = torch.nn.Parameter(torch.cat([p.detach().flatten() for p in weights.values()]))
    kept = torch.cat([p.grad.flatten() for p in weights.values() if p.grad is not None])
    fragments, offset = [], 0
    for parameter, shape in shapes.items():
        length = torch.Size(shape).numel()
        fragments.append(Fragment(parameter, shape, 0, length, flat, offset))
        offset += length
    optimizer = OPTIMIZERS[name]([flat], weight_decay=0.01)
    optimizer.bind(fragments, shapes, sharded=sharded)
    optimizer.learning_rate, optimizer.update = 1e-9, 0
    flat.grad = kept.clone()

    def step() -> float:
        assert flat.grad is not None
        flat.grad.copy_(kept)  # the step keeps its update there
        optimizer.update += 1
        return timed(optimizer.step)()

    return step


# ---- two processes -------------------------------------------------------------------------------------------------


def count_collectives(rank: int, world: int, name: str, steps: int) -> dict[str, Any]:
    """Collectives of a ZeRO 1 step of Base: those inside the optimiser's step, and those of the whole engine step."""
    recipe = recipe_file.build(
        {
            "training": {
                "optimizer": name, "schedule": "constant", "learning_rate": 1e-9, "warmup_steps": 1, "max_steps": steps,
                "precision": "fp32", "zero_stage": 1, "max_grad_norm": 1.0,
            }
        }
    )  # fmt: skip
    torch.manual_seed(0)
    engine, optimizer = make_engine(recipe, PretrainingModel(ModelConfig()), "fp32", 1, world)
    inside, seconds = [False], []
    step = optimizer.step

    def watched(closure: Any = None) -> None:
        inside[0] = True
        began = time.perf_counter()
        step(closure)
        seconds.append(time.perf_counter() - began)
        inside[0] = False

    optimizer.step = watched
    with counting(lambda: "optimiser" if inside[0] else "step") as counts:
        for number in range(1, steps + 1):
            optimizer.update, optimizer.learning_rate = number, 1e-9
            engine.backward(sum(p.sum() for p in engine.module.parameters()) * 1e-6)
            engine.step()
    by_place = {place: counts.a_step(place, steps) for place in ("optimiser", "step")}
    return by_place | {"seconds": statistics.median(seconds)}


# ---- the report ----------------------------------------------------------------------------------------------------


def report(figures: dict[str, Any]) -> None:
    """Both tables."""
    reference = figures["steps"]["torch AdamW (foreach)"]["seconds"]
    print(
        f"Base: {figures['parameters'] / 1e6:.1f}M parameters in {figures['tensors']} tensors, fp32, "
        f"{figures['threads']} threads; medians of {figures['repeats']} steps in turn; "
        f"triad {figures['bandwidth'] / 1e9:.1f} GB/s"
    )
    cli.table(
        ["optimiser", "ms a step", "fastest", "of AdamW's", "GB to move", "floor ms", "times the floor"],
        [
            [name, f"{row['seconds'] * 1e3:.0f}", f"{row['fastest'] * 1e3:.0f}", f"{row['seconds'] / reference:.2f}",
             f"{row['bytes'] / 1e9:.2f}", f"{row['floor_seconds'] * 1e3:.0f}",
             f"{row['seconds'] / row['floor_seconds']:.2f}"]
            for name, row in figures["steps"].items()
        ],
    )  # fmt: skip
    print("\nTwo processes, ZeRO 1, one micro-batch a step: collectives a step, and the bytes a rank puts in")
    rows = [
        [name, "inside the optimiser" if where == "optimiser" else "DeepSpeed's", kind, f"{calls:g}",
         f"{found[where]['bytes'][kind]:,.0f}"]
        for name, found in figures["collectives"].items()
        for where in ("optimiser", "step")
        for kind, calls in found[where]["calls"].items()
    ]  # fmt: skip
    cli.table(["optimiser", "whose", "collective", "a step", "bytes"], rows)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    figures = measure_steps(args.threads, args.repeats)
    figures["collectives"] = {name: spawn(count_collectives, 2, name, 3)[0] for name in ("adamw", "lamb")}
    report(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"written: {args.json}")
    kept = figures["lamb_over_adamw"] <= BOUND
    print(
        f"LAMB takes {figures['lamb_over_adamw']:.2f} of AdamW's step: bound {BOUND:g} {'kept' if kept else 'MISSED'}"
    )
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
