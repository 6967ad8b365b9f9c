"""Micro-batches as tensors, and the sums and scores of training and evaluation.

Everything is summed in float64 vectors, so that adding over micro-batches, steps and workers is one operation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from twilbert.data.stream.micro_batch import MicroBatch
from twilbert.model.heads import PretrainingOutput

_COUNTS = ("real_tokens", "padded_tokens", "samples")
_SUMS = (*PretrainingOutput._fields, *_COUNTS)


def tensors(micro_batch: MicroBatch, device: torch.device) -> tuple[torch.Tensor | None, ...]:
    """Return the arguments of `PretrainingModel.forward` on `device`; ids int64, no lengths where nothing is padded."""

    def moved(array: Any) -> torch.Tensor:
        return torch.as_tensor(array.astype("int64")).to(device, non_blocking=True)  # a copy: views are read-only

    m = micro_batch
    lengths = None if m.padded_tokens == m.real_tokens else torch.as_tensor(m.lengths.astype("int64"))
    return (
        moved(m.input_ids),
        moved(m.segment_ids),
        lengths,  # stays on the CPU, where reading it does not wait for the device
        moved(m.masked_index),
        moved(m.masked_labels),
        moved(m.rop_labels),
    )


def zero_sums(device: torch.device) -> torch.Tensor:
    """Return empty sums, float64 [the model's outputs and the counts of tokens and samples]."""
    return torch.zeros(len(_SUMS), dtype=torch.float64, device=device)


def sums_named(values: Mapping[str, float]) -> list[float]:
    """Return named sums in the order of `zero_sums`; KeyError when one is missing."""
    return [float(values[name]) for name in _SUMS]


def sums_of(out: PretrainingOutput, micro_batch: MicroBatch) -> torch.Tensor:
    """Return one micro-batch's losses, correct predictions and counts, float64, in the order of `zero_sums`."""
    m = micro_batch
    counts = torch.tensor([m.real_tokens, m.padded_tokens, len(m.lengths)], dtype=torch.float64)
    return torch.cat([torch.stack([value.detach().double() for value in out]), counts.to(out.n_masked.device)])


@torch.no_grad()
def evaluate(model: Any, batches: Iterable[MicroBatch], device: torch.device) -> torch.Tensor:
    """Return the sums over `batches` of a model (or engine) in eval mode."""
    sums = zero_sums(device)
    for micro_batch in batches:
        sums += sums_of(model(*tensors(micro_batch, device)), micro_batch)
    return sums


def scores_of(sums: Sequence[float]) -> dict[str, float]:
    """Return means from sums: losses in nats, accuracies from 0 to 1; no rop_ keys where no sample has a reply."""
    s = dict(zip(_SUMS, sums, strict=True))
    masked, at_mask, replies = (max(1.0, s[key]) for key in ("n_masked", "n_at_mask", "n_rop"))
    mlm, rop = s["mlm_loss_sum"] / masked, s["rop_loss_sum"] / replies
    scores = {
        "loss": mlm + rop,
        "mlm_loss": mlm,
        "mlm_accuracy": s["mlm_correct"] / masked,
        "mlm_loss_at_mask": s["mlm_loss_sum_at_mask"] / at_mask,
        "mlm_accuracy_at_mask": s["mlm_correct_at_mask"] / at_mask,
    }
    return scores | ({"rop_loss": rop, "rop_accuracy": s["rop_correct"] / replies} if s["n_rop"] else {})


def counts_of(sums: Sequence[float]) -> dict[str, float]:
    """Return the numbers of masked positions and of samples with a reply."""
    s = dict(zip(_SUMS, sums, strict=True))
    return {key: s[key] for key in ("n_masked", "n_at_mask", "n_rop")}


def summary(scores: dict[str, float]) -> str:
    """Return the main scores on one line."""
    rop = f", ROP accuracy {scores['rop_accuracy']:.3f}" if "rop_accuracy" in scores else ""
    return f"MLM loss {scores['mlm_loss']:.3f}{rop}"


class Interval:
    """Training sums between two rows of metrics."""

    def __init__(self, before: Mapping[str, Any] | None = None) -> None:
        """Start anew, or continue from what `state` returned: sums come out the same to the last bit."""
        before = before or {}
        self.started = time.monotonic() - before.get("seconds", 0.0)
        self.waited = before.get("waited", 0.0)
        self.steps = before.get("steps", 0)
        self._sums = sums_named(before["sums"]) if before else [0.0] * len(_SUMS)
        self.loss = math.nan  # of the latest step

    def state(self, until: float) -> dict[str, Any]:
        """Return what a resume needs to continue the interval; training ended at monotonic `until`."""
        sums = dict(zip(_SUMS, self._sums, strict=True))
        return {"steps": self.steps, "seconds": until - self.started, "waited": self.waited, "sums": sums}

    def add(self, totals: list[float], n_masked: int, n_rop: int, waited: float) -> bool:
        """Add a step's sums over all workers and this worker's wait for data, in seconds; return if its loss is finite.

        The sums of a step whose loss is not finite are left out.
        """
        self.loss = totals[0] / n_masked + totals[1] / n_rop
        self.waited += waited
        self.steps += 1
        finite = math.isfinite(self.loss)
        if finite:
            self._sums = [a + b for a, b in zip(self._sums, totals, strict=True)]
        return finite

    @property
    def tokens_per_second(self) -> float:
        """Real tokens of all workers a second."""
        return self["real_tokens"] / self.seconds

    @property
    def seconds(self) -> float:
        """Wall time since the interval began, never 0."""
        return max(1e-9, time.monotonic() - self.started)

    def __getitem__(self, name: str) -> float:
        """The sum of that name."""
        return self._sums[_SUMS.index(name)]

    def row(self) -> dict[str, float]:
        """Return the interval as metrics: train/, speed/ and data/ keys."""
        s, seconds = dict(zip(_SUMS, self._sums, strict=True)), self.seconds
        return {f"train/{key}": value for key, value in scores_of(self._sums).items()} | {
            "speed/tokens_per_second": s["real_tokens"] / seconds,
            "speed/samples_per_second": s["samples"] / seconds,
            "speed/step_seconds": seconds / max(1, self.steps),
            "speed/data_wait_share": self.waited / seconds,
            "data/padding": 1 - s["real_tokens"] / max(1.0, s["padded_tokens"]),
        }
