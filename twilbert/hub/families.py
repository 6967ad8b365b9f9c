"""Encoders of transformers computed by our own: BERT, DistilBERT, RoBERTa, XLM-R, CamemBERT, ModernBERT.

    configuration ─ family ─▶ sizes and Architecture ─▶ Encoder;  tensors ─ read ─▶ its weights ─ write ─▶ tensors

Tensors are renamed, and queries, keys and values put together or apart; nothing is computed, so that a folder comes out
as it went in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from twilbert.errors import TwilbertError
from twilbert.model.architecture import Architecture
from twilbert.model.config import ModelConfig
from twilbert.model.encoder import Encoder

_ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How a family of transformers names its parts, and which switches it has."""

    architecture: Callable[[Any], Architecture | None]
    """From transformers' configuration; None where it asks for something that the encoder does not compute."""
    names: Mapping[str, str | tuple[str, ...]]
    """Our module → theirs; of a layer after `layer`. Several are stacked in rows."""
    layer: str
    """Prefix of a layer's modules, with {} for its number."""
    pooler: bool = False
    """Whether the encoder comes with a pooler, which is kept and not used."""


def _bert(config: Any) -> Architecture | None:
    activation = _ACTIVATIONS.get(config.hidden_act)
    learned = getattr(config, "position_embedding_type", "absolute") == "absolute"
    if activation is None or not learned or getattr(config, "is_decoder", False):
        return None
    return Architecture(
        spare_row=False,
        positions=config.max_position_embeddings,
        segments=config.type_vocab_size,
        embedding_norm=True,
        embedding_dropout=config.hidden_dropout_prob,
        norm_eps=config.layer_norm_eps,
        attention_bias=True,
        inner_size=config.intermediate_size,
        activation=activation,
        attention_dropout=config.attention_probs_dropout_prob,
    )


def _roberta(config: Any) -> Architecture | None:
    bert = _bert(config)
    if bert is None or config.pad_token_id is None:
        return None
    return replace(bert, first_position=config.pad_token_id + 1)


def _distilbert(config: Any) -> Architecture | None:
    activation = _ACTIVATIONS.get(config.activation)
    if activation is None or config.sinusoidal_pos_embds:
        return None
    return Architecture(
        spare_row=False,
        positions=config.max_position_embeddings,
        segments=0,
        embedding_norm=True,
        embedding_dropout=config.dropout,
        attention_bias=True,
        inner_size=config.hidden_dim,
        activation=activation,
        attention_dropout=config.attention_dropout,
        attention_output_dropout=False,
    )


def _modernbert(config: Any) -> Architecture | None:
    activation, rotary = _ACTIVATIONS.get(config.hidden_activation), config.rope_parameters
    kinds = [rotary["full_attention"], rotary["sliding_attention"]]
    same_dropouts = config.attention_dropout == config.mlp_dropout
    if activation is None or any(kind["rope_type"] != "default" for kind in kinds) or not same_dropouts:
        return None
    return Architecture(
        spare_row=False,
        positions=0,
        segments=0,
        embedding_norm=True,
        embedding_dropout=config.embedding_dropout,
        pre_norm=True,
        norm_eps=config.norm_eps,
        norm_bias=config.norm_bias,
        attention_bias=config.attention_bias,
        feed_forward_bias=config.mlp_bias,
        inner_size=config.intermediate_size,
        activation=activation,
        gated=True,
        attention_dropout=config.attention_dropout,
        rotary_theta=kinds[0]["rope_theta"],
        local_rotary_theta=kinds[1]["rope_theta"],
        window=config.local_attention // 2,
        global_layers=tuple(i for i, kind in enumerate(config.layer_types) if kind == "full_attention"),
    )


