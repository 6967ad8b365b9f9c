"""The encoder with a classification head.

    hidden ─ pool: cls | avg | max | concat of the three ─ dropout ─ linear ─▶ logits ─ softmax | sigmoid | identity

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
from twilbert.model.calibration import Calibration
from twilbert.model.config import ModelConfig
from twilbert.model.encoder import Encoder
from twilbert.model.layers import Linear
from twilbert.model.problems import MULTI, PROBLEMS, REGRESSION, SINGLE, Problem
from twilbert.model.special_tokens import CLS, SEP
from twilbert.plugins import Trust, load_object, require_trust

POOLINGS = ("cls", "avg", "max", "concat")


@dataclass(frozen=True)
class HeadConfig:
    """Sizes and switches of a classification head; TwilbertError where they are invalid."""

    labels: tuple[str, ...]
    """Names of the outputs in their order; for a regression one name, e.g. ("score",)."""
    problem: Problem = SINGLE
    """One of PROBLEMS, named as in transformers."""
    pooling: str = "cls"
    """One of POOLINGS: the first token, the mean, the maximum, or the three side by side in this order."""
    special_tokens: bool = True
    """Whether mean and maximum include [CLS] and [SEP]."""
    dropout: float = 0.0
    """Probability of dropping a channel of the pooled vector in training."""
    own: str | None = None
    """Import path of a user's own head, called with (hidden_size, this): a module whose forward(hidden_BTH,
    lengths_B or None, input_ids_BT) returns the logits; None = pooling, dropout and a linear layer."""
    calibration: Calibration | None = None
    """How probabilities are read, as fitted on dev; None = as they come."""

    def __post_init__(self) -> None:
        for field, (fits, expected) in self._checks().items():
            if not fits:
                value = f"{getattr(self, field)!r:.80}"
                raise TwilbertError(f"classification head: {field} is {value}; expected {expected}")
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.calibration is not None and not isinstance(self.calibration, Calibration):
            object.__setattr__(self, "calibration", Calibration.from_dict(self.calibration, len(self.labels)))

    def _checks(self) -> dict[str, tuple[bool, str]]:
        labels = self.labels if isinstance(self.labels, list | tuple) else ()
        names = all(isinstance(label, str) and label for label in labels) and len(set(labels)) == len(labels)
        fitting = {SINGLE: len(labels) > 1, MULTI: len(labels) > 0, REGRESSION: len(labels) == 1}
        number = type(self.dropout) in (int, float) and 0 <= self.dropout < 1
        return {
            "problem": (self.problem in PROBLEMS, f"one of {', '.join(PROBLEMS)}"),
            "pooling": (self.pooling in POOLINGS, f"one of {', '.join(POOLINGS)}"),
            "labels": (
                names and self.problem in PROBLEMS and fitting[self.problem],
                f"a list of different names that fits {self.problem}",
            ),
            "special_tokens": (isinstance(self.special_tokens, bool), "true or false"),
            "dropout": (number, "a number from 0 to under 1"),
            "own": (isinstance(self.own, str | None), "an import path, package.module:name"),
        }

    @property
    def size(self) -> int:
        """Number of outputs C."""
        return len(self.labels)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types; `from_dict` reads them back."""
        values = dataclasses.asdict(self) | {"labels": list(self.labels)}
        if self.calibration is None:  # the form of folders that have none
            del values["calibration"]
        return values

    @property
    def temperature(self) -> float:
        """By which logits are divided."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], trust: Trust = False) -> HeadConfig:
        """Return the head that a file describes; TwilbertError naming the field that is unknown, missing or invalid.

        UntrustedCode where `own` is not in `trust`: building a head imports it, and the file may be a stranger's.
        """
        if not isinstance(values, Mapping):
            raise TwilbertError("classification head: expected a mapping of its fields")
        try:
            head = cls(**values)
        except TypeError as error:
            known = ", ".join(sorted(field.name for field in dataclasses.fields(cls)))
            raise TwilbertError(f"classification head: {error}; its fields are {known}") from error
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
    """Pool hidden states into one vector per sample: [B, H], or [B, 3H] for "concat" (first token, mean, maximum).

    `lengths_B` counts the real tokens of each sample (None: all T); padding is ignored. Without `special_tokens` mean
    and maximum ignore [CLS] and [SEP] in `input_ids_BT`, except in a sample without other tokens. ValueError for a
    `pooling` that is none of POOLINGS, or without the ids.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")
    parts = [hidden_BTH[:, 0]] if pooling in ("cls", "concat") else []
    if pooling != "cls":
        pooled_BT = _pooled_positions(hidden_BTH, lengths_B, special_tokens, input_ids_BT)
        if pooling != "max":
            parts.append(_mean(hidden_BTH, pooled_BT))
        if pooling != "avg":
            parts.append(hidden_BTH.masked_fill(~pooled_BT[..., None], torch.finfo(hidden_BTH.dtype).min).amax(1))
    return torch.cat(parts, dim=-1)


def _pooled_positions(
    hidden_BTH: Tensor, lengths_B: Tensor | None, special_tokens: bool, input_ids_BT: Tensor | None
) -> Tensor:
    """The positions of mean and maximum, bool [B, T]."""
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


def _mean(hidden_BTH: Tensor, pooled_BT: Tensor) -> Tensor:
    # fp32 sums: in bf16 a mean over a long text would lose most of its digits.
    share_BT = pooled_BT.float() / pooled_BT.sum(1, keepdim=True).clamp_min(1)
    return torch.einsum("bth,bt->bh", hidden_BTH.float(), share_BT).to(hidden_BTH.dtype)


def build_head(hidden_size: int, head: HeadConfig, std: float) -> nn.Module:
    """Return the layer after the encoder: a linear one, or the user's own; UsageError where that is no module."""
    if head.own is None:
        return Linear(hidden_size * (3 if head.pooling == "concat" else 1), head.size, std)
    module = load_object(head.own, "head.own")(hidden_size, head)
    if not isinstance(module, nn.Module):
        raise UsageError(f"head.own: {head.own} returned a {type(module).__name__}; expected a torch module")
    return module


def classify(
    head: HeadConfig, classifier: nn.Module, hidden_BTH: Tensor, lengths_B: Tensor | None, input_ids_BT: Tensor
) -> Tensor:
    """Hidden states → logits [B, C] through the layer of `build_head`, with dropout in training mode."""
    if head.own is not None:
        return classifier(hidden_BTH, lengths_B, input_ids_BT)
    pooled_BP = pool(hidden_BTH, lengths_B, head.pooling, head.special_tokens, input_ids_BT)
    return classifier(F.dropout(pooled_BP, head.dropout, classifier.training))


def probabilities(problem: str, logits_BC: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits → fp32 [B, C]: probabilities of classes, of each label by itself, or the values of a regression."""
    logits_BC = logits_BC.float()
    if problem == REGRESSION:
        return logits_BC
    scaled_BC = logits_BC if temperature == 1 else logits_BC / temperature
    return scaled_BC.softmax(-1) if problem == SINGLE else scaled_BC.sigmoid()


class ClassificationModel(nn.Module):
    """Encoder, pooling, dropout, linear layer. `encoder` has a pre-trained model's names and shapes."""

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
        """Logits → fp32 [B, C], as the function of this name, calibrated."""
        return probabilities(self.head.problem, logits_BC, self.head.temperature)
