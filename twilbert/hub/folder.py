"""A model as a transformers folder: config.json, model.safetensors, its code and, where given, the tokenizer's files.

A pre-trained model and a fine-tuned one differ by what config.json says beside the sizes: the second has "head" (see
`HeadConfig`, and the library's own id2label, label2id, problem_type) and "text", how its texts were cleaned and cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, overload

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from twilbert import outputs, storage
from twilbert.errors import TwilbertError, UsageError
from twilbert.hub import remote_code
from twilbert.hub.configuration import TWilBertConfig
from twilbert.model.classifier import ClassificationModel, HeadConfig
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.model.tensor_files import check_shapes, read_weights
from twilbert.parsing import read_record
from twilbert.plugins import Trust

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
RECIPE_NAME = "recipe.yaml"
"""In a converted model's folder: the recipe equivalent of its configuration."""
PRETRAINED = "TWilBertForMaskedLM"
CLASSIFIER = "TWilBertForSequenceClassification"
TEXT_SETTINGS = {"remove_rt": bool, "max_len": int}
"""Of a fine-tuned model: whether the word RT was removed from its texts, and their length in tokens."""
CODE_NAMES = tuple(remote_code.files())
"""The model's code, for transformers without this package."""
CARD_NAME = "README.md"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
# Of a model's folder, which may serve as a tokenizer's: what is the model's own ("training.json": how it was made).
_NOT_A_TOKENIZERS = (CONFIG_NAME, WEIGHTS_NAME, RECIPE_NAME, "training.json", *CODE_NAMES, CARD_NAME)
_Model = TypeVar("_Model", bound=nn.Module)
_FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig))


@overload
def empty_model(config: ModelConfig, head: None = None) -> PretrainingModel: ...
@overload
def empty_model(config: ModelConfig, head: HeadConfig) -> ClassificationModel: ...
@overload
def empty_model(config: ModelConfig, head: HeadConfig | None) -> PretrainingModel | ClassificationModel: ...
def empty_model(config: ModelConfig, head: HeadConfig | None = None) -> PretrainingModel | ClassificationModel:
    """A model of these sizes without numbers (on torch's meta device): with `head` a classifier."""
    with torch.device("meta"):
        return PretrainingModel(config) if head is None else ClassificationModel(config, head)


