"""Useful floating-point operations of training: the model's matrix products without padding, scores, recomputation."""

from __future__ import annotations

import torch

from twilbert.model.config import ModelConfig

PEAK = {
    "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": 835e12,
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12, "NVIDIA L4": 121e12, "NVIDIA L40S": 362e12,
}  # fmt: skip
"""Dense bf16 peak in FLOP/s by the driver's name of the device, from the data sheets."""


def useful_flops(config: ModelConfig, tokens: float, masked: float) -> float:
    """Return the floating-point operations of forward and backward over `tokens` real and `masked` masked tokens.

    6 per weight and token: 2 forward, 4 backward. A shared block counts once for every layer that calls it.
    """
    hidden, pkm = config.hidden_size, config.pkm_params
    attention = 4 * hidden * config.attention_width
    feed_forward = 8 * hidden * hidden
    memory = pkm.n_heads * (pkm.k_dim * (hidden + pkm.memory_size) + pkm.knn * config.memory_value_size)
    n_memory = len(config.memory_layers)
    layers = config.n_encoders * attention + (config.n_encoders - n_memory) * feed_forward + n_memory * memory
    projection = config.embedding_size * hidden if config.factorize_embeddings else 0
    return 6.0 * ((layers + projection) * tokens + hidden * config.vocab_size * masked)


def device_peak(device: torch.device) -> float | None:
    """Return the device's dense bf16 peak in FLOP/s; None where PEAK does not list it."""
    if device.type != "cuda":
        return None
    return PEAK.get(torch.cuda.get_device_name(device))
