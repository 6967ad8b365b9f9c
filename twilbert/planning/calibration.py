"""Rates of a device for one model: from its peaks, or measured on this machine with the model's parts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from twilbert.model.architecture import Architecture
from twilbert.model.config import ModelConfig
from twilbert.model.encoder import EncoderBlock, find_padding
from twilbert.model.heads import MaskedLMHead
from twilbert.model.losses import token_cross_entropy
from twilbert.model.memory import ProductKeyMemory
from twilbert.model.packing import find_packing
from twilbert.planning.devices import Device
from twilbert.planning.operations import element_bytes, flops_by_part
from twilbert.planning.workload import Piece

HALF_WIDTH = {"gpu": 256, "cpu": 60}
"""Hidden width at which matrix products reach half of what large ones do: share(H) = H / (H + this)."""
LARGE_SHARE = {"gpu": 0.7, "cpu": 1.0}
"""Share of the peak that large products reach: a data sheet's on a GPU, a measured product's on a CPU."""
ELEMENT_SHARE = {"gpu": 0.75, "cpu": 0.15}
"""Share of the memory's rate that elementwise work reaches; on a CPU its arithmetic is the limit."""
STREAM_SHARE = {"gpu": 0.8, "cpu": 1.0}
_REPEATS = 5
_TRIAD = 2**24


@dataclass(frozen=True)
class Rates:
    """Rates a second of a device for one model."""

    matrix: float
    """FLOP/s of the blocks' matrix products."""
    head: float
    """FLOP/s of the vocabulary head, its loss included."""
    element: float
    """Bytes of elementwise work."""
    stream: float
    """Bytes of gradients and moments."""
    memory_token: float = 0.0
    """Seconds a real token takes in one product-key memory, beyond its FLOPs at `matrix`."""
    measured: bool = False


def assumed_rates(device: Device, config: ModelConfig, precision: str) -> Rates:
    """Return the rates that a device's peaks give by the shares above."""
    place = "cpu" if device.kind == "cpu" else "gpu"
    large = device.gemm[precision] * LARGE_SHARE[place]
    matrix = large * config.hidden_size / (config.hidden_size + HALF_WIDTH[place])
    return Rates(matrix, matrix, device.stream * ELEMENT_SHARE[place], device.stream * STREAM_SHARE[place])


def measured_rates(config: ModelConfig, piece: Piece, precision: str) -> Rates:
    """Measure this machine's CPU: a block, the head and a memory of `config` on a micro-batch, forward and backward.

    Takes a few seconds on an idle machine, on torch's present number of threads. Every repeat has another length, as
    every micro-batch has: oneDNN compiles its products for each shape.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    gemm = _gemm_rate(round(piece.rows), config.hidden_size, dtype)
    one = ModelConfig.from_dict(config.to_dict() | {"n_encoders": 1, "pkm": False})
    seconds = piece.rows * _block_seconds(one, piece, dtype)
    flops = flops_by_part(one, piece.rows, 0, piece.square)
    in_products = (flops["attention"] + flops["feed_forward"] + flops["scores"]) / gemm
    elements = element_bytes(one, piece, dtype.itemsize, gpu=False, embeddings=False)
    return Rates(
        matrix=gemm,
        head=_head_rate(config, max(_REPEATS + 3, round(piece.masked)), dtype),
        element=elements / max(seconds - in_products, 0.05 * seconds),
        stream=_stream_rate(),
        memory_token=_memory_seconds(config, max(_REPEATS + 3, round(piece.real)), dtype, gemm),
        measured=True,
    )


def _block_seconds(config: ModelConfig, piece: Piece, dtype: torch.dtype) -> float:
    """Return the seconds of a row, forward and backward, of samples with lengths spread evenly about the mean."""
    block = EncoderBlock(config, Architecture(), 0, memory=False).to(dtype)
    b, longest = max(1, round(piece.samples)), max(_REPEATS + 3, round(piece.longest))
    shortest = max(1, round(2 * piece.real / piece.samples) - longest)

    def make(fewer: int) -> tuple[Callable[[], object], int]:
        lengths_B = torch.linspace(shortest, longest, b).round().long().sub(fewer).clamp(min=1)
        x_BTH = torch.randn(b, longest - fewer, config.hidden_size, dtype=dtype)
        packing = find_packing(lengths_B, x_BTH)
        x = (x_BTH if packing is None else packing.pack(x_BTH)).requires_grad_()
        padding = packing or find_padding(lengths_B, x_BTH)
        return lambda: block(x, padding).sum().backward(), x.shape[:-1].numel()

    return _seconds_each(make)


def _gemm_rate(rows: int, h: int, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the two products of the feed-forward part and of their backward."""
    x, up, wide = (torch.randn(shape, dtype=dtype) for shape in ((rows, h), (h, 4 * h), (rows, 4 * h)))

    def products() -> None:
        torch.mm(x, up)
        torch.mm(wide, up.t())
        torch.mm(x.t(), wide)

    return 3 * 2 * rows * h * 4 * h / _seconds_each(lambda _: (products, 1))


def _head_rate(config: ModelConfig, masked: int, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the vocabulary head with its loss."""
    head = MaskedLMHead(config).to(dtype)

    def make(fewer: int) -> tuple[Callable[[], object], int]:
        hidden = torch.randn(masked - fewer, config.hidden_size, dtype=dtype, requires_grad=True)
        labels = torch.randint(5, config.vocab_size, (masked - fewer,))

        def run() -> None:
            logits = head(hidden)
            logits.detach().max(dim=-1)
            token_cross_entropy(logits, labels).sum().backward()

        return run, masked - fewer

    return 6 * config.hidden_size * config.vocab_size / _seconds_each(make)


def _memory_seconds(config: ModelConfig, tokens: int, dtype: torch.dtype, gemm: float) -> float:
    """Return the seconds of a real token in one memory beyond its FLOPs at the rate of products."""
    if not config.memory_layers:
        return 0.0
    memory = ProductKeyMemory(config).to(dtype)

    def make(fewer: int) -> tuple[Callable[[], object], int]:
        y_MH = torch.randn(tokens - fewer, config.hidden_size, dtype=dtype, requires_grad=True)
        return lambda: memory(y_MH).sum().backward(), tokens - fewer

    flops = flops_by_part(config, 1, 0)["memory"] / len(config.memory_layers)
    return max(0.0, _seconds_each(make) - flops / gemm)


def _stream_rate() -> float:
    """Return the bytes a second of a = b + s·c over vectors larger than any cache."""
    a, b, c = (torch.full((_TRIAD,), value) for value in (0.0, 1.0, 2.0))
    return 3 * 4 * _TRIAD / _seconds_each(lambda _: (lambda: torch.add(b, c, alpha=3.0, out=a), 1))


def _seconds_each(make: Callable[[int], tuple[Callable[[], object], int]]) -> float:
    """Return the median seconds of a unit; `make(i)` gives the i-th repeat's work and its units, two more warm up."""
    seconds = []
    for number in range(_REPEATS + 2):
        work, units = make(number)
        began = time.perf_counter()
        work()
        seconds.append((time.perf_counter() - began) / units)
    return statistics.median(seconds[2:])
