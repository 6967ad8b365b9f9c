"""Load the original's weights under this program's names, matched by order and shape.

Names in those files end in numbers from process-wide counters, which differ between files. So the tensors of a
configuration are listed in the order in which the original creates them, each with its shape and its place here, and
compared with the file's one by one. A fine-tuned file holds the encoder in one group, and lists trainable layers before
frozen ones: there the layers of each kind are sorted by their numbers first.

Letters: V vocabulary, E embedding, H hidden, N heads, D channels of a head, R channels of the reply head, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from twilbert.errors import UsageError
from twilbert.hub.folder import empty_model
from twilbert.model.classifier import HeadConfig
from twilbert.model.config import ModelConfig, layer_blocks
from twilbert.original.hdf5 import KerasFile, StoredLayer

_POOLING_LAYERS = {
    "cls": {"lambda"},
    "avg": {"global_average_pooling1d"},
    "max": {"global_max_pooling1d"},
    "concat": {"lambda", "global_average_pooling1d", "global_max_pooling1d"},
}
UNTRAINED_NORM = (1 + 1e-3) ** -0.5
"""Factor of the original's fresh batch normalisation of a memory's queries: mean 0, variance 1, ε 1e-3."""


class Part(NamedTuple):
    """One tensor of the original and its place here."""

    role: str
    """Its name inside the original's layer."""
    shape: tuple[int, ...]
    target: str
    """Name of the tensor here."""
    turned: bool = False
    """Whether it is transposed here."""
    row: int | None = None
    """First row of the target that it fills, where several tensors fill one."""


class Layer(NamedTuple):
    """A layer of the original: its description, Keras' name of its kind, its tensors in order."""

    what: str
    kind: str
    parts: list[Part]


def expected_layers(config: ModelConfig, head: HeadConfig | None = None) -> Iterator[Layer]:
    """Yield the layers with weights of such a model in the order of its file; with `head` a fine-tuned one's."""
    embeddings, h, e = "encoder.embeddings", config.hidden_size, config.embedding_size
    for name, rows in (("token", config.vocab_size + 1), ("position", config.n_positions), ("segment", 2)):
        parts = [Part("embeddings", (rows, e), f"{embeddings}.{name}.weight")]
        yield Layer(f"the {name} embeddings", "embedding", parts)
    if config.factorize_embeddings:
        yield Layer("the factorisation", "dense", _dense(f"{embeddings}.projection", e, h))
    for layer in sorted(set(layer_blocks(config))):
        memory = layer in config.memory_layers
        kind = "sentence_encoder_memory_block" if memory else "sentence_encoder_block"
        parts = _memory_block(config, layer) if memory else _block(config, layer)
        yield Layer(f"encoder block {layer}", kind, parts)
    if head is not None:
        width = h * (3 if head.pooling == "concat" else 1)
        yield Layer("the classifier", "dense", _dense("classifier", width, head.size))
        return
    yield from _pretraining_heads(config)


def _pretraining_heads(config: ModelConfig) -> Iterator[Layer]:
    widths = [config.hidden_size, *[config.rop_hidden_size] * config.rop_n_hidden]
    if config.use_rop:
        for number, (wide, narrow) in enumerate(pairwise(widths)):
            name = f"reply_order.hidden.{number}"
            yield Layer(f"hidden layer {number} of ROP", "dense", _dense(f"{name}.dense", wide, narrow))
            norm = _norm(f"{name}.norm", narrow, "")
            yield Layer(f"the norm of hidden layer {number} of ROP", "layer_normalization", norm)
        yield Layer("the ROP head", "rop", _dense("reply_order.classifier", widths[-1], 2))
    yield Layer("the MLM head", "mlm", _dense("masked_lm.decoder", config.hidden_size, config.vocab_size))


def _dense(target: str, inputs: int, outputs: int, suffix: str = "") -> list[Part]:
    return [
        Part(f"kernel{suffix}", (inputs, outputs), f"{target}.weight", turned=True),
        Part(f"bias{suffix}", (outputs,), f"{target}.bias"),
    ]


