"""The encoder with a classification head: one vector per text, pooled from its hidden states, then a linear layer.

    hidden ─ pool: cls | avg | max | concat of the three ─ dropout ─ linear ─▶ logits ─ softmax | sigmoid | as they are

Letters: B samples, T positions (padded at the end), H hidden, P pooled channels (H, or 3H for concat), C outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twilbert.errors import TwilbertError, UsageError
from twilbert.model.config import ModelConfig
from twilbert.model.encoder import Encoder
from twilbert.model.layers import Linear
from twilbert.model.problems import MULTI, PROBLEMS, REGRESSION, SINGLE, Problem
from twilbert.model.special_tokens import CLS, SEP
from twilbert.plugins import Trust, load_object, require_trust

POOLINGS = ("cls", "avg", "max", "concat")


@dataclass(frozen=True)
class HeadConfig:
    """What a classification head predicts, and from what. TwilbertError where the values make no head."""

    labels: tuple[str, ...]
    """Names of the outputs in their order; for a regression one name, e.g. ("score",)."""
    problem: Problem = SINGLE
    """One of PROBLEMS: outputs that make 1 together, each between 0 and 1, or any number."""
    pooling: str = "cls"
    """One of POOLINGS: the first token, the mean, the maximum, or the three side by side in this order."""
    special_tokens: bool = True
    """Whether mean and maximum include [CLS] and [SEP]."""
    dropout: float = 0.0
    """Probability of dropping a channel of the pooled vector in training."""
    own: str | None = None
    """Import path of a user's own head: called with (hidden_size, this), it returns a module whose forward(hidden_BTH,
    lengths_B or None, input_ids_BT) gives the logits; None = pooling, dropout and a linear layer."""

    def __post_init__(self) -> None:
        fault = None
        if not isinstance(self.labels, list | tuple):
            raise TwilbertError(f"classification head: labels {self.labels!r:.80} must be a list of names")
        object.__setattr__(self, "labels", tuple(self.labels))
        least = 2 if self.problem == SINGLE else 1
        if self.problem not in PROBLEMS:
            fault = f"problem {self.problem!r} is none of {', '.join(PROBLEMS)}"
        elif self.pooling not in POOLINGS:
            fault = f"pooling {self.pooling!r} is none of {', '.join(POOLINGS)}"
        elif not all(isinstance(label, str) and label for label in self.labels):
            fault = f"labels {list(self.labels)} must be names"
        elif len(set(self.labels)) < len(self.labels):
            fault = f"labels {list(self.labels)} must differ"
        elif len(self.labels) < least or (self.problem == REGRESSION and len(self.labels) != 1):
            fault = f"{len(self.labels)} labels do not fit a {self.problem.replace('_', ' ')}"
        elif not isinstance(self.special_tokens, bool):
            fault = f"special_tokens {self.special_tokens!r:.80} must be true or false"
        elif type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            fault = f"dropout {self.dropout!r:.80} must be a number of at least 0 and under 1"
        elif not isinstance(self.own, str | None):
            fault = f"own {self.own!r:.80} must be an import path, package.module:name"
        if fault:
            raise TwilbertError(f"classification head: {fault}")

    @property
    def size(self) -> int:
        """Number of outputs C."""
        return len(self.labels)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types; `from_dict` reads them back."""
        return dataclasses.asdict(self) | {"labels": list(self.labels)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], trust: Trust = False) -> HeadConfig:
        """The head that a file describes; TwilbertError naming what is unknown, missing or does not fit.

        UntrustedCode where it names a head of somebody's own that is not in `trust`: what describes a head is often a
        stranger's, and a head is built by importing what `own` says.
        """
        if not isinstance(values, Mapping):
            raise TwilbertError("classification head: not a mapping of fields")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            names = ", ".join(sorted(known))
            raise TwilbertError(f"classification head: unknown field {unknown[0]!r}; known are {names}")
        try:
            head = cls(**values)
        except TypeError as error:
            raise TwilbertError(f"classification head: {error}") from error
        if head.own is not None:
            require_trust(head.own, trust, "head.own")
        return head


