"""The models as transformers' classes: AutoModel, its relatives and `pipeline` open a model folder.

    input_ids, attention_mask, token_type_ids ─ Encoder ─▶ last_hidden_state ─ head ─▶ logits, loss

The modules are those of training, under the names of the folder's tensors. `import twilbert.hub` registers them with
transformers; where twilbert is not installed, the copy in the folder (remote_code.py) serves.
Letters: B samples, T positions (padded at the end), H hidden, V vocabulary, C labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from twilbert.hub.configuration import TWilBertConfig
from twilbert.model.classifier import HeadConfig, build_head, classify
from twilbert.model.encoder import Encoder, Padding, find_padding
from twilbert.model.heads import MaskedLMHead, ReplyOrderHead
from twilbert.model.layers import Linear, Table
from twilbert.model.memory import ProductKeyMemory, QueryNorm
from twilbert.model.problems import MULTI, REGRESSION, SINGLE
from twilbert.plugins import Trust

IGNORED_LABEL = -100
"""Label of a position that takes no part in a loss."""


def layer_states(encoder: Encoder, x_BTH: Tensor, padding: Padding | None) -> list[Tensor]:
    """Return the embeddings and every layer's output, each [B, T, H]; the last is the encoder's."""
    states = [x_BTH]
    for name in encoder.layer_blocks:
        states.append(encoder.blocks[name](states[-1], padding))
    return states


def real_lengths(attention_mask_BT: Tensor | None) -> Tensor | None:
    """Return the real tokens of each sample [B]; ValueError unless every row of the mask is ones and then zeros."""
    if attention_mask_BT is None:
        return None
    lengths_B = attention_mask_BT.long().sum(-1)
    positions_T = torch.arange(attention_mask_BT.shape[-1], device=attention_mask_BT.device)
    if attention_mask_BT.dim() != 2 or not torch.equal(attention_mask_BT.bool(), positions_T < lengths_B[:, None]):
        raise ValueError("attention_mask: expected [batch, positions], padded at the end (padding_side='right')")
    return lengths_B


class TWilBertPreTrainedModel(PreTrainedModel):
    """Base of the models. Tensors have the same names in each, so that no prefix is added or removed."""

    config_class = TWilBertConfig
    base_model_prefix = "twilbert"
    _supports_sdpa = True
    other_heads: ClassVar[tuple[str, ...]] = ()
    """Heads a folder may have that this model leaves out."""
    code: ClassVar[Mapping[str, bytes] | None] = None
    """The Python files a saved folder needs, by name; None: this is such a file, and transformers copies it."""

    def __init__(self, config: TWilBertConfig) -> None:
        super().__init__(config)
        # A running mean in bf16 would stop moving, and is small.
        self._keep_in_fp32_modules_strict = ["query_norm.running_mean", "query_norm.running_var"]
        self._keys_to_ignore_on_load_unexpected = [rf"^{name}\." for name in self.other_heads]
        self.encoder = Encoder(config.to_model_config())

    def encode(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        options: dict[str, Any],
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, Tensor | None]:
        """Return hidden states, all layers' where `options` (the library's others) want them, and the samples' lengths.

        ValueError for options that are not supported.
        """
        if input_ids is None:
            raise ValueError("input_ids are needed; inputs_embeds are not supported")
        if options.get("output_attentions"):
            raise ValueError("output_attentions: attention weights are not kept; leave it out")
        segments_BT = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        lengths_B = real_lengths(attention_mask)
        x_BTH = self.encoder.embeddings(input_ids, segments_BT, position_ids)
        states = layer_states(self.encoder, x_BTH, find_padding(lengths_B, x_BTH))
        with_states = options.get("output_hidden_states")
        with_states = self.config.output_hidden_states if with_states is None else with_states
        return states[-1], tuple(states) if with_states else None, lengths_B

    def finish(self, output: Any, options: dict[str, Any]) -> Any:
        """Return `output`, or a tuple where `return_dict` is off."""
        as_dict = options.get("return_dict")
        return output if (self.config.return_dict if as_dict is None else as_dict) else output.to_tuple()

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        return self.encoder.embeddings.token

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Linear | Table | ProductKeyMemory | nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, QueryNorm):
            for ones in (module.weight, module.running_var):
                nn.init.ones_(ones)
            for zeros in (module.bias, module.running_mean):
                nn.init.zeros_(zeros)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As the library's; the folder also loads where twilbert is not installed."""
        super().save_pretrained(save_directory, *args, **kwargs)
        for name, content in (self.code or {}).items():
            (Path(save_directory) / name).write_bytes(content)


class TWilBertModel(TWilBertPreTrainedModel):
    """The encoder alone."""

    other_heads = ("masked_lm", "reply_order", "classifier")

    def __init__(self, config: TWilBertConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        **options: Any,
    ) -> BaseModelOutput:
        """→ last_hidden_state [B, T, H]; rows at padding have no meaning."""
        hidden_BTH, states, _ = self.encode(input_ids, attention_mask, token_type_ids, position_ids, options)
        return self.finish(BaseModelOutput(last_hidden_state=hidden_BTH, hidden_states=states), options)


@dataclass
class TWilBertPreTrainingOutput(MaskedLMOutput):
    """Masked words, and beside them reply order."""

    reply_order_logits: Tensor | None = None
    """Of (reply, tweet) and (tweet, reply), [B, 2]; None for a model without that head."""


