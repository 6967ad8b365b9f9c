"""A model's folder: `ModelFolder.open` is the one way to read it, `save_model_folder` to write it.

    config.json        sizes; and "text": how texts are cleaned and cut; of a fine-tuned model "head" (`HeadConfig`)
    model.safetensors  weights
    tokenizer.json …   the tokenizer's files, where it has one
    *.py               the model's code, for transformers without this package

A third-party encoder's folder is as transformers writes it; fine-tuned, it holds the head besides (`encoders.save`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from twilbert import outputs, storage
from twilbert.data import batches
from twilbert.data.batches import Sequences
from twilbert.data.cleaning import FIRST, Cleaning, named, of_model
from twilbert.data.tokenizer.tokenizer import CONFIG_FILE, TOKENIZER_FILE, Tokenizer
from twilbert.errors import TwilbertError, UsageError
from twilbert.hub import encoder_files, encoders, remote_code
from twilbert.hub.configuration import TWilBertConfig
from twilbert.model.classifier import ClassificationModel, HeadConfig
from twilbert.model.config import FIELDS, ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.model.tensor_files import check_shapes, read_weights
from twilbert.parsing import read_record, read_yaml
from twilbert.plugins import Trust

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
RECIPE_NAME = "recipe.yaml"
"""In a converted model's folder: the recipe equivalent of its configuration."""
CARD_NAME = "README.md"
PRETRAINED = "TWilBertForMaskedLM"
CLASSIFIER = "TWilBertForSequenceClassification"
TEXT_SETTINGS = {"remove_rt": bool, "max_len": int, "cleaning": str}
"""Whether the word RT is removed from texts, their length in tokens, and the rules by which they are cleaned."""
PAIRS = "pairs"
"""Beside TEXT_SETTINGS, of a fine-tuned model: whether it was trained on two texts each. 0.2.0 did not record it."""
# Files of a model's folder that are no tokenizer's ("training.json": results of a fine-tuning).
_NO_TOKENIZER_FILES = (CONFIG_NAME, WEIGHTS_NAME, RECIPE_NAME, "training.json", *remote_code.files(), CARD_NAME)


def find_model(name: str, runs: str = "runs") -> str:
    """Return the model folder that `name` means: a model folder, a checkpoint, a run's folder or its name under `runs`.

    A run's model is its best by held-out loss, else its last. UsageError that lists the places searched.
    """
    candidates = [storage.absolute(p) for p in (name, storage.join(name, "model"), storage.join(runs, name, "model"))]
    for candidate in candidates:
        if storage.exists(storage.join(candidate, CONFIG_NAME)):
            return candidate
    places = "\n".join(f"  {candidate}" for candidate in candidates)
    raise UsageError(f"{name}: no model; looked for config.json in\n{places}\ngive a model folder, checkpoint or run")


