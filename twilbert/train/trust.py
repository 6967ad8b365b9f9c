"""LAMB's trust ratios as metrics: extremes, median, and a histogram for each kind of tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from twilbert.train.tracking import Histogram

# Four bins a decade from 0.0001 to 1000, the same at every step, so that steps can be laid side by side.
EDGES = [round(10 ** (k / 4), 10) for k in range(-16, 13)]
_KINDS = {
    ".embeddings.": "embeddings",
    ".attention.": "attention",
    ".feed_forward.": "feed_forward",
    ".memory.": "memory",
    "masked_lm.": "heads",
    "reply_order.": "heads",
}


def kind_of(name: str) -> str:
    """The part of the model that a tensor belongs to; "other" for those of a module unknown here."""
    return next((kind for mark, kind in _KINDS.items() if mark in name), "other")


def trust_ratio_metrics(
    names: Sequence[str], ratios: torch.Tensor, adapted: torch.Tensor
) -> dict[str, float | Histogram]:
    """optim/trust_ratio_{min,median,max} and optim/trust_ratios/KIND of the adapted tensors; none without them.

    `ratios` [tensors] and `adapted` [tensors] (bool) as of `names`.
    """
    chosen = ratios[adapted]
    if not len(chosen):
        return {}
    found: dict[str, float | Histogram] = {
        "optim/trust_ratio_min": float(chosen.min()),
        "optim/trust_ratio_median": float(chosen.quantile(0.5)),
        "optim/trust_ratio_max": float(chosen.max()),
    }
    by_kind: dict[str, list[float]] = {}
    for name, ratio, counts in zip(names, ratios.tolist(), adapted.tolist(), strict=True):
        if counts:
            by_kind.setdefault(kind_of(name), []).append(min(max(ratio, EDGES[0]), EDGES[-1]))  # ends take the rest
    edges = torch.tensor(EDGES, dtype=torch.float64)
    for kind, values in by_kind.items():
        counts = torch.histogram(torch.tensor(values, dtype=torch.float64), edges).hist.int().tolist()
        found[f"optim/trust_ratios/{kind}"] = Histogram(EDGES, counts)
    return found