def _norm(target: str, width: int, suffix: str) -> list[Part]:
    return [
        Part(f"gamma{suffix}", (width,), f"{target}.weight"),
        Part(f"beta{suffix}", (width,), f"{target}.bias"),
    ]


def _numbered(role: str, number: int) -> str:
    return role if number == 0 else f"{role}_{number}"


def _attention(config: ModelConfig, block: str) -> list[Part]:
    h, a, d = config.hidden_size, config.attention_width, config.attention_width // config.n_heads
    parts = [Part("w", (a, h), f"{block}.attention.out.weight", turned=True)]
    for head in range(config.n_heads):
        for place, role in enumerate(("Wq", "Wk", "Wv")):
            row, target = place * a + head * d, f"{block}.attention.qkv.weight"
            parts.append(Part(_numbered(role, head), (h, d), target, turned=True, row=row))
    return parts


def _norms(config: ModelConfig, block: str) -> list[Part]:
    h = config.hidden_size
    return [*_norm(f"{block}.attention_norm", h, ""), *_norm(f"{block}.output_norm", h, "_1")]


def _block(config: ModelConfig, layer: int) -> list[Part]:
    block, h = f"encoder.blocks.{layer}", config.hidden_size
    up = _dense(f"{block}.feed_forward.up", h, 4 * h)
    down = _dense(f"{block}.feed_forward.down", 4 * h, h, "_1")
    return [*up, *down, *_attention(config, block), *_norms(config, block)]