@dataclass(frozen=True)
class ModelFolder:
    """A model folder opened for reading. Its parts are read, and checked, when first used.

    No code that the folder brings or names runs, and nothing is unpickled, unless it is trusted (UntrustedCode).
    Weights must have the shapes that the configuration asks, compared before a number is read, and be finite; the
    tokenizer must have as many entries as the model. Every fault is a TwilbertError that names the file.
    """

    name: str
    """The folder, or the hub id of a third-party encoder."""
    path: str
    third_party: bool
    """Whether the encoder is a transformers model and not a TWilBERT."""
    is_fine_tuned: bool
    """Whether it has a classification head."""
    _values: Mapping[str, Any]
    _trust: Trust

    @classmethod
    def open(cls, name: str, trust: Trust = False, *, any_encoder: bool = False) -> ModelFolder:
        """Open the folder `name`; UsageError where it holds no model, TwilbertError where config.json is damaged.

        `trust`: the code that may run. `any_encoder`: a third-party encoder that was not fine-tuned here will do too,
        and may be a hub id, which is downloaded.
        """
        path = encoder_files.download(name, trust is True) if any_encoder and not storage.exists(name) else name
        file = storage.join(path, CONFIG_NAME)
        if not storage.is_file(file):
            raise UsageError(
                f"{path}: not a model folder ({CONFIG_NAME} is missing); name one that pretrain or convert wrote"
            )
        values = read_record(file, dict[str, Any])
        kind = values.get("model_type")
        third_party = kind != TWilBertConfig.model_type
        fine_tuned = storage.exists(storage.join(path, encoders.RECORD)) if third_party else "head" in values
        if third_party and not fine_tuned and not any_encoder:
            raise UsageError(
                f"{file}: model_type is {kind!r:.80}, expected {TWilBertConfig.model_type!r}; an encoder of "
                "another program is fine-tuned first: twilbert-finetune --model"
            )
        return cls(name, path, third_party, fine_tuned, values, trust)

    @functools.cached_property
    def config(self) -> ModelConfig | Any:
        """Sizes and switches; of a third-party encoder transformers' configuration."""
        if self.third_party:
            return self._encoder.config
        file = storage.join(self.path, CONFIG_NAME)
        missing = [name for name in FIELDS if name not in self._values]
        if missing:
            raise TwilbertError(f"{file}: field {missing[0]!r} is missing; the file is damaged: restore it")
        try:
            return ModelConfig.from_dict({name: self._values[name] for name in FIELDS})
        except TwilbertError as error:
            raise TwilbertError(f"{file}: {error}") from error

    @functools.cached_property
    def _head_and_text(self) -> tuple[HeadConfig | None, dict[str, Any]]:
        if not self.is_fine_tuned:
            longest = encoders.longest(self.config, self.tokenizer) if self.third_party else self.config.max_len
            return None, {"remove_rt": False, "max_len": longest, "cleaning": self._pretrained_cleaning()}
        file = storage.join(self.path, encoders.RECORD if self.third_party else CONFIG_NAME)
        values = read_record(file, dict[str, Any]) if self.third_party else self._values
        try:
            head = HeadConfig.from_dict(values.get("head", {}), self._trust)
        except TwilbertError as error:
            raise type(error)(f"{file}: {error}") from error
        return head, _checked_text(file, values.get("text"))

    def _pretrained_cleaning(self) -> str:
        """The rules of a model that was only pre-trained: recorded, or those of a well-known encoder."""
        text = self._values.get("text")
        if isinstance(text, Mapping) and isinstance(text.get("cleaning"), str):
            return named(text["cleaning"]).name
        return of_model(self.name, str(self._values.get("_name_or_path"))).name if self.third_party else FIRST

    @property
    def head(self) -> HeadConfig | None:
        """The classification head; None for a model that was only pre-trained."""
        return self._head_and_text[0]

    @property
    def text(self) -> dict[str, Any]:
        """How texts are cleaned and cut, by the keys of TEXT_SETTINGS, and PAIRS where it is known."""
        return self._head_and_text[1]

    @functools.cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe it was trained with, unchecked, from the folder (a converted model) or its run; empty if none."""
        for folder in (self.path, self.path.rpartition("/")[0]):
            file = storage.join(folder, RECIPE_NAME)
            if storage.exists(file):
                values = read_yaml(file)
                return values if isinstance(values, dict) else {}
        return {}

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder has a tokenizer; one converted without a vocabulary has none."""
        return self.third_party or storage.exists(storage.join(self.path, TOKENIZER_FILE))

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | Any:
        """The tokenizer; of a third-party encoder transformers'. UsageError where the folder has none."""
        if self.third_party:
            return self._encoder.tokenizer
        tokenizer = Tokenizer.load(self.path)
        if tokenizer.vocab_size != self.config.vocab_size:
            raise TwilbertError(
                f"{self.path}: its tokenizer has {tokenizer.vocab_size:,} entries, its model "
                f"{self.config.vocab_size:,}; they do not belong together: copy the folder again"
            )
        return tokenizer

    def load(self, dtype: torch.dtype = torch.float32) -> Any:
        """Return the network with its weights in `dtype`, on the CPU, in training mode.

        A `PretrainingModel` or, fine-tuned, a `ClassificationModel`; of a third-party encoder transformers' module or
        an `EncoderClassifier`.
        """
        if self.third_party:
            network = self._encoder.network
            if self.head is not None:
                network = encoders.EncoderClassifier(network, self.head, encoders.special_ids(self.tokenizer))
                file = storage.join(self.path, encoders.HEAD_WEIGHTS)
                network.classifier.load_state_dict(read_weights(file, network.classifier))
            return network.to(dtype)
        model = empty_model(self.config, self.head)
        if self.has_tokenizer:
            _ = self.tokenizer  # read for its check
        file = storage.join(self.path, WEIGHTS_NAME)
        if not storage.is_file(file):
            raise TwilbertError(f"{file}: missing; the model folder is incomplete: copy it again, or choose another")
        model.load_state_dict(read_weights(file, model), assign=True)
        return model.to(dtype)

    def load_pretrained(self, dtype: torch.dtype = torch.float32) -> PretrainingModel:
        """Return the network with the heads of pre-training; UsageError for a fine-tuned model, which has lost them."""
        if self.is_fine_tuned:
            raise UsageError(
                f"{self.path}: a fine-tuned model, without the heads of pre-training; give the model it came from"
            )
        return self.load(dtype)

    def load_encoder(self) -> nn.Module:
        """Return the encoder alone, in fp32."""
        network = self.load()
        return network if self.third_party and not self.is_fine_tuned else network.encoder

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Sequences:
        """Texts (and pairs) as the model's input, cleaned and cut as `text` says."""
        text = {key: self.text[key] for key in TEXT_SETTINGS}
        if self.third_party:
            limit = encoders.longest(self.config, self.tokenizer)
            return encoders.encode(self.tokenizer, texts, pairs, **text, limit=limit)
        text["max_len"] = min(text["max_len"], self.config.max_len)
        return batches.encode(self.tokenizer, texts, pairs, **text)

    @property
    def cleaning(self) -> Cleaning:
        """The rules by which its texts are cleaned."""
        return named(self.text["cleaning"])

    def require_labels(self) -> HeadConfig:
        """Return the head; UsageError for a model that was only pre-trained."""
        if self.head is None:
            raise UsageError(
                f"{self.path}: a pre-trained model has no labels; give a fine-tuned one, or ask for embeddings "
                "(--embeddings cls)"
            )
        return self.head

    def check_pairs(self, given: bool) -> None:
        """UsageError where second texts are given to a model of single texts, or not given to one of pairs."""
        if given and self.text.get(PAIRS) is False:
            raise UsageError(
                f"{self.path}: fine-tuned on single texts, second ones would change its answers; leave out "
                "--pair-column (pairs= in Python)"
            )
        if not given and self.text.get(PAIRS) is True:
            raise UsageError(
                f"{self.path}: fine-tuned on pairs of texts; name the column of the second ones in a file: "
                "--pair-column NAME (pairs= in Python)"
            )

    def require_embeddings(self) -> None:
        """UsageError for a third-party encoder, whose hidden states transformers itself gives."""
        if self.third_party:
            raise UsageError(f"{self.path}: an encoder of transformers; read its embeddings with AutoModel")

    @functools.cached_property
    def _encoder(self) -> encoders.Encoder:
        return encoders.open_encoder(self.name, self.path, self._trust is True)