class TWilBertForMaskedLM(TWilBertPreTrainedModel):
    """Masked words and reply order: what pre-training leaves, whole, so that it can be saved and trained on."""

    other_heads = ("classifier",)

    def __init__(self, config: TWilBertConfig) -> None:
        super().__init__(_without_head(config))
        sizes = config.to_model_config()
        self.masked_lm = MaskedLMHead(sizes)
        self.reply_order = ReplyOrderHead(sizes) if sizes.use_rop else None
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The map to the vocabulary; not tied to the token table."""
        return self.masked_lm.decoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> TWilBertPreTrainingOutput:
        """→ logits [B, T, V]; with `labels` [B, T] (-100: not masked) the mean loss in nats."""
        hidden_BTH, states, _ = self.encode(input_ids, attention_mask, token_type_ids, position_ids, options)
        logits_BTV = self.masked_lm(hidden_BTH)
        output = TWilBertPreTrainingOutput(
            loss=None if labels is None else _cross_entropy(logits_BTV, labels),
            logits=logits_BTV,
            hidden_states=states,
            reply_order_logits=None if self.reply_order is None else self.reply_order(hidden_BTH[:, 0]),
        )
        return self.finish(output, options)


class TWilBertForSequenceClassification(TWilBertPreTrainedModel):
    """A label, several, or a number for a text or a pair: a fine-tuned folder's own head, or a new one to start from.

    A new head has the labels and problem_type the library is given; `head={"pooling": "avg"}` gives the rest of
    `HeadConfig`. Saved, it is a fine-tuned folder that twilbert opens too. A head of one's own is imported where
    `from_pretrained` is given trust_remote_code=True.
    """

    other_heads = ("masked_lm", "reply_order")

    def __init__(self, config: TWilBertConfig, trust: Trust = False) -> None:
        super().__init__(config)
        self.head = _head_of(config, trust)
        text = config.text or {"remove_rt": False, "max_len": config.max_len}
        config.update({"head": self.head.to_dict(), "text": text})
        self.classifier = build_head(config.hidden_size, self.head, config.initializer_range)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As the library's, which hands `trust` on to the constructor."""
        return super().from_pretrained(*args, **kwargs, trust=kwargs.get("trust_remote_code") is True)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> SequenceClassifierOutput:
        """→ logits [B, C]; with `labels` ([B] class numbers, [B, C] flags, [B] numbers) the mean loss."""
        hidden_BTH, states, lengths_B = self.encode(input_ids, attention_mask, token_type_ids, position_ids, options)
        assert input_ids is not None
        logits_BC = classify(self.head, self.classifier, hidden_BTH, lengths_B, input_ids)
        loss = None if labels is None else self._loss(logits_BC, labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits_BC, hidden_states=states)
        return self.finish(output, options)

    def _loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type is None:
            # As in the library: float labels mean that several may hold.
            flags = labels.is_floating_point() and self.head.problem == SINGLE
            self.head = dataclasses.replace(self.head, problem=MULTI if flags else self.head.problem)
            self.config.update({"problem_type": self.head.problem, "head": self.head.to_dict()})
        if self.head.problem == SINGLE:
            return _cross_entropy(logits_BC, labels)
        labels_BC = labels.view_as(logits_BC).float()
        if self.head.problem == REGRESSION:
            return F.mse_loss(logits_BC.float(), labels_BC)
        return F.binary_cross_entropy_with_logits(logits_BC.float(), labels_BC)


class TWilBertForTokenClassification(TWilBertPreTrainedModel):
    """A label for every token: dropout (config.classifier_dropout) and a linear layer, to start from."""

    other_heads = ("masked_lm", "reply_order")

    def __init__(self, config: TWilBertConfig) -> None:
        super().__init__(_without_head(config))
        self.dropout = nn.Dropout(getattr(config, "classifier_dropout", None) or 0.0)
        self.classifier = Linear(config.hidden_size, config.num_labels or 0, config.initializer_range)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> TokenClassifierOutput:
        """→ logits [B, T, C]; with `labels` [B, T] (-100: none) the mean loss in nats."""
        hidden_BTH, states, _ = self.encode(input_ids, attention_mask, token_type_ids, position_ids, options)
        logits_BTC = self.classifier(self.dropout(hidden_BTH))
        loss = None if labels is None else _cross_entropy(logits_BTC, labels)
        output = TokenClassifierOutput(loss=loss, logits=logits_BTC, hidden_states=states)
        return self.finish(output, options)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    flat = logits.reshape(-1, logits.shape[-1]).float()
    return F.cross_entropy(flat, labels.reshape(-1).long(), ignore_index=IGNORED_LABEL)


def _head_of(config: TWilBertConfig, trust: Trust) -> HeadConfig:
    """Return the head of config.head, where there is one; labels and problem come from the library's fields."""
    given = dict(config.head or {})
    names = [str(name) for _, name in sorted((config.id2label or {}).items())]
    problem = config.problem_type or (REGRESSION if len(names) == 1 else SINGLE)
    return HeadConfig.from_dict(given | {"labels": names, "problem": problem}, trust)


def _without_head(config: TWilBertConfig) -> TWilBertConfig:
    """Return `config` without the settings of a fine-tuned model."""
    for name in ("head", "text"):
        config.__dict__.pop(name, None)
    return config
