"""A model as a transformers folder: config.json, model.safetensors and, where given, the tokenizer's files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from transformers import PretrainedConfig

from twilbert import storage
from twilbert.errors import TwilbertError, UsageError
from twilbert.model.config import PAD_ID, ModelConfig
from twilbert.model.heads import PretrainingModel

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig))


class TWilBertConfig(PretrainedConfig):
    """`ModelConfig` as transformers keeps configurations: its fields flat, and the library's usual names for some."""

    model_type = "twilbert"
    attribute_map = {  # noqa: RUF012 (the library's own way of saying it)
        "num_hidden_layers": "n_encoders",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "n_positions",
    }

    def __init__(self, **values: Any) -> None:
        for name, value in ModelConfig().to_dict().items():
            setattr(self, name, values.pop(name, value))
        # The length transformers cuts at follows from max_len; kept in the file for readers of the file.
        self.n_positions = 2 * self.max_len + 4
        values.pop("n_positions", None)
        values.setdefault("pad_token_id", PAD_ID)
        super().__init__(**values)

    @classmethod
    def from_model_config(cls, config: ModelConfig) -> TWilBertConfig:
        """The same model in transformers' terms."""
        return cls(**config.to_dict())

    def to_model_config(self) -> ModelConfig:
        """The model these fields describe; TwilbertError when they do not fit together."""
        return ModelConfig.from_dict({name: getattr(self, name) for name in _FIELDS})


def expected_tensors(config: ModelConfig) -> dict[str, torch.Size]:
    """Name and shape of every tensor that a model of this configuration saves."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in PretrainingModel(config).state_dict().items()}


def check_tensors(source: str, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """TwilbertError naming the first tensor of `source` that is missing, unknown or not of the shape `config` asks."""
    expected = expected_tensors(config)
    for name, shape in expected.items():
        if name not in tensors:
            raise TwilbertError(f"{source}: tensor {name} {list(shape)} is missing; these are not this model's weights")
        if tensors[name].shape != shape:
            raise TwilbertError(
                f"{source}: tensor {name} has shape {list(tensors[name].shape)}, the configuration asks {list(shape)}; "
                "config.json and weights do not belong together"
            )
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise TwilbertError(
            f"{source}: holds {len(unknown)} tensors this model does not have, the first is {unknown[0]}; "
            "config.json and weights do not belong together"
        )


def save_model_folder(
    path: str,
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    tokenizer_folder: str | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a model folder, whole or not at all; tensors keep their type.

    `tokenizer_folder`: its files are copied in, so that the folder loads alone. TwilbertError when `state_dict` is not
    that of a model of `config`; UsageError when `path` holds something and not `overwrite`.
    """
    check_tensors("the model to save", config, state_dict)
    tensors = {name: tensor.detach().contiguous() for name, tensor in state_dict.items()}
    with storage.new_folder(path, overwrite=overwrite) as folder:
        if tokenizer_folder is not None:
            _copy_files(tokenizer_folder, folder)
        storage.write_bytes_atomic(storage.join(folder, WEIGHTS_NAME), save_safetensors(tensors, {"format": "pt"}))
        settings = TWilBertConfig.from_model_config(config).to_json_string(use_diff=False)
        storage.write_bytes_atomic(storage.join(folder, CONFIG_NAME), settings.encode())


def _copy_files(source: str, target: str) -> None:
    for name in storage.list_dir(source):
        file = storage.join(source, name)
        if name not in (CONFIG_NAME, WEIGHTS_NAME) and not storage.is_folder(file):
            storage.write_bytes_atomic(storage.join(target, name), storage.read_bytes(file))


def load_model_config(path: str) -> ModelConfig:
    """The configuration of a model folder; UsageError when it is none of ours, TwilbertError when it is damaged."""
    file = storage.join(path, CONFIG_NAME)
    if not storage.exists(file):
        raise UsageError(
            f"{path}: not a model folder ({CONFIG_NAME} is missing); name one that pretrain or convert wrote"
        )
    values = storage.read_json(file)
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind != TWilBertConfig.model_type:
        raise UsageError(f"{file}: model_type is {kind!r}, expected {TWilBertConfig.model_type!r}")
    missing = [name for name in _FIELDS if name not in values]
    if missing:
        raise TwilbertError(f"{file}: field {missing[0]!r} is missing; the file is damaged: restore it")
    try:
        return ModelConfig.from_dict({name: values[name] for name in _FIELDS})
    except TwilbertError as error:
        raise TwilbertError(f"{file}: {error}") from error


def load_model_folder(path: str, dtype: torch.dtype = torch.float32) -> tuple[ModelConfig, PretrainingModel]:
    """The model of a folder that `save_model_folder` wrote, in `dtype`, on the CPU, in training mode.

    UsageError when `path` is no model folder; TwilbertError when its weights are missing, damaged, or not those its
    configuration asks: the tensor, its shape, the one expected.
    """
    config = load_model_config(path)
    file = storage.join(path, WEIGHTS_NAME)
    if not storage.exists(file):
        raise TwilbertError(f"{file}: missing; the model folder is incomplete: copy it again, or choose another")
    try:
        tensors = load_safetensors(storage.read_bytes(file))
    except SafetensorError as error:
        raise TwilbertError(
            f"{file}: not readable as safetensors ({error}); the file is damaged: restore it"
        ) from error
    check_tensors(file, config, tensors)
    with torch.device("meta"):
        model = PretrainingModel(config)
    model.load_state_dict(tensors, assign=True)
    return config, model.to(dtype)