@overload
def empty_model(config: ModelConfig, head: None = None) -> PretrainingModel: ...
@overload
def empty_model(config: ModelConfig, head: HeadConfig) -> ClassificationModel: ...
@overload
def empty_model(config: ModelConfig, head: HeadConfig | None) -> PretrainingModel | ClassificationModel: ...
def empty_model(config: ModelConfig, head: HeadConfig | None = None) -> PretrainingModel | ClassificationModel:
    """Return a model of these sizes without numbers (on torch's meta device): with `head` a classifier."""
    with torch.device("meta"):
        return PretrainingModel(config) if head is None else ClassificationModel(config, head)


def save_model_folder(
    path: str,
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    tokenizer_folder: str | None = None,
    *,
    head: HeadConfig | None = None,
    text: Mapping[str, Any] | None = None,
    cleaning: str = FIRST,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model's folder, whole or not at all; tensors keep their type.

    `tokenizer_folder`: its files are copied in, so that the folder loads alone; `head` and `text` (the keys of
    TEXT_SETTINGS): of a fine-tuned model; `cleaning`: the rules of a pre-trained one; `files`: others to write, by
    name. TwilbertError when `state_dict` is not that of such a model; UsageError when `path` holds something.
    """
    shapes = {name: tensor.shape for name, tensor in state_dict.items()}
    check_shapes("the model to save", empty_model(config, head), shapes)
    text = text if head is not None else {"remove_rt": False, "max_len": config.max_len, "cleaning": cleaning}
    settings = _transformers_config(config, head, _checked_text("the model to save", text))
    tensors = {name: tensor.detach().contiguous() for name, tensor in state_dict.items()}
    with outputs.new_folder(path, "model") as folder:
        if tokenizer_folder is not None:
            _copy_tokenizer(tokenizer_folder, folder, settings)
        for name, content in {**remote_code.files(), **(files or {})}.items():
            storage.write_bytes_atomic(storage.join(folder, name), content)
        storage.write_bytes_atomic(storage.join(folder, WEIGHTS_NAME), save_safetensors(tensors, {"format": "pt"}))
        storage.write_bytes_atomic(storage.join(folder, CONFIG_NAME), settings.to_json_string().encode())


def _transformers_config(config: ModelConfig, head: HeadConfig | None, text: Mapping[str, Any]) -> TWilBertConfig:
    if head is None:
        return TWilBertConfig.from_model_config(config, architectures=[PRETRAINED], text=text)
    return TWilBertConfig.from_model_config(
        config,
        architectures=[CLASSIFIER],
        problem_type=head.problem,
        id2label=dict(enumerate(head.labels)),
        label2id={label: number for number, label in enumerate(head.labels)},
        head=head.to_dict(),
        text=text,
    )


def _copy_tokenizer(source: str, target: str, settings: TWilBertConfig) -> None:
    for name in storage.list_dir(source):
        file = storage.join(source, name)
        if name not in _NO_TOKENIZER_FILES and not storage.is_folder(file):
            storage.write_bytes_atomic(storage.join(target, name), storage.read_bytes(file))
    file = storage.join(target, CONFIG_FILE)
    if storage.exists(file):  # transformers cuts where the model's pairs end: two texts and three special tokens
        assert settings.text is not None
        longest = 2 * settings.text["max_len"] + 3
        storage.write_json_atomic(file, read_record(file, dict[str, Any]) | {"model_max_length": longest})


def _checked_text(source: str, text: Any) -> dict[str, Any]:
    """`text` as a dict; TwilbertError unless it has the keys of TEXT_SETTINGS, of their types.

    What 0.2.0 wrote has no rules, which are the first ones.
    """
    text = {"cleaning": FIRST, **text} if isinstance(text, Mapping) else text
    for key, kind in TEXT_SETTINGS.items():
        if not isinstance(text, Mapping) or type(text.get(key)) is not kind:
            raise TwilbertError(f"{source}: text.{key} must be {kind.__name__}; the configuration is damaged")
    if text["max_len"] < 1:
        raise TwilbertError(f"{source}: text.max_len is {text['max_len']}, must be at least 1; it is damaged")
    try:
        named(text["cleaning"])
    except UsageError as error:
        raise TwilbertError(f"{source}: {error}; update twilbert, or restore the file") from error
    if not isinstance(text.get(PAIRS, False), bool):
        raise TwilbertError(f"{source}: text.{PAIRS} must be bool; the configuration is damaged")
    return {key: text[key] for key in (*TEXT_SETTINGS, PAIRS) if key in text}