def save_model_folder(
    path: str,
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    tokenizer_folder: str | None = None,
    *,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a pre-trained model's folder, whole or not at all; tensors keep their type.

    `tokenizer_folder`: its files are copied in, so that the folder loads alone; `files`: others to write, by name.
    TwilbertError when `state_dict` is not that of a model of `config`; UsageError when `path` holds something.
    """
    _check_state(empty_model(config), state_dict)
    settings = TWilBertConfig.from_model_config(config, architectures=[PRETRAINED])
    _save(path, settings, state_dict, tokenizer_folder, files or {})


def save_classifier_folder(
    path: str,
    config: ModelConfig,
    head: HeadConfig,
    text: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    tokenizer_folder: str | None = None,
    *,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a fine-tuned model's folder, whole or not at all; `text` has the keys of TEXT_SETTINGS.

    Otherwise as `save_model_folder`.
    """
    check_text("the model to save", text)
    _check_state(empty_model(config, head), state_dict)
    settings = TWilBertConfig.from_model_config(
        config,
        architectures=[CLASSIFIER],
        problem_type=head.problem,
        id2label=dict(enumerate(head.labels)),
        label2id={label: number for number, label in enumerate(head.labels)},
        head=head.to_dict(),
        text=dict(text),
    )
    _save(path, settings, state_dict, tokenizer_folder, files or {})


def _check_state(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    check_shapes("the model to save", model, {name: tensor.shape for name, tensor in state_dict.items()})


def _save(
    path: str,
    settings: TWilBertConfig,
    state_dict: Mapping[str, Tensor],
    tokenizer_folder: str | None,
    files: Mapping[str, bytes],
) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in state_dict.items()}
    with outputs.new_folder(path, "model") as folder:
        if tokenizer_folder is not None:
            _copy_files(tokenizer_folder, folder)
            _limit_tokenizer(storage.join(folder, TOKENIZER_CONFIG_NAME), settings)
        for name, content in {**remote_code.files(), **files}.items():
            storage.write_bytes_atomic(storage.join(folder, name), content)
        storage.write_bytes_atomic(storage.join(folder, WEIGHTS_NAME), save_safetensors(tensors, {"format": "pt"}))
        content = settings.to_json_string()
        storage.write_bytes_atomic(storage.join(folder, CONFIG_NAME), content.encode())


def _copy_files(source: str, target: str) -> None:
    for name in storage.list_dir(source):
        file = storage.join(source, name)
        if name not in _NOT_A_TOKENIZERS and not storage.is_folder(file):
            storage.write_bytes_atomic(storage.join(target, name), storage.read_bytes(file))


def _limit_tokenizer(file: str, settings: TWilBertConfig) -> None:
    """Let transformers cut where the model's pairs end: each text has up to max_len tokens, three are special."""
    if storage.exists(file):
        longest = settings.max_len if settings.text is None else settings.text["max_len"]
        storage.write_json_atomic(file, read_record(file, dict[str, Any]) | {"model_max_length": 2 * longest + 3})


def load_model_config(path: str) -> ModelConfig:
    """The configuration of a model folder; UsageError when it is none of ours, TwilbertError when it is damaged."""
    return _model_config(path, _settings(path))


def is_classifier(path: str) -> bool:
    """Whether a model folder is a fine-tuned one; errors as `load_model_config`."""
    return "head" in _settings(path)


def load_model_folder(path: str, dtype: torch.dtype = torch.float32) -> tuple[ModelConfig, PretrainingModel]:
    """The model of a folder that `save_model_folder` wrote, in `dtype`, on the CPU, in training mode.

    UsageError when `path` is no model folder, or a fine-tuned model's; TwilbertError when its weights are missing,
    damaged, or not those its configuration asks: the tensor, its shape, the one expected.
    """
    settings = _settings(path)
    if "head" in settings:
        raise UsageError(f"{path}: a fine-tuned model, without the heads of pre-training; give the model it came from")
    config = _model_config(path, settings)
    return config, _load_weights(path, empty_model(config)).to(dtype)


def load_classifier_folder(
    path: str, dtype: torch.dtype = torch.float32, trust: Trust = False
) -> tuple[ModelConfig, HeadConfig, dict[str, Any], ClassificationModel]:
    """Sizes, head, text settings (TEXT_SETTINGS) and model of a folder that `save_classifier_folder` wrote.

    In `dtype`, on the CPU, in training mode. UsageError when `path` is no model folder or one without a classifier;
    TwilbertError as `load_model_folder`; UntrustedCode for a head of somebody's own that is not in `trust`.
    """
    settings = _settings(path)
    if "head" not in settings:
        raise UsageError(f"{path}: a pre-trained model without a classifier; give a fine-tuned one")
    config = _model_config(path, settings)
    head, text = read_head(storage.join(path, CONFIG_NAME), settings, trust)
    return config, head, text, _load_weights(path, empty_model(config, head)).to(dtype)


def read_head(file: str, values: Mapping[str, Any], trust: Trust) -> tuple[HeadConfig, dict[str, Any]]:
    """ "head" and "text" of a fine-tuned model's `file`, whose content is `values`; TwilbertError where they are none.

    UntrustedCode for a head of somebody's own that is not in `trust`.
    """
    try:
        head = HeadConfig.from_dict(values.get("head", {}), trust)
    except TwilbertError as error:
        raise type(error)(f"{file}: {error}") from error
    text = values.get("text")
    check_text(file, text)
    return head, dict(text or {})


def _settings(path: str) -> dict[str, Any]:
    """What a model folder's config.json says; errors as `load_model_config`."""
    file = storage.join(path, CONFIG_NAME)
    if not storage.is_file(file):
        raise UsageError(
            f"{path}: not a model folder ({CONFIG_NAME} is missing); name one that pretrain or convert wrote"
        )
    values = read_record(file, dict[str, Any])
    kind = values.get("model_type")
    if kind != TWilBertConfig.model_type:
        raise UsageError(
            f"{file}: model_type is {kind!r:.80}, expected {TWilBertConfig.model_type!r}; an encoder of "
            "another program is fine-tuned first: twilbert-finetune --model"
        )
    return values


def _model_config(path: str, values: Mapping[str, Any]) -> ModelConfig:
    file = storage.join(path, CONFIG_NAME)
    missing = [name for name in _FIELDS if name not in values]
    if missing:
        raise TwilbertError(f"{file}: field {missing[0]!r} is missing; the file is damaged: restore it")
    try:
        return ModelConfig.from_dict({name: values[name] for name in _FIELDS})
    except TwilbertError as error:
        raise TwilbertError(f"{file}: {error}") from error


def check_text(source: str, text: Any) -> None:
    """TwilbertError unless `text` has the keys of TEXT_SETTINGS, of their types."""
    for key, kind in TEXT_SETTINGS.items():
        if not isinstance(text, Mapping) or type(text.get(key)) is not kind:
            raise TwilbertError(f"{source}: text.{key} must be {kind.__name__}; the configuration is damaged")
    if text["max_len"] < 1:
        raise TwilbertError(f"{source}: text.max_len is {text['max_len']}, must be at least 1; it is damaged")


def _load_weights(path: str, model: _Model) -> _Model:
    """`model`, which has no numbers yet, with those of the folder."""
    file = storage.join(path, WEIGHTS_NAME)
    if not storage.is_file(file):
        raise TwilbertError(f"{file}: missing; the model folder is incomplete: copy it again, or choose another")
    model.load_state_dict(read_weights(file, model), assign=True)
    return model
