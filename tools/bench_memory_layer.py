"""What a product-key memory costs in the place of a feed-forward layer: forward and backward at xlarge's sizes.

    python -m tools.bench_memory_layer [--tokens 4096] [--dtypes fp32,bf16] [--repeats 5] [--json OUT.json]

Four layers take turns in one process, on the same input; figures are medians of seconds:

    memory                the model's memory layer (keys, two searches, one weighted sum of rows)
    feed-forward          the layer that it replaces
    gather-multiply-sum   the same memory with its values gathered, [tokens, heads·knn, H], then weighted and summed
    values alone          of the memory, the weighted sum of values: what the floor below is about

The floor is the bytes that must move whatever the order, at the bandwidth of a triad (a = b + s·c) measured in the
same run: every value that is read, once in each direction, and the dense gradient of the table, once zeroed and once
written where something was read. "each read" counts every reading of a value as one from memory, as without any cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools.turns import clock
from twilbert import cli, recipe_file
from twilbert.model.config import ModelConfig
from twilbert.model.encoder import FeedForward
from twilbert.model.layers import WeightedTable
from twilbert.model.memory import ProductKeyMemory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEMORY, FEED_FORWARD, GATHER, VALUES = "memory", "feed-forward", "gather-multiply-sum", "values alone"
TRIAD = 2**25  # fp32 elements of each of its three vectors


class GatheredTable(WeightedTable):
    """Weighted sums of rows as one would write them first: gather, multiply, sum."""

    def forward(self, indices_MK: Tensor, weights_MK: Tensor) -> Tensor:
        return (nn.functional.embedding(indices_MK, self.weight) * weights_MK[..., None]).sum(1)


def layers(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> tuple[dict[str, nn.Module], list[Tensor]]:
    """The three layers on the device, and where the readings of the values are noted: [indices, weights]."""
    torch.manual_seed(0)
    memory, gathered = ProductKeyMemory(config), ProductKeyMemory(config)
    width = config.memory_value_size
    gathered.values = GatheredTable(config.pkm_params.memory_size**2, width, width**-0.5)
    gathered.load_state_dict(memory.state_dict())
    made = {MEMORY: memory, FEED_FORWARD: FeedForward(config), GATHER: gathered}
    read: list[Tensor] = []

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        read[:] = [each.detach() for each in given]

    memory.values.register_forward_pre_hook(note)
    return {name: layer.to(device, dtype).train() for name, layer in made.items()}, read


def there_and_back(layer: Callable[..., Tensor], inputs: list[Tensor], device: torch.device) -> float:
    """Seconds of forward and backward; gradients are dropped afterwards."""
    found: dict[str, float] = {}
    with clock(device, found):
        layer(*inputs).sum().backward()
    for tensor in inputs:
        tensor.grad = None
    return found["seconds"]


def triad(device: torch.device) -> float:
    """Bytes a second of a = b + s·c."""
    a, b, c = (torch.full((TRIAD,), value, device=device) for value in (0.0, 1.0, 2.0))
    found: dict[str, float] = {}
    with clock(device, found):
        torch.add(b, c, alpha=3.0, out=a)
    return 3 * 4 * TRIAD / found["seconds"]


def measure(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Medians for one dtype."""
    dtype, device = DTYPES[name], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = ModelConfig.from_dict(recipe_file.load("xlarge.yaml").architecture(30_000))
    made, read = layers(config, dtype, device)
    values = made[MEMORY].get_submodule("values")
    x_MH = torch.randn(args.tokens, config.hidden_size, device=device).to(dtype).requires_grad_()
    seconds: dict[str, list[float]] = {key: [] for key in (*made, VALUES)}
    bandwidths = []
    for number in range(args.repeats + 1):
        turns = {key: there_and_back(layer, [x_MH], device) for key, layer in made.items()}
        indices_MK, weights_MK = read
        turns[VALUES] = there_and_back(values, [indices_MK, weights_MK.clone().requires_grad_()], device)
        for layer in made.values():
            layer.zero_grad()
        rate = triad(device)
        if number:  # the first ones allocate
            bandwidths.append(rate)
            for key, took in turns.items():
                seconds[key].append(took)
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    readings = read[0].numel()
    distinct = int(read[0].unique().numel())
    row = config.memory_value_size * dtype.itemsize
    least = row * (2 * distinct + config.pkm_params.memory_size**2 + distinct)
    each = row * (2 * readings + config.pkm_params.memory_size**2 + distinct)
    bandwidth = statistics.median(bandwidths)
    return {
        "seconds": medians, "readings": readings, "distinct_values": distinct, "bandwidth": bandwidth,
        "least_bytes": least, "floor_seconds": least / bandwidth,
        "each_read_bytes": each, "each_read_seconds": each / bandwidth,
    }  # fmt: skip


def report(figures: dict[str, Any]) -> None:
    """Print a table, and the floors."""
    rows = []
    for name, found in figures["dtypes"].items():
        for key, took in found["seconds"].items():
            times = [f"{took / found['seconds'][other]:.2f}" for other in (FEED_FORWARD, GATHER)]
            rows.append([name, key, f"{1e3 * took:.1f}", *times, f"{took / found['floor_seconds']:.1f}"])
    headers = ["dtype", "layer", "ms", "of feed-forward's", "of gather-multiply-sum's", "times the floor"]
    print(f"{figures['tokens']} tokens, {figures['threads']} threads, forward and backward, medians")
    cli.table(headers, rows)
    for name, found in figures["dtypes"].items():
        print(
            f"{name}: {found['distinct_values']} values read {found['readings']} times; floor "
            f"{1e3 * found['floor_seconds']:.1f} ms ({found['least_bytes'] / 1e9:.2f} GB at "
            f"{found['bandwidth'] / 1e9:.1f} GB/s), each read from memory {1e3 * found['each_read_seconds']:.1f} ms"
        )


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--dtypes", default="fp32,bf16", type=lambda text: text.split(","))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures = {"tokens": args.tokens, "threads": args.threads, "dtypes": {d: measure(args, d) for d in args.dtypes}}
    report(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"written: {args.json}")


if __name__ == "__main__":
    main()
