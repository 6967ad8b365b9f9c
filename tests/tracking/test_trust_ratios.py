"""Trust ratios as metrics: only adapted tensors count, each in its kind and its bin."""

from __future__ import annotations

import torch

from tests.model import small
from twilbert.model.heads import PretrainingModel
from twilbert.optim.fragments import logical_names
from twilbert.tracking.metrics import EDGES, Histogram, kind_of, trust_ratio_metrics


def test_extremes_median_and_a_histogram_a_kind():
    names = ["encoder.embeddings.token.weight", "a.attention.qkv.weight[q]", "a.attention.out.weight", "masked_lm.bias"]
    ratios = torch.tensor([0.5, 2.0, 5000.0, 7.0], dtype=torch.float64)
    found = trust_ratio_metrics(names, ratios, torch.tensor([True, True, True, False]))
    assert found["optim/trust_ratio_min"] == 0.5
    assert found["optim/trust_ratio_median"] == 2.0
    assert found["optim/trust_ratio_max"] == 5000.0
    assert "optim/trust_ratios/heads" not in found, "a bias is not adapted"
    attention = found["optim/trust_ratios/attention"]
    assert isinstance(attention, Histogram)
    assert len(attention.edges) == len(attention.counts) + 1
    assert sum(attention.counts) == 2
    (two,) = (i for i in range(len(EDGES)) if EDGES[i] <= 2.0 < EDGES[i + 1])
    assert attention.counts[two] == 1
    assert attention.counts[-1] == 1, "the last bin holds what lies beyond it"


def test_nothing_adapted_gives_nothing():
    assert trust_ratio_metrics(["a"], torch.ones(1), torch.tensor([False])) == {}


def test_every_matrix_of_a_model_has_a_kind():
    model = PretrainingModel(small.config("memory"))
    matrices = [part for name, p in model.named_parameters() if p.dim() > 1 for part in logical_names(name)]
    kinds = {kind_of(name) for name in matrices}
    assert kinds == {"embeddings", "attention", "feed_forward", "memory", "heads"}
