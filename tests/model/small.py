"""Small models and batches that the model's tests share."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from twilbert.model.config import ModelConfig

MEMORY = {
    "k_dim": 16,
    "memory_size": 8,
    "n_heads": 2,
    "knn": 4,
    "in_layers": [1],
    "batch_norm": True,
    "factorize_embeddings": False,
}
SMALL = ModelConfig(
    vocab_size=50,
    max_len=16,
    hidden_size=32,
    embedding_size=32,
    n_encoders=3,
    n_heads=4,
    attention_size=6,
    rop_n_hidden=1,
    rop_hidden_size=24,
)
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "factorised": {"factorize_embeddings": True, "embedding_size": 16},
    "shared": {"cross_sharing": True},
    "memory": {"pkm": True, "pkm_params": MEMORY},
    "memory, no norm": {"pkm": True, "pkm_params": MEMORY | {"batch_norm": False}},
    "all": {
        "factorize_embeddings": True,
        "embedding_size": 16,
        "cross_sharing": True,
        "pkm": True,
        "pkm_params": MEMORY | {"factorize_embeddings": True},
        "rop_n_hidden": 2,
    },
    "no reply head": {"use_rop": False},
    "no hidden reply layer": {"rop_n_hidden": 0},
}


def config(switch: str, **changes: Any) -> ModelConfig:
    """The small model with one of SWITCHES, and `changes`."""
    return dataclasses.replace(SMALL, **(SWITCHES[switch] | changes))


def batch(lengths: list[int], masked: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Random samples of these lengths padded at the end, `masked` masked positions in each."""
    rng = torch.Generator().manual_seed(seed)
    b, t = len(lengths), max(lengths, default=1)
    real = torch.arange(t) < torch.tensor(lengths, dtype=torch.long)[:, None]
    ids = torch.randint(5, 50, (b, t), generator=rng).where(real, 0)
    index = [row * t + 1 + torch.randperm(n - 1, generator=rng)[:masked].sort().values for row, n in enumerate(lengths)]
    masked_index = torch.cat([torch.zeros(0, dtype=torch.long), *index])
    labels = ids.reshape(-1)[masked_index].clone()
    ids.reshape(-1)[masked_index[::2]] = 2
    return {
        "input_ids": ids,
        "segment_ids": (torch.arange(t) > t // 2).expand(b, t).to(torch.uint8),
        "lengths": torch.tensor(lengths, dtype=torch.int32),
        "masked_index": masked_index,
        "masked_labels": labels,
        "rop_labels": torch.arange(b) % 3
        - 1
        + torch.tensor([-99 if i % 3 == 0 else 0 for i in range(b)], dtype=torch.long),
    }