_BERT_NAMES: dict[str, str | tuple[str, ...]] = {
    "embeddings.token": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.segment": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "output_norm": "output.LayerNorm",
}
_BERT = Family(_bert, _BERT_NAMES, "encoder.layer.{}.", pooler=True)
_ROBERTA = Family(_roberta, _BERT_NAMES, "encoder.layer.{}.", pooler=True)
_DISTILBERT = Family(
    _distilbert,
    {
        **{ours: name for ours, name in _BERT_NAMES.items() if ours.startswith("embeddings.")},
        "attention.qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention.out": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "feed_forward.up": "ffn.lin1",
        "feed_forward.down": "ffn.lin2",
        "output_norm": "output_layer_norm",
    },
    "transformer.layer.{}.",
)
_MODERNBERT = Family(
    _modernbert,
    {
        "embeddings.token": "embeddings.tok_embeddings",
        "embeddings.norm": "embeddings.norm",
        "attention.qkv": "attn.Wqkv",
        "attention.out": "attn.Wo",
        "attention_norm": "attn_norm",
        "feed_forward.up": "mlp.Wi",
        "feed_forward.down": "mlp.Wo",
        "output_norm": "mlp_norm",
        "final_norm": "final_norm",
    },
    "layers.{}.",
)
FAMILIES = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "modernbert": _MODERNBERT,
}
"""By transformers' model_type."""


def architecture_of(config: Any) -> Architecture | None:
    """Return the switches for transformers' configuration; None for what is not computed here."""
    family = FAMILIES.get(config.model_type)
    return None if family is None else family.architecture(config)


class FamilyEncoder(nn.Module):
    """Our encoder with the weights of a supported transformers encoder, and that one's configuration and pooler.

    Called with ids, token types and lengths as `Encoder` is.
    """

    def __init__(self, config: Any) -> None:
        """New weights; `config`: one for which `architecture_of` has an answer."""
        super().__init__()
        architecture = architecture_of(config)
        assert architecture is not None
        hidden, heads = config.hidden_size, config.num_attention_heads
        dropouts = ("hidden_dropout_prob", "mlp_dropout", "dropout")
        sizes = ModelConfig(
            vocab_size=config.vocab_size, hidden_size=hidden, embedding_size=hidden, n_heads=heads,
            n_encoders=config.num_hidden_layers, attention_size=hidden // heads, use_rop=False,
            output_dropout=next(getattr(config, name) for name in dropouts if hasattr(config, name)),
            initializer_range=config.initializer_range,
        )  # fmt: skip
        self.config = config
        self.encoder = Encoder(sizes, architecture)
        self.pooler = None
        if FAMILIES[config.model_type].pooler:
            self.pooler = nn.ModuleDict({"dense": nn.Linear(hidden, hidden)}).requires_grad_(False)

    def forward(self, input_ids_BT: Tensor, segment_ids_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """→ hidden states [B, T, H], undefined at padding."""
        return self.encoder(input_ids_BT, segment_ids_BT, lengths_B)

    def read(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return transformers' tensors by our names; TwilbertError where one is missing or has another shape."""
        weights = {}
        for name, tensor in self.state_dict().items():
            theirs = _their_names(self.config, name)
            if missing := [one for one in theirs if one not in tensors]:
                shape = [tensor.shape[0] // len(theirs), *tensor.shape[1:]]
                raise TwilbertError(f"{missing[0]} is missing, {shape}; the weights are not of this configuration")
            parts = [tensors[one] for one in theirs]
            weights[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
            if weights[name].shape != tensor.shape:
                raise TwilbertError(
                    f"{', '.join(theirs)} has the shape {list(weights[name].shape)}, the configuration asks for "
                    f"{list(tensor.shape)}"
                )
        return weights

    def write(self) -> dict[str, Tensor]:
        """Return the weights by transformers' names: the inverse of `read`."""
        tensors = {}
        for name, tensor in self.state_dict().items():
            names = _their_names(self.config, name)
            tensors |= dict(zip(names, tensor.detach().chunk(len(names)), strict=True))
        return tensors


def _their_names(config: Any, name: str) -> list[str]:
    """Transformers' names of what makes up our parameter `name`, in the order of its rows."""
    family = FAMILIES[config.model_type]
    if name.startswith("pooler."):
        return [name]
    module, _, kind = name.removeprefix("encoder.").rpartition(".")
    prefix = ""
    if module.startswith("blocks."):
        _, number, module = module.split(".", 2)
        prefix = family.layer.format(number)
    theirs = family.names[module]
    return [f"{prefix}{one}.{kind}" for one in ([theirs] if isinstance(theirs, str) else theirs)]
