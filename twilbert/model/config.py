"""A model's sizes and switches, named as in the original configuration, and the number of its parameters.

They are declared here alone: a recipe's sections (recipe/pretraining.py) and transformers' configuration
(hub/configuration.py) take their fields, defaults, bounds and descriptions from these classes.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twilbert.errors import TwilbertError

_LARGEST = {"n_encoders": 1_024, "n_heads": 1_024, "vocab_size": 2**24}
"""The largest value of some sizes, of all others 2^17: far beyond any model, and still bounded work."""


_COMPARISONS = {"ge": ("≥", operator.ge), "gt": (">", operator.gt), "le": ("≤", operator.le), "lt": ("<", operator.lt)}


def limits(declared: dataclasses.Field[Any]) -> dict[str, Any]:
    """Return the bounds of a number as pydantic names them (ge, gt, le, lt); empty for a field of another type."""
    if declared.type in ("int", "int | None"):
        return {"ge": 0 if declared.name == "rop_n_hidden" else 1, "le": _LARGEST.get(declared.name, 2**17)}
    if declared.type == "float":
        return {"ge": 0, "lt": 1} if declared.name.endswith("dropout") else {"gt": 0, "lt": math.inf}
    return {}


_KINDS = {"bool": ("true or false", (bool,)), "float": ("a number", (int, float))}


def _check_fields(values: Any, where: str = "") -> None:
    """ValueError that names the first field of a dataclass whose value is not of its type or out of its bounds."""
    for declared in dataclasses.fields(values):
        name, value, bounds = declared.name, getattr(values, declared.name), limits(declared)
        if not bounds and declared.type != "bool":
            continue
        kind, types = _KINDS.get(str(declared.type), ("a whole number", (int,)))
        if type(value) not in types or not all(_COMPARISONS[key][1](value, bound) for key, bound in bounds.items()):
            expected = " ".join([kind, *(f"{_COMPARISONS[key][0]} {bound:,}" for key, bound in bounds.items())])
            raise ValueError(f"{where}{name} is {value!r:.80}; expected {expected}")


@dataclass(frozen=True)
class PkmParams:
    """Product-key memory that replaces the feed-forward part of some layers (Lample et al. 2019)."""

    factorize_embeddings: bool = False
    """Values of width `embedding_size`, projected to `hidden_size`, instead of values of width `hidden_size`."""
    k_dim: int = 512
    """Width of a query, in channels; each half of it meets its own keys."""
    memory_size: int = 256
    """Keys of each half; the memory holds memory_size² values."""
    n_heads: int = 4
    """Query heads; they share the values, not the keys."""
    knn: int = 32
    """Values that a head reads for a token."""
    in_layers: tuple[int, ...] = (10,)
    """Layers, counted from 0, whose feed-forward part the memory replaces."""
    input_dropout: float = 0.0
    """Probability of dropping a channel of the memory's input."""
    output_dropout: float = 0.0
    """Probability of dropping a channel of the memory's output."""
    batch_norm: bool = True
    """Whether queries are normalised over the real tokens of a micro-batch on all workers (Lample et al. 3.2)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_layers", tuple(self.in_layers))
        _check_fields(self, "pkm_params.")
        if self.k_dim % 2 or self.knn > self.memory_size:
            raise ValueError("pkm_params.k_dim must be even, and knn at most memory_size")


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and switches of the encoder; the defaults are the released Base model's."""

    vocab_size: int = 30002
    """Ids the MLM head predicts; the token table has one row more, as the released files have."""
    max_len: int = 128
    """Tokens of one tweet; a pair with its special tokens has up to 2·max_len + 3."""
    hidden_size: int = 768
    """Width of the hidden states, in channels."""
    embedding_size: int = 768
    """Width of the embedding tables, in channels; other than hidden_size only with factorize_embeddings."""
    factorize_embeddings: bool = False
    """Whether embeddings are projected to hidden_size, through gelu(x·W + b)."""
    n_encoders: int = 6
    """Layers of the encoder."""
    n_heads: int = 6
    """Attention heads of a layer."""
    attention_size: int | None = 64
    """Width of one attention head, in channels; n_heads·attention_size need not be hidden_size."""
    cross_sharing: bool = False
    """Whether all layers share one block (Lan et al. 2020); memory layers always have their own."""
    input_dropout: float = 0.0
    """Probability of dropping a whole channel of a sample's embeddings."""
    output_dropout: float = 0.0
    """Probability of dropping a channel of the output of attention and of the feed-forward part."""
    initializer_range: float = 0.02
    """Standard deviation of the normal, cut at two of them, that kernels and embeddings are drawn from."""
    pkm: bool = False
    """Whether the layers pkm_params.in_layers have a product-key memory (Lample et al. 2019)."""
    pkm_params: PkmParams = field(default_factory=PkmParams)
    """Sizes of that memory; without meaning where pkm is off."""


