"""Weight files in the original's layout, and its JSON configurations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from twilbert.model.classifier import HeadConfig
from twilbert.model.config import ModelConfig
from twilbert.original.weights import Layer, expected_layers

POOLING_LAYERS = {
    "cls": ["lambda_2"],
    "avg": ["global_average_pooling1d_1"],
    "max": ["global_max_pooling1d_1"],
    "concat": ["global_average_pooling1d_1", "global_max_pooling1d_1", "lambda_2", "concatenate_1"],
}


def original_json(config: ModelConfig, *, batch_norm: bool = True, **sections: Any) -> dict[str, Any]:
    """The configuration that the original would have been given for a model of these sizes."""
    names = (
        "factorize_embeddings", "cross_sharing", "embedding_size", "hidden_size", "n_encoders", "n_heads",
        "attention_size", "input_dropout", "output_dropout", "initializer_range", "pkm",
    )  # fmt: skip
    model = {name: getattr(config, name) for name in names}
    params = config.to_dict()["pkm_params"] | {"batch_norm": batch_norm}
    rop = {"use_rop": config.use_rop, "n_hidden": config.rop_n_hidden, "hidden_size": config.rop_hidden_size}
    masked_lm = {"type": "span", "max_span": 3, "budget": 0.15, "probs": {"mask": 0.8, "random": 0.1, "keep": 0.1}}
    return {
        "representation": {"max_len": config.max_len},
        "model": model | {"pkm_params": params, "rop": rop, "masked_lm": masked_lm},
        **sections,
    }


def finetuning_json(config: ModelConfig, head: HeadConfig, **changes: Any) -> dict[str, Any]:
    """The same of a fine-tuned model; `changes` go into section task."""
    task = {
        "categories": {label: number for number, label in enumerate(head.labels)},
        "multi_label": head.problem.startswith("multi"),
    }
    return original_json(
        config,
        task=task | changes,
        finetuning={"collapse_mode": head.pooling, "use_special_tokens": False},
        finetune_model={"dropout": head.dropout},
    )


def random_arrays(config: ModelConfig, head: HeadConfig | None = None, seed: int = 0) -> Iterable[np.ndarray]:
    """Random weights in the original's order, one at a time."""
    rng = np.random.default_rng(seed)
    for layer in expected_layers(config, head):
        for part in layer.parts:
            yield rng.standard_normal(part.shape, np.float32) * np.float32(0.05)


def write_pretraining(path: Path, config: ModelConfig, arrays: Iterable[np.ndarray] | None = None) -> Path:
    """A pre-training file: a group for each layer; running numbers start where another model has left them."""
    rest = iter(random_arrays(config) if arrays is None else arrays)
    with h5py.File(path, "w") as file:
        names = ["input_7", "input_8"]
        file.create_group("input_7")
        file.create_group("input_8")
        for name, layer in _named(expected_layers(config), first=9):
            names.append(name)
            _write(file.create_group(name), [(name, layer)], rest)
        _finish(file, names)
    return path


def write_finetuned(
    path: Path,
    config: ModelConfig,
    head: HeadConfig,
    arrays: Iterable[np.ndarray] | None = None,
    trainable: Callable[[int], bool] = lambda number: True,
    inside: str | None = "model_weights",
) -> Path:
    """A fine-tuned file; layers of the encoder for whose number `trainable` is false are listed after the others.

    `arrays` are in the original's order, whatever is frozen. `inside`: the group that model.save puts it all in;
    None as save_weights does.
    """
    arrays = list(random_arrays(config, head) if arrays is None else arrays)
    *encoder, classifier = list(_named(expected_layers(config, head), first=1))
    held = iter(arrays)
    filled = [(name, layer, [next(held) for _ in layer.parts]) for name, layer in encoder]
    order = [item for number, item in enumerate(filled) if trainable(number)]
    order += [item for number, item in enumerate(filled) if not trainable(number)]
    with h5py.File(path, "w") as file:
        root = file.create_group(inside) if inside else file
        listed = iter([array for _, _, own in order for array in own])
        _write(root.create_group("model_2"), [(name, layer) for name, layer, _ in order], listed)
        _write(root.create_group("dense_98"), [("dense_98", classifier[1])], held)
        for name in ("input_4", *POOLING_LAYERS[head.pooling], "dropout_1"):
            root.create_group(name)
        _finish(root, ["input_4", "model_2", *POOLING_LAYERS[head.pooling], "dropout_1", "dense_98"])
    return path


def _named(layers: Iterable[Layer], first: int) -> Iterable[tuple[str, Layer]]:
    counts: Counter[str] = Counter()
    for layer in layers:
        counts[layer.kind] += 1
        yield (layer.kind if layer.kind in ("rop", "mlm") else f"{layer.kind}_{first - 1 + counts[layer.kind]}"), layer


def _write(group: h5py.Group, layers: list[tuple[str, Layer]], arrays: Iterable[np.ndarray]) -> None:
    rest, names = iter(arrays), []
    for name, layer in layers:
        for part in layer.parts:
            names.append(f"{name}/{part.role}:0")
            array = next(rest)
            assert array.shape == part.shape, names[-1]
            group.create_dataset(names[-1], data=array)
    group.attrs["weight_names"] = np.array([name.encode() for name in names])


def _finish(root: h5py.Group, names: list[str]) -> None:
    root.attrs["layer_names"] = np.array([name.encode() for name in names])
    root.attrs["backend"], root.attrs["keras_version"] = "tensorflow", "2.2.4"
    for name in names:
        if "weight_names" not in root[name].attrs:
            root[name].attrs["weight_names"] = np.zeros(0)  # as Keras writes an empty list