def _memory_block(config: ModelConfig, layer: int) -> list[Part]:
    block, h, pkm = f"encoder.blocks.{layer}", config.hidden_size, config.pkm_params
    parts = _attention(config, block)
    for head in range(pkm.n_heads):
        row, target = head * pkm.k_dim, f"{block}.memory.query"
        parts.append(Part(_numbered("kernel", head), (h, pkm.k_dim), f"{target}.weight", turned=True, row=row))
        parts.append(Part(_numbered("bias", head), (pkm.k_dim,), f"{target}.bias", row=row))
    parts.append(Part("embeddings", (pkm.memory_size**2, h), f"{block}.memory.values.weight"))
    keys = (pkm.n_heads, 2, pkm.memory_size, pkm.k_dim // 2)
    return [*parts, Part("Variable", keys, f"{block}.memory.keys"), *_norms(config, block)]


def is_finetuned(file: KerasFile) -> bool:
    """Return whether a file is a fine-tuned model's: an encoder inside a separate group, and no masked-LM head."""
    return any(layer.name != layer.group for layer in file.layers) and not any(
        layer.name == "mlm" for layer in file.layers
    )


def vocab_size(file: KerasFile) -> int:
    """Return a file's vocabulary size; its token table has one row more. UsageError without a table."""
    tables = [layer for layer in file.layers if layer.kind == "embedding"]
    first = min(tables, key=lambda layer: layer.number, default=None)
    if first is None or len(first.tensors[0].shape) != 2 or first.tensors[0].shape[0] < 2:
        raise UsageError(f"{file.path}: no table of token embeddings; not a weight file of the original's models")
    return first.tensors[0].shape[0] - 1


def n_classes(file: KerasFile) -> int:
    """Return the outputs of a fine-tuned file's last layer; UsageError when it has no such layer."""
    last = file.layers[-1].tensors[-1]
    if file.layers[-1].kind != "dense" or len(last.shape) != 1:
        raise UsageError(f"{file.path}: its last tensor is {last.name} {list(last.shape)}, not a classifier's bias")
    return last.shape[0]


def check_pooling(file: KerasFile, pooling: str) -> None:
    """UsageError when the file's pooling layers are not those of `pooling`."""
    kinds = {StoredLayer("", name, ()).kind for name in file.groups}
    stored = kinds & _POOLING_LAYERS["concat"]
    if stored and stored != _POOLING_LAYERS[pooling]:
        other = next((name for name, layers in _POOLING_LAYERS.items() if layers == stored), "another way")
        raise UsageError(
            f"{file.path}: finetuning.collapse_mode is {pooling!r} in the configuration, but the file pools by "
            f"{other}; they do not belong together"
        )


def load_original(
    file: KerasFile, config: ModelConfig, head: HeadConfig | None = None, *, untrained_norm: bool = False
) -> dict[str, Tensor]:
    """Return the fp32 state dict of a `PretrainingModel`, with `head` a `ClassificationModel`, from an open file.

    `untrained_norm`: the memory's queries went through the original's fresh batch normalisation, whose factor is
    multiplied into their weights. UsageError with name, shape and expected shape of the first tensor that does not fit
    `config`; all shapes are compared before any number is read.
    """
    order = _in_order(file, config, head)
    readers = [tensor.read for layer, stored in order for tensor in _matched(file, layer, stored)]
    state = assemble(config, readers, head)
    if untrained_norm:
        for name, tensor in state.items():
            if ".memory.query." in name:
                tensor.mul_(UNTRAINED_NORM)
    return state


def assemble(
    config: ModelConfig, readers: list[Callable[[], Tensor]], head: HeadConfig | None = None
) -> dict[str, Tensor]:
    """Read tensors in the original's order and shapes, one at a time, and return the state dict here."""
    state = {
        name: torch.empty(tensor.shape, dtype=torch.float32)
        for name, tensor in empty_model(config, head).state_dict().items()
    }
    parts = [part for layer in expected_layers(config, head) for part in layer.parts]
    for part, read in zip(parts, readers, strict=True):
        tensor, target = read(), state[part.target]
        tensor = tensor.T if part.turned else tensor
        if part.row is not None:
            target = target[part.row : part.row + tensor.shape[0]]
        target.copy_(tensor)
    return state


def _in_order(file: KerasFile, config: ModelConfig, head: HeadConfig | None) -> list[tuple[Layer, StoredLayer]]:
    """Pair the expected layers with the file's; UsageError naming the first that is missing or too many."""
    nested = any(layer.name != layer.group for layer in file.layers)
    rest = list(file.layers)
    pairs: list[tuple[Layer, StoredLayer]] = []
    for layer in expected_layers(config, head):
        candidates = [stored for stored in rest if stored.kind == layer.kind] if nested else rest[:1]
        if not candidates:
            first = layer.parts[0]
            raise UsageError(
                f"{file.path}: {layer.what} ({first.role} {list(first.shape)} and what follows) is missing; "
                "the configuration describes another model, or the file is incomplete"
            )
        chosen = min(candidates, key=lambda stored: stored.number) if nested else candidates[0]
        if not nested:
            _matched(file, layer, chosen)  # the first that differs is the one to name, not the last that is missing
        rest.remove(chosen)
        pairs.append((layer, chosen))
    if rest:
        first = rest[0].tensors[0]
        raise UsageError(
            f"{file.path}: holds {len(rest)} layers more than the configuration describes, the first is {first.name} "
            f"{list(first.shape)}; they do not belong together"
        )
    return pairs


def _matched(file: KerasFile, layer: Layer, stored: StoredLayer) -> list:
    """Return the tensors of `stored`; UsageError unless they are those of `layer`."""
    for part, tensor in zip(layer.parts, stored.tensors, strict=False):
        if part.shape != tensor.shape:
            raise UsageError(
                f"{file.path}: tensor {tensor.name} has shape {list(tensor.shape)}, the configuration asks "
                f"{list(part.shape)} there ({part.role} of {layer.what}); they do not belong together"
            )
    if len(layer.parts) != len(stored.tensors):
        raise UsageError(
            f"{file.path}: layer {stored.name} has {len(stored.tensors)} tensors, the configuration asks "
            f"{len(layer.parts)} for {layer.what}; they do not belong together"
        )
    return list(stored.tensors)
