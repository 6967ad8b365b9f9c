"""The two pre-training heads on top of the encoder: masked language model and reply order.

Letters: B samples, T positions, H hidden, V vocabulary, K masked positions of the batch, R channels of the reply head.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twilbert.model.config import ModelConfig
from twilbert.model.encoder import Encoder
from twilbert.model.layers import LayerNorm, Linear, gelu
from twilbert.model.losses import token_cross_entropy
from twilbert.model.special_tokens import MASK

NO_LABEL = -100
"""Reply-order label of a sample without a reply, which that loss ignores."""


class MaskedLMHead(nn.Module):
    """A linear map from hidden states to logits over the vocabulary, not tied to the embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.decoder = Linear(config.hidden_size, config.vocab_size, config.initializer_range)

    def forward(self, hidden_KH: Tensor) -> Tensor:
        """[K, H] → [K, V]."""
        return self.decoder(hidden_KH)


class _HiddenLayer(nn.Module):
    """Dense → gelu → norm."""

    def __init__(self, in_features: int, out_features: int, std: float) -> None:
        super().__init__()
        self.dense = Linear(in_features, out_features, std)
        self.norm = LayerNorm(out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(gelu(self.dense(x)))


class ReplyOrderHead(nn.Module):
    """`rop_n_hidden` layers from the first token's hidden state to logits of (reply, tweet) and (tweet, reply)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        std = config.initializer_range
        widths = [config.hidden_size] + [config.rop_hidden_size] * config.rop_n_hidden
        self.hidden = nn.ModuleList(_HiddenLayer(wide, narrow, std) for wide, narrow in pairwise(widths))
        self.classifier = Linear(widths[-1], 2, std)

    def forward(self, first_BH: Tensor) -> Tensor:
        """[B, H] → [B, 2]."""
        for layer in self.hidden:
            first_BH = layer(first_BH)
        return self.classifier(first_BH)


class PretrainingOutput(NamedTuple):
    """Sums over a micro-batch, fp32 scalars on the model's device; the two losses carry gradients, in nats."""

    mlm_loss_sum: Tensor
    rop_loss_sum: Tensor
    mlm_correct: Tensor
    rop_correct: Tensor
    n_masked: Tensor
    n_rop: Tensor
    mlm_loss_sum_at_mask: Tensor
    """The loss where the input token is [MASK], not a random or the original one; without gradient."""
    mlm_correct_at_mask: Tensor
    n_at_mask: Tensor


class Scores(NamedTuple):
    """Scores of a batch by position and sample, without gradients."""

    mlm_nll_K: Tensor
    """Negative log-likelihood of the true token in nats, fp32."""
    mlm_prediction_K: Tensor
    """Most likely token id."""
    at_mask_K: Tensor
    """Whether the input token there was [MASK], not a random or the original one."""
    rop_log_probs_B2: Tensor | None
    """Log-probabilities of (reply, tweet) and (tweet, reply), fp32; None for a model without that head."""


class PretrainingModel(nn.Module):
    """Encoder, masked-LM head at masked positions only, and reply-order head.

    Every call uses every parameter, even on no samples, so that each gets a gradient on every worker. Each is read in
    the forward of its own module, as ZeRO 3 needs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.masked_lm = MaskedLMHead(config)
        self.reply_order = ReplyOrderHead(config) if config.use_rop else None

    def forward(
        self,
        input_ids: Tensor,
        segment_ids: Tensor,
        lengths: Tensor | None,
        masked_index: Tensor,
        masked_labels: Tensor,
        rop_labels: Tensor,
        position_ids: Tensor | None = None,
    ) -> PretrainingOutput:
        """Return the loss and accuracy sums of one micro-batch.

        input_ids, segment_ids [B, T], padded at the end; lengths [B], real tokens (None: no padding); masked_index [K],
        flat into B·T; masked_labels [K], true ids there; rop_labels [B]: 1 (tweet, reply), 0 (reply, tweet), -100 where
        there is no reply; position_ids [B, T] instead of 0, 1, 2, …. B ≥ 0 and K ≥ 0, T ≥ 1.
        """
        mlm_KV, rop_B2 = self._logits(input_ids, segment_ids, lengths, masked_index, position_ids)
        labels_K = masked_labels.long()
        correct_K = _argmax(mlm_KV) == labels_K
        nll_K = token_cross_entropy(mlm_KV, labels_K)
        rop_loss_sum, rop_correct, n_rop = _reply_order_sums(rop_B2, rop_labels)
        at_mask_K = (_tokens_at(input_ids, masked_index) == MASK).float()
        return PretrainingOutput(
            mlm_loss_sum=nll_K.sum(),
            rop_loss_sum=rop_loss_sum,
            mlm_correct=correct_K.float().sum(),
            rop_correct=rop_correct,
            n_masked=torch.full((), labels_K.numel(), dtype=torch.float32, device=nll_K.device),
            n_rop=n_rop,
            mlm_loss_sum_at_mask=(nll_K.detach() * at_mask_K).sum(),
            mlm_correct_at_mask=(correct_K * at_mask_K).sum(),
            n_at_mask=at_mask_K.sum(),
        )

    @torch.no_grad()
    def score(
        self,
        input_ids: Tensor,
        segment_ids: Tensor,
        lengths: Tensor | None,
        masked_index: Tensor,
        masked_labels: Tensor,
        position_ids: Tensor | None = None,
    ) -> Scores:
        """Return the batch's scores one by one; arguments as in `forward`. Not for ZeRO 3: call the engine there.

        Call `eval()` first for scores without dropout.
        """
        mlm_KV, rop_B2 = self._logits(input_ids, segment_ids, lengths, masked_index, position_ids)
        return Scores(
            token_cross_entropy(mlm_KV, masked_labels.long()),
            _argmax(mlm_KV),
            _tokens_at(input_ids, masked_index) == MASK,
            None if rop_B2 is None else rop_B2.float().log_softmax(-1),
        )

    def _logits(
        self,
        input_ids: Tensor,
        segment_ids: Tensor,
        lengths: Tensor | None,
        masked_index: Tensor,
        position_ids: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        hidden_BTH = self.encoder(input_ids, segment_ids, lengths, position_ids)
        masked_KH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1]).index_select(0, masked_index)
        rop_B2 = None if self.reply_order is None else self.reply_order(hidden_BTH[:, 0])
        return self.masked_lm(masked_KH), rop_B2


def _argmax(logits_KV: Tensor) -> Tensor:
    # max, not argmax: on CPU its bf16 kernel is several times faster.
    return logits_KV.detach().max(dim=-1).indices


def _tokens_at(input_ids_BT: Tensor, index_K: Tensor) -> Tensor:
    return input_ids_BT.reshape(-1).index_select(0, index_K)


def _reply_order_sums(logits_B2: Tensor | None, labels_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss sum, correct predictions and samples with a reply, fp32; zeros for a model without that head."""
    if logits_B2 is None:
        zero = torch.zeros((), device=labels_B.device)
        return zero, zero, zero
    labels_B = labels_B.long()
    loss_sum = F.cross_entropy(logits_B2.float(), labels_B, ignore_index=NO_LABEL, reduction="sum")
    correct = (logits_B2.detach().argmax(-1) == labels_B).float().sum()
    return loss_sum, correct, (labels_B != NO_LABEL).float().sum()
