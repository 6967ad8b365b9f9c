"""Pseudo-log-likelihood of texts under a masked language model: each token is masked in turn.

    log p(x_t | the rest of x) for every token t of every text: as many sequences as tokens, in batches of like lengths
    that the maskings of many texts share. A sequence is [CLS] text [SEP], or as the template says; positions from
    0, segment 0.

PLL(x) = Σ_t log p(x_t | x without t) (Salazar et al. 2020, eq. 2). `means` has the averages in use: per token of all
texts, whose exponential is the pseudo-perplexity (their eq. 3), and the original TWilBERT's P(X), the mean over texts
of PLL(x)/T, where T counts [CLS] and [SEP] too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from twilbert.data.stream.partition import balanced, pieces_needed
from twilbert.data.tokenizer.template import Template
from twilbert.model.heads import PretrainingModel

BATCH_TOKENS = 8192


def token_log_likelihoods(
    network: PretrainingModel,
    ids: np.ndarray,
    offsets: np.ndarray,
    template: Template,
    device: torch.device,
    batch_tokens: int = BATCH_TOKENS,
) -> np.ndarray:
    """Return log p(token | the rest of its text) of every token, nats, float64, in the order of `ids`.

    Text i is ids[offsets[i]:offsets[i + 1]], without special tokens. `network` is in eval mode on `device`; a batch has
    at most `batch_tokens` padded tokens, or the longest text's.
    """
    out = np.zeros(len(ids))
    for tokens, input_ids, lengths, hidden in _maskings(ids, offsets, template, batch_tokens):
        width = input_ids.shape[1]
        batch = torch.as_tensor(input_ids, device=device)
        scores = network.score(
            batch,
            torch.zeros_like(batch),
            None if (lengths == width).all() else torch.as_tensor(lengths),
            torch.as_tensor(np.arange(len(tokens)) * width + hidden, device=device),
            torch.as_tensor(ids[tokens].astype(np.int64), device=device),
        )
        out[tokens] = -scores.mlm_nll_K.double().cpu().numpy()
    return out


def _maskings(
    ids: np.ndarray, offsets: np.ndarray, template: Template, batch_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield batches: tokens (indices into `ids`) [B], sequences with them masked [B, T], lengths [B], positions [B]."""
    text_lengths = np.diff(offsets)
    text = np.repeat(np.arange(len(text_lengths)), text_lengths)
    order = np.argsort(text_lengths[text], kind="stable")  # a text's maskings stay together
    lengths = text_lengths[text[order]] + template.of_single
    edges = balanced(lengths, pieces_needed(lengths, batch_tokens))
    for start, stop in pairwise(edges.tolist()):
        tokens = order[start:stop]
        texts, row = np.unique(text[tokens], return_inverse=True)
        input_ids = _sequences(ids, offsets, texts, int(lengths[stop - 1]), template)[row]
        hidden = tokens - offsets[text[tokens]] + len(template.prefix)
        input_ids[np.arange(len(tokens)), hidden] = template.mask
        yield tokens, input_ids, lengths[start:stop], hidden


def _sequences(ids: np.ndarray, offsets: np.ndarray, texts: np.ndarray, width: int, template: Template) -> np.ndarray:
    """Return [CLS] text [SEP] [PAD]… of each of `texts`, int64 [texts, width]."""
    out = np.full((len(texts), width), template.pad, np.int64)
    for row, text in enumerate(texts):
        tokens = [*template.prefix, *ids[offsets[text] : offsets[text + 1]], *template.end]
        out[row, : len(tokens)] = tokens
    return out


def means(sums: np.ndarray, counts: np.ndarray, of_text: int) -> dict[str, float]:
    """Return the averages of texts' PLL `sums` (nats) over `counts` tokens each, [texts]; empty texts are left out.

    `log_likelihood_per_token` and `pseudo_perplexity`: over the tokens of all texts; `log_likelihood_per_text`: the
    mean over texts of PLL/tokens; `original_log_likelihood`: the same with the `of_text` special tokens among them;
    `mean_pll`: of PLL itself. All nats but the perplexity.
    """
    full = counts > 0
    sums, counts = sums[full], counts[full]
    per_token = float(sums.sum() / counts.sum())
    return {
        "mean_pll": float(sums.mean()),
        "log_likelihood_per_token": per_token,
        "pseudo_perplexity": float(np.exp(-per_token)),
        "log_likelihood_per_text": float((sums / counts).mean()),
        "original_log_likelihood": float((sums / (counts + of_text)).mean()),
    }
