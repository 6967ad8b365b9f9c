"""The base model of a fine-tuning: an encoder that this program wrote, or one of transformers'.

Plain data (weights as numpy arrays), loaded once for many trainings: the processes of a node share it in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from twilbert import cli, outputs, storage
from twilbert.data import batches
from twilbert.data.batches import Sequences
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.errors import UsageError
from twilbert.hub import encoders
from twilbert.hub.encoder_files import is_hub_id
from twilbert.hub.folder import ModelFolder, find_model, save_model_folder
from twilbert.model.classifier import ClassificationModel, HeadConfig
from twilbert.model.config import ModelConfig
from twilbert.plugins import Trust
from twilbert.recipe.finetuning import Encoder
from twilbert.tracking.history import newest_run

_USUAL_LENGTH = 128  # tokens of one text for a third-party encoder, where the recipe does not say
_PREFIX = "encoder."


@dataclass(frozen=True)
class TwilbertBase:
    """An encoder that pretrain or convert wrote."""

    name: str
    """As users see it: a folder or hub id."""
    config: ModelConfig
    weights: dict[str, np.ndarray]
    tokenizer: Tokenizer
    cleaning: str
    """The rules by which texts are cleaned, where the recipe does not say."""

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def n_layers(self) -> int:
        return self.config.n_encoders

    @property
    def longest_text(self) -> int:
        """Tokens of one text at most."""
        return self.config.max_len

    @property
    def usual_text(self) -> int:
        """Tokens of one text where the recipe does not say."""
        return self.config.max_len

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, text: Mapping[str, Any]) -> Sequences:
        """Return token ids and segments of texts, or pairs of texts, cleaned and cut as `text` says."""
        return batches.encode(self.tokenizer, texts, pairs, **text)

    def network(self, head: HeadConfig, settings: Encoder) -> nn.Module:
        """Return a new classifier, fp32, on the CPU; the head (and with settings.random the encoder) is drawn."""
        dropout = {"input_dropout": settings.input_dropout, "output_dropout": settings.output_dropout}
        config = dataclasses.replace(self.config, **{key: rate for key, rate in dropout.items() if rate is not None})
        network = ClassificationModel(config, head)
        if not settings.random:
            network.encoder.load_state_dict(_tensors(self.weights))
        return network

    def layer_of(self, parameter: str) -> int:
        """Return the layer of a classifier's parameter, from 0; -1: embeddings, n_layers: head."""
        if parameter.startswith("encoder.blocks."):
            owner = int(parameter.split(".")[2])
            if not self.config.cross_sharing or owner in self.config.memory_layers:
                return owner
            # One block serves many layers: it has the learning rate of the last of them.
            return max(layer for layer in range(self.n_layers) if layer not in self.config.memory_layers)
        return -1 if parameter.startswith(_PREFIX) else self.n_layers

    def save(self, path: str, network: nn.Module, text: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Write a fine-tuned model's folder, whole or not at all."""
        assert isinstance(network, ClassificationModel)
        with outputs.new_folder(path, "finetune", overwrite=True, keep=True) as folder:
            state = network.state_dict()
            save_model_folder(folder, network.config, state, head=network.head, text=text, files=files)
            self.tokenizer.save(folder)

    def digest(self) -> str:
        """Return the hex SHA-256 of configuration and weights."""
        return sha256_of(self.config, *itertools.chain(*self.weights.items()))


@dataclass(frozen=True)
class ThirdPartyBase:
    """An encoder of transformers; members as of `TwilbertBase`."""

    name: str
    config: Any
    weights: dict[str, np.ndarray]
    tokenizer: Any
    cleaning: str
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
        return min(_USUAL_LENGTH, self.longest_text)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, text: Mapping[str, Any]) -> Sequences:
        limit = encoders.longest(self.config, self.tokenizer)
        return encoders.encode(self.tokenizer, texts, pairs, **text, limit=limit)

    def network(self, head: HeadConfig, settings: Encoder) -> nn.Module:
        config = type(self.config).from_dict(self.config.to_dict())
        if settings.input_dropout is not None:
            raise UsageError(f"encoder.input_dropout: {self.name} has none; leave it at null")
        if settings.output_dropout is not None:
            if not hasattr(config, "hidden_dropout_prob"):
                raise UsageError(f"encoder.output_dropout: a {config.model_type} has none; leave it at null")
            config.hidden_dropout_prob = settings.output_dropout
        encoder = encoders.new_network(config, self.trust_remote_code)
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
    def brings_code(self) -> bool:
        """Whether modules of its own folder define it, which other processes have not imported."""
        return any(type(part).__module__.startswith("transformers_modules") for part in (self.config, self.tokenizer))

    def digest(self) -> str:
        return sha256_of(self.config.to_json_string(), *itertools.chain(*self.weights.items()))


Base = TwilbertBase | ThirdPartyBase


def _tensors(weights: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    # A copy: arrays that processes share cannot be written to.
    return {name: torch.from_numpy(np.array(values)) for name, values in weights.items()}


def _arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def sha256_of(*parts: Any) -> str:
    """Return the hex SHA-256 of arrays, and of the repr of anything else."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).view(np.uint8).data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def short_name(model: str) -> str:
    """Return the last part of a model's path or hub id that is not just "model"."""
    parts = [part for part in model.rstrip("/").split("/") if part not in ("", "model")]
    return parts[-1] if parts else "model"


def load_base(name: str | None, runs: str, trust: Trust = False) -> Base:
    """Load the encoder that `name` means (None: that of the newest finished run); UsageError where there is none.

    UntrustedCode for code that its folder brings or names, unless `trust` has it.
    """
    if name is None:
        name = newest_run(runs)
        cli.say(f"model: {name}, the newest finished run under {storage.absolute(runs)}; --model names another")
    try:
        name = find_model(name, runs)
    except UsageError:
        if storage.exists(name) or not is_hub_id(name):
            raise
    folder = ModelFolder.open(name, trust, any_encoder=True)
    if folder.is_fine_tuned:
        cli.say(f"model: {folder.path} is a fine-tuned model; its encoder is trained on, its head is replaced")
    weights, cleaning = _arrays(folder.load_encoder()), folder.text["cleaning"]
    if folder.third_party:
        return ThirdPartyBase(name, folder.config, weights, folder.tokenizer, cleaning, trust is True)
    return TwilbertBase(name, folder.config, weights, folder.tokenizer, cleaning)