@dataclass(frozen=True)
class ModelConfig(EncoderConfig):
    """Sizes and switches of the encoder and its two heads.

    `pkm_params` may be given as a mapping and `attention_size` as None (then hidden_size / n_heads).
    """

    use_rop: bool = True
    """Whether the model has a reply-order head."""
    rop_n_hidden: int = 0
    """Hidden layers of the reply-order head."""
    rop_hidden_size: int = 512
    """Width of those, in channels."""

    def __post_init__(self) -> None:
        params = self.pkm_params
        if params is None:
            object.__setattr__(self, "pkm_params", PkmParams())
        elif isinstance(params, Mapping):
            object.__setattr__(self, "pkm_params", PkmParams(**params))
        elif not isinstance(params, PkmParams):
            raise ValueError(f"pkm_params is {params!r:.80}; expected a mapping")
        if self.attention_size is None and self.n_heads:
            object.__setattr__(self, "attention_size", self.hidden_size // self.n_heads)
        _check_fields(self)
        if not self.factorize_embeddings and self.embedding_size != self.hidden_size:
            raise ValueError("embedding_size must equal hidden_size unless factorize_embeddings")
        layers = self.pkm_params.in_layers if self.pkm else ()
        if not all(type(layer) is int and 0 <= layer < self.n_encoders for layer in layers):
            raise ValueError("pkm_params.in_layers must lie in 0..n_encoders-1")

    @property
    def n_positions(self) -> int:
        """Rows of the position table: the longest sequence the model takes, in tokens."""
        return 2 * self.max_len + 4

    @property
    def attention_width(self) -> int:
        """Channels of all attention heads of a layer together."""
        assert self.attention_size is not None
        return self.n_heads * self.attention_size

    @property
    def memory_layers(self) -> tuple[int, ...]:
        """Layers, counted from 0, that have a product-key memory, ascending."""
        return tuple(sorted(set(self.pkm_params.in_layers))) if self.pkm else ()

    @property
    def memory_value_size(self) -> int:
        """Width of one value of the memory, in channels."""
        return self.embedding_size if self.pkm_params.factorize_embeddings else self.hidden_size

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types; `from_dict` reads them back."""
        values = dataclasses.asdict(self)
        values["pkm_params"]["in_layers"] = list(self.pkm_params.in_layers)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The configuration of these fields; TwilbertError naming the field that is unknown or does not fit."""
        unknown = sorted(set(values) - set(FIELDS))
        if unknown:
            names = ", ".join(sorted(FIELDS))
            raise TwilbertError(f"model configuration: unknown field {unknown[0]!r}; known are {names}")
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise TwilbertError(f"model configuration: {error}") from error


FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig))


def layer_blocks(config: ModelConfig) -> list[int]:
    """For each layer the layer that owns its block: itself, or, with cross-layer sharing, the first without memory."""
    memory = set(config.memory_layers)
    ordinary = [layer for layer in range(config.n_encoders) if layer not in memory]
    if not config.cross_sharing:
        return list(range(config.n_encoders))
    return [layer if layer in memory else ordinary[0] for layer in range(config.n_encoders)]


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Trainable numbers by part, from the sizes alone; "encoder" and "total" are sums of the others.

    A block that several layers share counts once. Running statistics of the query batch-norm are no parameters.
    """
    h, e, a = config.hidden_size, config.embedding_size, config.attention_width
    attention_and_norms = 3 * h * a + a * h + 4 * h
    feed_forward = h * 4 * h + 4 * h + 4 * h * h + h
    pkm = config.pkm_params
    queries = pkm.n_heads * pkm.k_dim
    memory = h * queries + queries + pkm.n_heads * pkm.memory_size * pkm.k_dim
    memory += pkm.memory_size**2 * config.memory_value_size
    memory += config.memory_value_size * h if pkm.factorize_embeddings else 0
    memory += 2 * queries if pkm.batch_norm else 0
    owners = set(layer_blocks(config))
    n_memory = len(owners.intersection(config.memory_layers))
    r = config.rop_hidden_size
    rop_widths = [h] + [r] * config.rop_n_hidden
    rop = sum(wide * r + r + 2 * r for wide in rop_widths[:-1]) + rop_widths[-1] * 2 + 2
    counts = {
        "token_embeddings": (config.vocab_size + 1) * e,
        "position_embeddings": config.n_positions * e,
        "segment_embeddings": 2 * e,
        "embedding_projection": e * h + h if config.factorize_embeddings else 0,
        "blocks": (len(owners) - n_memory) * (attention_and_norms + feed_forward),
        "memory_blocks": n_memory * (attention_and_norms + memory),
    }
    counts["encoder"] = sum(counts.values())
    counts["reply_order"] = rop if config.use_rop else 0
    counts["masked_lm"] = h * config.vocab_size + config.vocab_size
    counts["total"] = counts["encoder"] + counts["reply_order"] + counts["masked_lm"]
    return counts
