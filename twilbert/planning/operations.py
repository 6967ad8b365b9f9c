"""Floating-point operations of a step by part, and bytes moved by everything other than matrix products.

Letters as in activations.py: M positions, T length, H hidden, A channels of all heads, N heads, P parameters.
"""

from __future__ import annotations

from twilbert.model.config import ModelConfig
from twilbert.model.flops import useful_flops
from twilbert.planning.workload import Piece
from twilbert.recipe.pretraining import Recipe

UPDATE_VECTORS = {"adam": 7, "adamw": 7, "lamb": 10, "muon": 10}
"""fp32 vectors that an optimiser's step reads and writes: gradient, weights, moments; LAMB and Muon in two passes."""


def flops_by_part(config: ModelConfig, tokens: float, masked: float, square: float = 0.0) -> dict[str, float]:
    """Return FLOPs of forward and backward, 6 a weight and token; all but "scores" add up to `useful_flops`.

    `square`: the sum of T² over the samples, which the products of queries with keys and of weights with values cost.
    """
    h, a = config.hidden_size, config.attention_width
    n_memory = len(config.memory_layers)
    parts = {
        "attention": config.n_encoders * 4 * h * a * tokens,
        "feed_forward": (config.n_encoders - n_memory) * 8 * h * h * tokens,
        "embedding_projection": (config.embedding_size * h if config.factorize_embeddings else 0) * tokens,
        "vocabulary_head": h * config.vocab_size * masked,
    }
    parts = {name: 6.0 * weights for name, weights in parts.items()}
    parts["memory"] = useful_flops(config, tokens, masked) - sum(parts.values()) if n_memory else 0.0
    return parts | {"scores": 12.0 * config.n_encoders * a * square}


def executed_flops(config: ModelConfig, piece: Piece) -> dict[str, float]:
    """Return the FLOPs of a micro-batch or step by part, scores included."""
    return flops_by_part(config, piece.rows, piece.masked, piece.square)


def element_bytes(config: ModelConfig, piece: Piece, number: int, *, gpu: bool, embeddings: bool = True) -> float:
    """Return the bytes that norms, gelu, softmax, sums and copies move, forward and backward, over all layers.

    Per layer 42H (of them 20H gelu) a row and 20A a position of attention; softmax 5N·T, none of it in a GPU's fused
    kernel; 20E for the sum of the three tables and the gradients of their rows.
    """
    h, a = config.hidden_size, config.attention_width
    softmax = 0 if gpu else 5 * config.n_heads * piece.square
    memory = len(config.memory_layers) / config.n_encoders * 20 * h  # no gelu there
    tables = 20 * config.embedding_size * piece.padded if embeddings else 0
    block = (42 * h - memory) * piece.rows + 20 * a * piece.attended + softmax
    return number * (config.n_encoders * block + tables)


def accumulation_bytes(parameters: float, precision: str, stage: int) -> float:
    """Return the bytes moved to add a micro-batch's gradients to the step's; bf16 ones are also converted, cleared."""
    return parameters * (26 if precision == "bf16" and stage else 12)


def update_bytes(recipe: Recipe, parameters: float, precision: str, stage: int, world: int) -> float:
    """Return the bytes moved once a step: gradient norm, clipping, the optimiser, the weights' copy, clearing."""
    share = 1 / world if stage else 1.0
    gradients = share if stage >= 2 else 1.0
    clipping = 8 if recipe.training.max_grad_norm else 0
    copy = 6 if precision == "bf16" and stage else 8 if stage else 0
    optimizer = 4 * UPDATE_VECTORS[recipe.training.optimizer]
    return parameters * (gradients * (4 + clipping + 4) + share * (optimizer + copy))
