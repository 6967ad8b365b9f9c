"""Bytes that a forward pass saves for its backward, by part, as the code of model/ does.

Letters: T tokens of a sample, M rows of the micro-batch, H hidden, A channels of all heads, N heads, E embedding;
s = bytes of a number in the compute type (2 or 4). Per row, in attention per position of it, in numbers of s bytes:

    attention   3A queries, keys, values · A its output before the projection · N·T softmax (not on a GPU: fused)
                A more where nothing is padded (scaled queries)
    norms       4H: what goes into and comes out of each of the two
    feed-forward  8H: what goes into and comes out of gelu
    dropout     2H of noise with output_dropout (one byte each on a GPU)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twilbert.model.config import ModelConfig
from twilbert.planning.workload import Piece

_INDEX_BYTES = 17  # ids, flattened and counted, of the three embedding tables
_READ_BYTES = {4: 44, 2: 46}  # of one value that a memory head reads: indices of the search, scores and weights
_ROWS = {"cpu": 32, "gpu": 512}  # of logits in fp32 at a time, as in model/losses.py


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch."""

    parts: Mapping[str, float]
    """Saved by the forward pass, by part."""
    head_backward: float
    """Temporaries of the head's backward: fp32 rows of logits, a gradient of the vocabulary matrix."""
    block_backward: float
    """Temporaries of the last block's backward."""
    memory_backward: float
    """Temporaries of the last memory layer: its search, or the gradient of its values."""
    memory_share: float
    """Share of the saved bytes that is alive then."""

    @property
    def total(self) -> float:
        """All that the forward pass saves."""
        return sum(self.parts.values())

    @property
    def peak(self) -> float:
        """The most of activations and temporaries that are alive at once."""
        in_memory = self.memory_share * self.total + self.memory_backward
        return max(self.total + max(self.head_backward, self.block_backward), in_memory)


def activations(config: ModelConfig, piece: Piece, number: int, *, gpu: bool = False) -> Activations:
    """Return the bytes of a micro-batch; `number` is bytes of a number in the compute type."""
    m = piece.rows
    h, e, a, heads = config.hidden_size, config.embedding_size, config.attention_width, config.n_heads
    n_memory = len(config.memory_layers)
    layers, plain = config.n_encoders, config.n_encoders - n_memory
    is_padded = piece.real < piece.attended
    scores = 4 * heads / number * m if gpu else heads * piece.square  # the fused kernel keeps a log-sum in fp32
    attention = a * m + (3 if is_padded or gpu else 4) * a * piece.attended + scores
    dropout = 2 * h * (1 / number if gpu else 1) if config.output_dropout else 0
    projection = (e + h) if config.factorize_embeddings else 0
    numbers = {
        "embeddings": (h + projection) * piece.padded,
        "attention": layers * attention,
        "norms": layers * (4 * h + 2 * 2 * (4 / number if gpu else 1)) * m,
        "feed_forward": plain * 8 * h * m,
        "dropout": (layers * dropout - n_memory * dropout / 2) * m,
    }
    parts = {name: value * number for name, value in numbers.items()}
    parts["embeddings"] += _INDEX_BYTES * piece.padded
    parts["memory"] = n_memory * _memory(config, piece, number, is_padded=is_padded)
    v, k = config.vocab_size, piece.masked
    parts["vocabulary_head"] = k * (number * (v + h) + 32)
    rows = 2.0 * 4 * v * min(_ROWS["gpu" if gpu else "cpu"], k)
    # In bf16 the bias gradient sums an fp32 copy of all logits' gradients.
    head = max(rows, number * v * h + (2 * number * k * v if number == 2 else 0))
    softmax = 0 if gpu else heads * piece.square
    block = number * max(4 * h * m, 2 * softmax - 11 * h * m) + (20 if number == 2 else 4) * h * h
    return Activations(parts, head, block, *_memory_backward(config, piece, number))


def _memory_backward(config: ModelConfig, piece: Piece, number: int) -> tuple[float, float]:
    """Return the temporaries of a memory layer, and the share of the saved bytes that is alive with them."""
    if not config.memory_layers:
        return 0.0, 0.0
    pkm, values = config.pkm_params, config.pkm_params.memory_size**2
    pairs = sum(pkm.knn // (i + 1) for i in range(pkm.knn))
    searched = piece.real * pkm.n_heads * 4 * (2 * pairs + 2.6 * pkm.memory_size)
    read = min(values, piece.real * pkm.n_heads * pkm.knn)
    table = number * config.memory_value_size * (values + read)
    return max(searched, table), (config.memory_layers[-1] + 1) / config.n_encoders


def _memory(config: ModelConfig, piece: Piece, number: int, *, is_padded: bool) -> float:
    """Return the bytes of one memory layer instead of the feed-forward part; it processes real tokens alone."""
    pkm, h = config.pkm_params, config.hidden_size
    queries = pkm.n_heads * pkm.k_dim
    a_token = number * queries + (2 * 4 * queries if pkm.batch_norm else 0)  # normalised in fp32
    a_token += pkm.n_heads * pkm.knn * _READ_BYTES[number]
    a_token += number * config.memory_value_size if pkm.factorize_embeddings else 0
    a_token += number * h + 8 if is_padded else 0  # tokens gathered from between the padding
    return a_token * piece.real
