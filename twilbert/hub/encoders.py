"""Third-party encoders with our heads: any BERT-like model of transformers, with its tokenizer.

A fine-tuned one is a folder that transformers opens as the encoder; beside it classifier.safetensors holds the head's
weights, and twilbert_classifier.json what the head is and how texts are cleaned and cut.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from twilbert import outputs, storage
from twilbert.data.batches import Sequences, blanks
from twilbert.data.cleaning import named
from twilbert.data.tokenizer.tokenizer import STUCK, explained
from twilbert.errors import TwilbertError, UsageError
from twilbert.hub import encoder_files, families
from twilbert.model.classifier import HeadConfig, build_head, classify, probabilities
from twilbert.model.special_tokens import CLS, PAD
from twilbert.model.tensor_files import require_finite

RECORD = "twilbert_classifier.json"
HEAD_WEIGHTS = "classifier.safetensors"
_LAYER = re.compile(r"(?:layers?|blocks?|h)\.(\d+)\.")
_UNBOUNDED = 100_000  # tokens; a tokenizer without a limit states 10^30


class Encoder(NamedTuple):
    """A third-party encoder: configuration and tokenizer of transformers, the network in fp32, ours where it can be."""

    config: Any
    tokenizer: Any
    network: nn.Module


def open_encoder(name: str, folder: str, trust_remote_code: bool = False) -> Encoder:
    """Open the encoder in `folder`, which messages call `name`; UsageError where transformers cannot.

    Code that it brings runs, and pickled weights are read, only with `trust_remote_code`.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": not trust_remote_code}
    with encoder_files.explained(name):
        if not trust_remote_code:
            encoder_files.require_no_code(folder)
        config = AutoConfig.from_pretrained(folder, **options)
        if not hasattr(config, "hidden_size") or getattr(config, "is_encoder_decoder", False):
            raise UsageError(f"{name}: a {config.model_type}, which is no encoder of texts; give a BERT-like model")
        encoder_files.check_sizes(folder, config, lambda: new_encoder(config, trust_remote_code))
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        safely = None if trust_remote_code else True
        encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=safely, **options)
        require_finite(f"{name}: its weights", encoder.state_dict())
        _check_vocabulary(name, tokenizer, encoder)
    if families.architecture_of(config) is None:
        return Encoder(config, tokenizer, encoder)
    network = families.FamilyEncoder(config)
    network.load_state_dict(network.read(encoder.state_dict()))
    return Encoder(config, tokenizer, network)


def _check_vocabulary(name: str, tokenizer: Any, encoder: nn.Module) -> None:
    """TwilbertError where the tokenizer has ids for which the encoder has no embedding, or leaves no room for text."""
    longest_text = tokenizer.model_max_length
    if not isinstance(longest_text, int | float) or longest_text <= tokenizer.num_special_tokens_to_add(True):
        raise TwilbertError(f"{name}: tokenizer_config.json: model_max_length is {longest_text!r:.80}; no text fits")
    rows = cast(Any, encoder).get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= largest < rows:
        raise TwilbertError(
            f"{name}: its tokenizer has ids up to {largest:,}, its weights {rows:,} embeddings; they do not belong "
            "together: copy the folder again"
        )


def new_encoder(config: Any, trust_remote_code: bool = False) -> nn.Module:
    """Return an encoder of this configuration with random weights."""
    from transformers import AutoModel

    return AutoModel.from_config(config, trust_remote_code=trust_remote_code)


def new_network(config: Any, trust_remote_code: bool = False) -> nn.Module:
    """Return the network of `open_encoder` for this configuration with random weights."""
    if families.architecture_of(config) is not None:
        return families.FamilyEncoder(config)
    return new_encoder(config, trust_remote_code)


def longest(config: Any, tokenizer: Any) -> int:
    """Return the length of the longest sequence, in tokens, special ones counted."""
    positions = getattr(config, "max_position_embeddings", None) or _UNBOUNDED
    if "roberta" in config.model_type or config.model_type == "camembert":
        positions -= (config.pad_token_id or 0) + 1  # their positions begin after the padding's
    return int(min(positions, tokenizer.model_max_length))