def pool(
    hidden_BTH: Tensor,
    lengths_B: Tensor | None,
    pooling: str,
    special_tokens: bool = True,
    input_ids_BT: Tensor | None = None,
) -> Tensor:
    """Hidden states → one vector per sample, [B, H], or [B, 3H] for "concat" (first token, mean, maximum).

    `lengths_B` counts the real tokens of each sample (None: all T); padding never takes part. Without `special_tokens`
    mean and maximum leave out [CLS] and [SEP], which `input_ids_BT` must then show; a sample that holds nothing else
    is pooled over those. `pooling` is one of POOLINGS, else ValueError.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")
    if pooling == "cls":
        return hidden_BTH[:, 0]
    taken_BT = _taken(hidden_BTH, lengths_B, special_tokens, input_ids_BT)
    parts = {
        "cls": lambda: hidden_BTH[:, 0],
        "avg": lambda: _mean(hidden_BTH, taken_BT),
        "max": lambda: hidden_BTH.masked_fill(~taken_BT[..., None], torch.finfo(hidden_BTH.dtype).min).amax(1),
    }
    names = ("cls", "avg", "max") if pooling == "concat" else (pooling,)
    return torch.cat([parts[name]() for name in names], dim=-1)


def _taken(hidden_BTH: Tensor, lengths_B: Tensor | None, special_tokens: bool, input_ids_BT: Tensor | None) -> Tensor:
    """Which positions mean and maximum are taken over, bool [B, T]."""
    b, t, _ = hidden_BTH.shape
    if lengths_B is None:
        real_BT = torch.ones(b, t, dtype=torch.bool, device=hidden_BTH.device)
    else:
        real_BT = torch.arange(t, device=hidden_BTH.device) < lengths_B.to(hidden_BTH.device)[:, None]
    if special_tokens:
        return real_BT
    if input_ids_BT is None:
        raise ValueError("to leave out [CLS] and [SEP], pool needs input_ids_BT")
    ordinary_BT = real_BT & (input_ids_BT != CLS) & (input_ids_BT != SEP)
    return ordinary_BT | (real_BT & ~ordinary_BT.any(1, keepdim=True))


def _mean(hidden_BTH: Tensor, taken_BT: Tensor) -> Tensor:
    # fp32 sums: in bf16 a mean over a long text would lose most of its digits.
    share_BT = taken_BT.float() / taken_BT.sum(1, keepdim=True).clamp_min(1)
    return torch.einsum("bth,bt->bh", hidden_BTH.float(), share_BT).to(hidden_BTH.dtype)


def build_head(hidden_size: int, head: HeadConfig, std: float) -> nn.Module:
    """The layer after the encoder: a linear one, or the user's own; UsageError where that is no module."""
    if head.own is None:
        return Linear(hidden_size * (3 if head.pooling == "concat" else 1), head.size, std)
    made = load_object(head.own, "head.own")(hidden_size, head)
    if not isinstance(made, nn.Module):
        raise UsageError(f"head.own: {head.own} gave a {type(made).__name__}; expected a torch module")
    return made


def classify(
    head: HeadConfig, classifier: nn.Module, hidden_BTH: Tensor, lengths_B: Tensor | None, input_ids_BT: Tensor
) -> Tensor:
    """Hidden states → logits [B, C] through what `build_head` made; dropout where that is in training mode."""
    if head.own is not None:
        return classifier(hidden_BTH, lengths_B, input_ids_BT)
    pooled_BP = pool(hidden_BTH, lengths_B, head.pooling, head.special_tokens, input_ids_BT)
    return classifier(F.dropout(pooled_BP, head.dropout, classifier.training))


def probabilities(problem: str, logits_BC: Tensor) -> Tensor:
    """Logits → fp32 [B, C]: the classes' probabilities, each label's own, or for a regression the values."""
    logits_BC = logits_BC.float()
    if problem == SINGLE:
        return logits_BC.softmax(-1)
    return logits_BC.sigmoid() if problem == MULTI else logits_BC


class ClassificationModel(nn.Module):
    """Encoder, pooling, dropout, linear layer. `encoder` has the names and shapes of a pre-trained model's."""

    def __init__(self, config: ModelConfig, head: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.head = head
        self.encoder = Encoder(config)
        self.classifier = build_head(config.hidden_size, head, config.initializer_range)

    def forward(
        self,
        input_ids_BT: Tensor,
        segment_ids_BT: Tensor,
        lengths_B: Tensor | None = None,
        position_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """→ logits [B, C]; arguments as the encoder's."""
        hidden_BTH = self.encoder(input_ids_BT, segment_ids_BT, lengths_B, position_ids_BT)
        return classify(self.head, self.classifier, hidden_BTH, lengths_B, input_ids_BT)

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Logits → fp32 [B, C]: see the function."""
        return probabilities(self.head.problem, logits_BC)
