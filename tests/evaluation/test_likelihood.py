"""Pseudo-log-likelihood: the same as hiding one token at a time, and the means as their papers define them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.model import small
from twilbert.data.cleaning import clean_as_original
from twilbert.data.tokenizer.template import ours
from twilbert.evaluation.likelihood import means, token_log_likelihoods
from twilbert.model.heads import PretrainingModel
from twilbert.model.special_tokens import CLS, MASK, SEP


def _texts(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 50, sum(lengths)).astype(np.uint16)  # [UNK] and other special ids are tokens of a text too
    return ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _naive(network: PretrainingModel, text: list[int]) -> list[float]:
    """One masking at a time, each alone: no padding, no neighbours in the batch."""
    out = []
    for t, truth in enumerate(text):
        hidden = torch.tensor([[CLS, *text[:t], MASK, *text[t + 1 :], SEP]])
        with torch.no_grad():
            states = network.encoder(hidden, torch.zeros_like(hidden))
            out.append(float(network.masked_lm(states[0, t + 1]).log_softmax(-1)[truth]))
    return out


@pytest.mark.parametrize(("switch", "batch_tokens"), [("plain", 1), ("plain", 40), ("plain", 10_000), ("all", 60)])
def test_shared_batches_change_nothing(switch, batch_tokens):
    torch.manual_seed(0)
    network = PretrainingModel(small.config(switch, initializer_range=0.3)).eval()
    lengths = [5, 1, 0, 9, 5, 0]
    ids, offsets = _texts(lengths)
    values = token_log_likelihoods(network, ids, offsets, ours(60), torch.device("cpu"), batch_tokens)
    expected = [_naive(network, ids[a:b].tolist()) for a, b in pairwise(offsets)]
    assert values == pytest.approx([value for text in expected for value in text], abs=2e-5)
    assert np.std(values) > 0.1


def test_no_texts_have_no_likelihoods():
    network = PretrainingModel(small.config("plain")).eval()
    for ids, offsets in (_texts([]), _texts([0, 0])):
        assert len(token_log_likelihoods(network, ids, offsets, ours(60), torch.device("cpu"))) == 0


def test_means_are_those_of_the_papers():
    sums, counts = np.array([-6.0, 0.0, -20.0]), np.array([3, 0, 5])
    got = means(sums, counts, of_text=2)
    assert got["log_likelihood_per_token"] == pytest.approx(-26 / 8)
    assert got["pseudo_perplexity"] == pytest.approx(math.exp(26 / 8))
    assert got["log_likelihood_per_text"] == pytest.approx((-6 / 3 - 20 / 5) / 2)
    assert got["original_log_likelihood"] == pytest.approx((-6 / 5 - 20 / 7) / 2)
    assert got["mean_pll"] == pytest.approx(-13)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("RT @ana: AUTOS DEPORTIVOS… https://t.co/x", "user: AUTOS DEPO IVOS url"),
        ("a &gt;&gt; &#64;ana", "a >> @ana"),
        ("  ", ""),
    ],
)
def test_the_originals_cleaning(text, cleaned):
    assert clean_as_original(text) == cleaned
