"""The switches by which the one encoder computes other families: BERT, DistilBERT, RoBERTa, ModernBERT."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from twilbert.model.layers import LayerNorm, gelu


@dataclass(frozen=True)
class Architecture:
    """How the parts of the encoder are put together; the defaults are the original TWilBERT's.

    Sizes that every family has (layers, heads, hidden size, vocabulary) are `ModelConfig`'s.
    """

    spare_row: bool = True
    """Whether the token table has one row more than the vocabulary, as the released files have."""
    positions: int | None = None
    """Rows of the table of learned positions; None: those of the sizes; 0: no table."""
    first_position: int = 0
    """Row of the first token's position (RoBERTa: the padding's id + 1)."""
    segments: int = 2
    """Rows of the segment table; 0: no table."""
    embedding_norm: bool = False
    """Whether the sum of the embeddings is normalised."""
    embedding_dropout: float = 0.0
    """Probability of dropping a channel of a token's embedding."""
    pre_norm: bool = False
    """Whether the norms stand before attention and feed-forward part, with one more at the end (ModernBERT)."""
    norm_eps: float = 1e-12
    """Added to the variance inside the root of every norm."""
    norm_bias: bool = True
    attention_bias: bool = False
    feed_forward_bias: bool = True
    inner_size: int | None = None
    """Width of the feed-forward part, in channels; None: four times the hidden size."""
    activation: str = "gelu_tanh"
    """One of ACTIVATIONS."""
    gated: bool = False
    """Whether half of the first map's outputs, activated, multiply the other half (GeGLU)."""
    attention_dropout: float = 0.0
    """Probability of dropping a weight of attention."""
    attention_output_dropout: bool = True
    """Whether output dropout applies to attention too, not to the feed-forward part alone (DistilBERT)."""
    rotary_theta: float | None = None
    """Base of rotary positions (Su et al. 2021); None: none."""
    local_rotary_theta: float | None = None
    """Base in the layers with a window; None: as in the others."""
    window: int | None = None
    """Farthest token that a token attends to in the layers that are not global."""
    global_layers: tuple[int, ...] = ()
    """Layers, from 0, that attend to all tokens where there is a window."""

    def attends_globally(self, layer: int) -> bool:
        """Whether a layer attends to all tokens."""
        return self.window is None or layer in self.global_layers

    def norm(self, width: int) -> LayerNorm:
        """Return a new norm of `width` channels."""
        return LayerNorm(width, eps=self.norm_eps, bias=self.norm_bias)

    def theta(self, layer: int) -> float | None:
        """Base of a layer's rotary positions."""
        local = self.local_rotary_theta
        return self.rotary_theta if local is None or self.attends_globally(layer) else local


ACTIVATIONS = {"gelu_tanh": gelu, "gelu": F.gelu, "relu": F.relu, "silu": F.silu}
