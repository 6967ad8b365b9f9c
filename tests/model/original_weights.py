"""Weights of the original program, matched by order, under the names of this one. For tests.

The gradients of the original come in the same order and shapes, so the same mapping serves them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from twilbert.model.config import ModelConfig, layer_blocks

COPIES = Path(__file__).parents[1] / "golden"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "models"


@dataclass
class Golden:
    """What the original computed for seeded random weights and inputs."""

    config: ModelConfig
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    arrays: dict[str, Tensor]  # tokens, positions, segments, hidden, mlm, rop, y_mlm, y_rop, eval


def golden(case: str) -> Golden:
    """The case "copy/NAME" (kept beside the tests) or "shared/NAME" (the original's own files; skips where absent)."""
    place, name = case.split("/")
    if place == "copy":
        with np.load(COPIES / f"{name}.npz") as file:
            stored = dict(file)
        original = json.loads(str(stored.pop("config")))
        weights = [stored.pop(key) for key in sorted(k for k in stored if k.startswith("w|"))]
        gradients = [stored.pop(key) for key in sorted(k for k in stored if k.startswith("g|"))]
    else:
        if not (SHARED / f"{name}.json").exists():
            pytest.skip(f"{SHARED} is not on this machine")
        original = json.loads((SHARED / f"{name}.json").read_text())["config"]
        weights = read_hdf5(SHARED / f"{name}.hdf5")
        with np.load(SHARED / f"{name}.grads.npz") as file:
            gradients = [file[key] for key in sorted(file.files)]
        with np.load(SHARED / f"{name}.npz") as file:
            stored = dict(file)
    config = config_of(original)
    arrays = {key: torch.from_numpy(value) for key, value in stored.items()}
    return Golden(config, named(config, weights), named(config, gradients), arrays)


def config_of(original: dict) -> ModelConfig:
    """The original's configuration in our terms: its batch_norm is inverted, its factorised values were never built."""
    fields = dict(original)
    fields["hidden_size"] = fields.pop("hidden")
    if fields["pkm"]:
        fields["pkm_params"] = fields["pkm_params"] | {"batch_norm": False, "factorize_embeddings": False}
    return ModelConfig(**fields)


def read_hdf5(path: Path) -> list[np.ndarray]:
    """All weights of a Keras file in the order its attributes give."""
    import h5py

    with h5py.File(path, "r") as file:
        groups = [file[name] for name in file.attrs["layer_names"]]
        return [np.asarray(group[name]) for group in groups for name in group.attrs["weight_names"]]


def named(config: ModelConfig, arrays: list[np.ndarray]) -> dict[str, Tensor]:
    """Arrays in the original's order → tensors under our names (kernels transposed, heads fused)."""
    rest = iter([torch.from_numpy(np.ascontiguousarray(array)) for array in arrays])
    out: dict[str, Tensor] = {}

    def take(*names: str) -> None:
        out.update((name, next(rest)) for name in names)

    def dense(name: str) -> None:
        out[f"{name}.weight"] = next(rest).T.contiguous()
        out[f"{name}.bias"] = next(rest)

    def attention(block: str) -> None:
        out[f"{block}.attention.out.weight"] = next(rest).T.contiguous()
        qkv = [[next(rest).T for _ in "qkv"] for _ in range(config.n_heads)]
        rows = [qkv[head][part] for part in range(3) for head in range(config.n_heads)]
        out[f"{block}.attention.qkv.weight"] = torch.cat(rows)

    def norms(block: str) -> None:
        take(*(f"{block}.{norm}.{part}" for norm in ("attention_norm", "output_norm") for part in ("weight", "bias")))

    take(*(f"encoder.embeddings.{table}.weight" for table in ("token", "position", "segment")))
    if config.factorize_embeddings:
        dense("encoder.embeddings.projection")
    for layer in sorted(set(layer_blocks(config))):
        block = f"encoder.blocks.{layer}"
        if layer in config.memory_layers:
            attention(block)
            queries = [(next(rest).T, next(rest)) for _ in range(config.pkm_params.n_heads)]
            out[f"{block}.memory.query.weight"] = torch.cat([kernel for kernel, _ in queries])
            out[f"{block}.memory.query.bias"] = torch.cat([bias for _, bias in queries])
            take(f"{block}.memory.values.weight", f"{block}.memory.keys")
        else:
            dense(f"{block}.feed_forward.up")
            dense(f"{block}.feed_forward.down")
            attention(block)
        norms(block)
    if config.use_rop:
        for layer in range(config.rop_n_hidden):
            dense(f"reply_order.hidden.{layer}.dense")
            take(f"reply_order.hidden.{layer}.norm.weight", f"reply_order.hidden.{layer}.norm.bias")
        dense("reply_order.classifier")
    dense("masked_lm.decoder")
    assert next(rest, None) is None, "the file holds more tensors than the configuration has"
    return out