def layer_of(name: str, n_layers: int) -> int:
    """Return the layer of an encoder's parameter, from 0; -1 before the first, n_layers after the last (a pooler)."""
    if match := _LAYER.search(name):
        return min(int(match[1]), n_layers - 1)
    return -1 if "embed" in name else n_layers


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    max_len: int,
    remove_rt: bool,
    cleaning: str,
    limit: int,
) -> Sequences:
    """Clean texts (and pairs) and return their ids; cut at `max_len` tokens each, `limit` in all."""
    clean = named(cleaning)
    special = tokenizer.num_special_tokens_to_add(pairs is not None)
    most = min(limit, (1 if pairs is None else 2) * max_len + special)
    cleaned = [[clean(text, remove_rt) for text in side] for side in (texts, pairs) if side is not None]
    with explained(tokenizer.name_or_path, TwilbertError, STUCK):
        encoded = tokenizer(
            *cleaned, truncation=True, max_length=most, return_token_type_ids=True, return_attention_mask=False,
            split_special_tokens=True,
        )  # fmt: skip
    lengths = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.fromiter((token for ids in encoded["input_ids"] for token in ids), np.int64, int(offsets[-1]))
    types = encoded["token_type_ids"]
    seconds = np.array([one.index(1) if 1 in one else len(one) for one in types], np.int64)
    empty = [np.array([not text for text in side], bool) for side in cleaned]
    return Sequences(ids, offsets, seconds, blanks(*empty))


class EncoderClassifier(nn.Module):
    """A third-party encoder under one of our heads; called as `ClassificationModel` is."""

    def __init__(self, encoder: nn.Module, head: HeadConfig, special_ids: Sequence[int]) -> None:
        super().__init__()
        self.head = head
        self.encoder = encoder
        config: Any = encoder.config
        self.classifier = build_head(config.hidden_size, head, getattr(config, "initializer_range", 0.02))
        self.pad_id = config.pad_token_id or 0
        self.has_types = getattr(config, "type_vocab_size", 0) > 1
        self.register_buffer("special_ids", torch.tensor(list(special_ids)), persistent=False)
        self.special_ids: Tensor

    def forward(self, input_ids_BT: Tensor, segment_ids_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """→ logits [B, C]; ids at padding may be any."""
        if isinstance(self.encoder, families.FamilyEncoder):
            hidden_BTH = self.encoder(input_ids_BT, segment_ids_BT, lengths_B)
            return self._classify(hidden_BTH, lengths_B, input_ids_BT)
        b, t = input_ids_BT.shape
        if lengths_B is None:
            real_BT = torch.ones(b, t, dtype=torch.bool, device=input_ids_BT.device)
        else:
            real_BT = torch.arange(t, device=input_ids_BT.device) < lengths_B.to(input_ids_BT.device)[:, None]
        types = {"token_type_ids": segment_ids_BT} if self.has_types else {}
        ids_BT = torch.where(real_BT, input_ids_BT, self.pad_id)
        hidden_BTH = self.encoder(input_ids=ids_BT, attention_mask=real_BT.long(), **types).last_hidden_state
        return self._classify(hidden_BTH, lengths_B, ids_BT)

    def _classify(self, hidden_BTH: Tensor, lengths_B: Tensor | None, ids_BT: Tensor) -> Tensor:
        # Heads tell special tokens by TWilBERT's ids.
        ours_BT = torch.where(torch.isin(ids_BT, self.special_ids), CLS, PAD)
        return classify(self.head, self.classifier, hidden_BTH, lengths_B, ours_BT)

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """As `ClassificationModel.probabilities`."""
        return probabilities(self.head.problem, logits_BC, self.head.temperature)


def special_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the tokens that stand at the ends of texts."""
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    return sorted({token_id for token_id in ends if token_id is not None})


def save(
    path: str, network: EncoderClassifier, tokenizer: Any, text: Mapping[str, Any], files: Mapping[str, bytes]
) -> None:
    """Write a fine-tuned encoder's folder, whole or not at all; `text` has the keys of `folder.TEXT_SETTINGS`."""
    if not storage.is_local(path):
        raise UsageError(f"{path}: a transformers model is written to a local or mounted folder; choose one")
    encoder: Any = network.encoder
    if isinstance(encoder, families.FamilyEncoder):
        weights = encoder.write()
        encoder = new_encoder(encoder.config)
        encoder.load_state_dict(weights)
    with outputs.new_folder(path, "finetune", overwrite=True, keep=True) as folder:
        encoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        tensors = {name: tensor.detach().contiguous() for name, tensor in network.classifier.state_dict().items()}
        storage.write_bytes_atomic(storage.join(folder, HEAD_WEIGHTS), save_safetensors(tensors))
        for name, content in files.items():
            storage.write_bytes_atomic(storage.join(folder, name), content)
        record = {"head": network.head.to_dict(), "text": dict(text)}
        storage.write_json_atomic(storage.join(folder, RECORD), record)
