"""The encoder that fine-tuning starts from: one of ours, or any of transformers'. Read once for many trainings.

A base is plain data (weights as numpy arrays), so that it can be put where many processes of a node read it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from twilbert import cli, outputs, storage
from twilbert.data import batches
from twilbert.data.batches import Sequences
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.errors import UsageError
from twilbert.hub import encoders
from twilbert.hub.folder import ModelFolder, find_model, save_model_folder
from twilbert.model.classifier import ClassificationModel, HeadConfig
from twilbert.model.config import ModelConfig
from twilbert.plugins import Trust
from twilbert.recipe.finetuning import Encoder
from twilbert.tracking.history import newest_run

_RIVAL_LENGTH = 128  # tokens of one text where neither recipe nor model says
_PREFIX = "encoder."


class Base(Protocol):
    """What a training needs to know of an encoder."""

    @property
    def name(self) -> str: ...  # as told to the user: a folder or hub id
    @property
    def hidden_size(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def longest_text(self) -> int: ...  # tokens of one text at most
    @property
    def usual_text(self) -> int: ...  # tokens of one text where the recipe does not say

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, max_len: int, remove_rt: bool) -> Sequences:
        """Texts as the model's input."""
        ...

    def network(self, head: HeadConfig, settings: Encoder) -> nn.Module:
        """A new classifier: fp32, on the CPU; the head (and with settings.random the encoder) is drawn."""
        ...

    def layer_of(self, parameter: str) -> int:
        """The layer of a network's parameter, from 0; -1 = embeddings, n_layers = head."""
        ...

    def save(self, path: str, network: nn.Module, text: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Write a fine-tuned model's folder, whole or not at all."""
        ...

    def digest(self) -> str:
        """Hex SHA-256 of configuration and weights."""
        ...


@dataclass(frozen=True)
class OwnBase:
    """An encoder that pretrain or convert wrote."""

    name: str
    config: ModelConfig
    weights: dict[str, np.ndarray]
    tokenizer: Tokenizer

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def n_layers(self) -> int:
        return self.config.n_encoders

    @property
    def longest_text(self) -> int:
        return self.config.max_len

    @property
    def usual_text(self) -> int:
        return self.config.max_len

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, max_len: int, remove_rt: bool) -> Sequences:
        return batches.encode(self.tokenizer, texts, pairs, max_len=max_len, remove_rt=remove_rt)

    def network(self, head: HeadConfig, settings: Encoder) -> nn.Module:
        network = ClassificationModel(self._config(settings), head)
        if not settings.random:
            network.encoder.load_state_dict(_tensors(self.weights))
        return network

    def _config(self, settings: Encoder) -> ModelConfig:
        asked = {"input_dropout": settings.input_dropout, "output_dropout": settings.output_dropout}
        return dataclasses.replace(self.config, **{key: value for key, value in asked.items() if value is not None})

    def layer_of(self, parameter: str) -> int:
        if parameter.startswith("encoder.blocks."):
            owner = int(parameter.split(".")[2])
            if not self.config.cross_sharing or owner in self.config.memory_layers:
                return owner
            # One block serves many layers: it learns as the last of them.
            return max(layer for layer in range(self.n_layers) if layer not in self.config.memory_layers)
        return -1 if parameter.startswith(_PREFIX) else self.n_layers

    def save(self, path: str, network: nn.Module, text: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        assert isinstance(network, ClassificationModel)
        with outputs.new_folder(path, "finetune", overwrite=True, keep=True) as folder:
            state = network.state_dict()
            save_model_folder(folder, network.config, state, head=network.head, text=text, files=files)
            self.tokenizer.save(folder)

    def digest(self) -> str:
        return sha256_of(self.config, *itertools.chain(*self.weights.items()))


@dataclass(frozen=True)
class RivalBase:
    """An encoder of transformers."""

    name: str
    config: Any
    weights: dict[str, np.ndarray]
    tokenizer: Any
    trust_remote_code: bool
    """Whether the code that it brings may run."""

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def n_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def longest_text(self) -> int:
        return encoders.longest(self.config, self.tokenizer) - self.tokenizer.num_special_tokens_to_add(False)

    @property
    def usual_text(self) -> int:
        return min(_RIVAL_LENGTH, self.longest_text)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, max_len: int, remove_rt: bool) -> Sequences:
        limit = encoders.longest(self.config, self.tokenizer)
        return encoders.encode(self.tokenizer, texts, pairs, max_len=max_len, remove_rt=remove_rt, limit=limit)

    def network(self, head: HeadConfig, settings: Encoder) -> nn.Module:
        config = type(self.config).from_dict(self.config.to_dict())
        if settings.input_dropout is not None:
            raise UsageError(f"encoder.input_dropout: {self.name} has none; leave it at null")
        if settings.output_dropout is not None:
            if not hasattr(config, "hidden_dropout_prob"):
                raise UsageError(f"encoder.output_dropout: a {config.model_type} has none; leave it at null")
            config.hidden_dropout_prob = settings.output_dropout
        encoder = encoders.new_encoder(config, self.trust_remote_code)
        if not settings.random:
            encoder.load_state_dict(_tensors(self.weights))
        return encoders.EncoderClassifier(encoder, head, encoders.special_ids(self.tokenizer))

    def layer_of(self, parameter: str) -> int:
        if not parameter.startswith(_PREFIX):
            return self.n_layers
        return encoders.layer_of(parameter.removeprefix(_PREFIX), self.n_layers)

    def save(self, path: str, network: nn.Module, text: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        assert isinstance(network, encoders.EncoderClassifier)
        encoders.save(path, network, self.tokenizer, text, files)

    @property
    def own_code(self) -> bool:
        """Whether it is made by modules of its own folder, which other processes do not have."""
        return any(type(part).__module__.startswith("transformers_modules") for part in (self.config, self.tokenizer))

    def digest(self) -> str:
        return sha256_of(self.config.to_json_string(), *itertools.chain(*self.weights.items()))


def _tensors(weights: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    # A copy: arrays that processes share cannot be written to.
    return {name: torch.from_numpy(np.array(values)) for name, values in weights.items()}


def _arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def sha256_of(*parts: Any) -> str:
    """Hex SHA-256 of arrays, and of anything whose repr says all of it."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype} {part.shape}".encode())
            found.update(np.ascontiguousarray(part).view(np.uint8).data)
        else:
            found.update(repr(part).encode())
    return found.hexdigest()


def short_name(model: str) -> str:
    """The last part of a model's path or hub id that says something."""
    parts = [part for part in model.rstrip("/").split("/") if part not in ("", "model")]
    return parts[-1] if parts else "model"


def load_base(name: str | None, runs: str, trust: Trust = False) -> Base:
    """The encoder that `name` means; None: the newest finished run's, which is announced. UsageError where none is.

    UntrustedCode for code that its folder brings or names, unless `trust` has it.
    """
    if name is None:
        name = newest_run(runs)
        cli.say(f"model: {name}, the newest finished run under {storage.absolute(runs)}; --model names another")
    try:
        name = find_model(name, runs)
    except UsageError:
        if storage.exists(name) or not encoders.could_be_hub_id(name):
            raise
    folder = ModelFolder.open(name, trust, any_encoder=True)
    if folder.is_fine_tuned:
        cli.say(f"model: {folder.path} is a fine-tuned model; its encoder goes on, its head is replaced")
    weights = _arrays(folder.load_encoder())
    if folder.third_party:
        return RivalBase(name, folder.config, weights, folder.tokenizer, trust is True)
    return OwnBase(name, folder.config, weights, folder.tokenizer)
