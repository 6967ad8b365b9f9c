"""Lay out (tweet, reply) sequences in either order and mask their tokens, many samples at once.

Samples lie in one flat array of token ids: sample i takes [starts[i], starts[i] + lengths[i]) of it, with [PAD] between
samples. A sample is [CLS] first [SEP] second [SEP], or [CLS] first [SEP] for a single tweet, by our vocabularies; by
others as their template says. Positions count from its first token.

Source: masked language model, Devlin et al. 2019 (BERT), section 3.1; spans, Joshi et al. 2020 (SpanBERT), with the
TWilBERT original's lengths (P(n) ∝ 1/n) and per-token replacement; reply order, González et al. 2021 (TWilBERT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from twilbert.data.stream.randomness import Purpose, below, key, uniform
from twilbert.data.tokenizer.template import Template
from twilbert.errors import UsageError

ROP_REPLY_SECOND, ROP_REPLY_FIRST, ROP_NONE = 1, 0, -100  # (tweet, reply); (reply, tweet); single tweet
_ATTEMPT_STRIDE = 1 << 32  # draws set aside for one attempt at token masking: more than any sample has positions


@dataclass(frozen=True)
class MaskingSettings:
    """How tokens are chosen and replaced. `mask`, `random` and `keep` are the shares of the chosen tokens, sum 1."""

    kind: Literal["span", "token"] = "span"
    max_span: int = 3  # tokens; kind "span" alone
    budget: float = 0.15  # share of the maskable tokens
    mask: float = 0.8  # become [MASK]
    random: float = 0.1  # become a random ordinary token
    keep: float = 0.1  # stay as they are

    def __post_init__(self) -> None:
        if self.kind not in ("span", "token"):
            raise UsageError(f"masking kind {self.kind!r}: expected 'span' or 'token'")
        if self.max_span < 1:
            raise UsageError(f"masking max_span {self.max_span}: expected at least 1")
        if not 0 < self.budget <= 1:
            raise UsageError(f"masking budget {self.budget}: expected more than 0 and at most 1")
        shares = (self.mask, self.random, self.keep)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise UsageError(f"masking mask, random, keep {shares}: expected shares from 0 up that sum to 1")


@dataclass(frozen=True)
class Samples:
    """Positions of n samples in a flat array of ids, and the keys of their randomness. All int64 [n]."""

    starts: np.ndarray  # ascending
    lengths: np.ndarray
    epochs: np.ndarray
    ids: np.ndarray

    def keys(self, seed: int, purpose: Purpose) -> np.ndarray:
        """Return the uint64 key of each sample for one purpose."""
        return key(seed, purpose, self.epochs, self.ids)


@dataclass(frozen=True)
class Masked:
    """Ids after replacement, and the masked tokens: ascending flat index and original id."""

    ids: np.ndarray
    index: np.ndarray  # int64 [K]
    labels: np.ndarray  # int64 [K]


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate the ranges [starts[i], starts[i] + lengths[i]) into one flat int64 array."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def lay_out(
    pool: np.ndarray, first: np.ndarray, first_len: np.ndarray, second: np.ndarray, second_len: np.ndarray,
    starts: np.ndarray, size: int, template: Template,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Write n samples into a flat array of `size` tokens, each from its position in `starts`, [PAD] elsewhere.

    Sample i consists of pool[first[i] :][:first_len[i]] and pool[second[i] :][:second_len[i]]; second_len 0 means a
    single tweet. Returns ids ([size] of the template's type) and segments (uint8 [size]: 1 for the second text and what
    follows it where the template has types, else 0).
    """
    ids = np.full(size, template.pad, template.dtype)
    segments = np.zeros(size, np.uint8)
    _put(ids, starts, template.prefix)
    start = starts + len(template.prefix)
    ids[ranges(start, first_len)] = pool[ranges(first, first_len)]
    after = start + first_len
    is_single = second_len == 0
    _put(ids, after[is_single], template.end)
    second, second_len, after = second[~is_single], second_len[~is_single], after[~is_single]
    _put(ids, after, template.middle)
    start = after + len(template.middle)
    ids[ranges(start, second_len)] = pool[ranges(second, second_len)]
    _put(ids, start + second_len, template.end)
    if template.has_types:
        segments[ranges(start, second_len + len(template.end))] = 1
    return ids, segments


def _put(ids: np.ndarray, at: np.ndarray, tokens: tuple[int, ...]) -> None:
    for place, token in enumerate(tokens):
        ids[at + place] = token


def span_budget(maskable: np.ndarray, budget: float) -> np.ndarray:
    """Return the number of tokens that span masking masks: ceil(budget · maskable), int64."""
    return np.ceil(budget * maskable.astype(np.float64)).astype(np.int64)


def mask_samples(ids: np.ndarray, samples: Samples, seed: int, settings: MaskingSettings, template: Template) -> Masked:
    """Choose tokens of the samples in flat `ids` and replace them, independent of a sample's place and neighbours."""
    choose = choose_spans if settings.kind == "span" else choose_tokens
    index = np.flatnonzero(choose(template.is_ordinary(ids), samples, seed, settings))
    labels = ids[index]
    masked = ids.copy()
    masked[index] = _replace(labels, index, samples, seed, settings, template)
    return Masked(masked, index, labels.astype(np.int64))


def choose_spans(is_maskable: np.ndarray, samples: Samples, seed: int, settings: MaskingSettings) -> np.ndarray:
    """Choose the tokens of span masking among those that `is_maskable`; bool, like it.

    A span starts at a token drawn uniformly from the sample's maskable tokens that are not chosen yet, has a length n
    in 1..max_span drawn with P ∝ 1/n, and ends early at a special token, at a chosen one and when the sample's budget
    is spent; spans are drawn until it is. All samples are drawn in rounds, one draw each: a draw that falls on a chosen
    token is repeated in the next round, which keeps starts uniform over the rest.
    """
    is_open = is_maskable.copy()  # and not chosen yet
    maskable = np.flatnonzero(is_open)
    first, count = _runs(maskable, samples)
    left = span_budget(count, settings.budget)
    shares = 1.0 / np.arange(1, settings.max_span + 1)
    thresholds = np.cumsum(shares)[:-1] / shares.sum()
    key_start, key_length = samples.keys(seed, Purpose.SPAN_START), samples.keys(seed, Purpose.SPAN_LENGTH)

    chosen = np.zeros(len(is_open), bool)
    active = np.flatnonzero(left)
    draw = 0
    while len(active):
        start = maskable[first[active] + below(key_start[active], draw, count[active])]
        lands = is_open[start]
        at, start = active[lands], start[lands]
        length = 1 + np.searchsorted(thresholds, uniform(key_length[at], draw), side="right")
        reach = np.minimum(length, left[at])
        for offset in range(settings.max_span):
            # Samples end in a special token: a span that runs on meets a closed one before the next sample.
            longer = np.flatnonzero(reach > offset)
            longer = longer[is_open[start[longer] + offset]]
            at, start, reach = at[longer], start[longer], reach[longer]
            is_open[start + offset] = False
            chosen[start + offset] = True
            left[at] -= 1
        active = active[left[active] > 0]
        draw += 1
    return chosen


def choose_tokens(is_maskable: np.ndarray, samples: Samples, seed: int, settings: MaskingSettings) -> np.ndarray:
    """Choose each token that `is_maskable` with probability `budget`; bool, like it.

    A sample without a chosen token is drawn again as a whole, unless nothing in it is maskable.
    """
    maskable = np.flatnonzero(is_maskable)
    first, count = _runs(maskable, samples)
    keys = samples.keys(seed, Purpose.TOKEN_CHOICE)
    chosen = np.zeros(len(is_maskable), bool)
    pending = np.flatnonzero(count)
    attempt = 0
    while len(pending):
        tokens = maskable[ranges(first[pending], count[pending])]
        position = tokens - np.repeat(samples.starts[pending], count[pending]) + attempt * _ATTEMPT_STRIDE
        hit = uniform(np.repeat(keys[pending], count[pending]), position.astype(np.uint64)) < settings.budget
        chosen[tokens[hit]] = True
        edges = np.cumsum(count[pending]) - count[pending]
        pending = pending[~np.logical_or.reduceat(hit, edges)]
        attempt += 1
    return chosen


def _runs(index: np.ndarray, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """The beginning and length of each sample's part of ascending flat `index`."""
    first = np.searchsorted(index, samples.starts)
    return first, np.searchsorted(index, samples.starts + samples.lengths) - first


def _replace(
    labels: np.ndarray, index: np.ndarray, samples: Samples, seed: int, settings: MaskingSettings, template: Template
) -> np.ndarray:
    """The replacement of each chosen token: [MASK], a random ordinary token or itself."""
    _, count = _runs(index, samples)
    sample = np.repeat(np.arange(len(count)), count)
    position = (index - samples.starts[sample]).astype(np.uint64)
    share = uniform(samples.keys(seed, Purpose.REPLACEMENT)[sample], position)
    out = np.where(share < settings.mask, template.dtype(template.mask), labels)
    random = np.flatnonzero((share >= settings.mask) & (share < settings.mask + settings.random))
    keys = samples.keys(seed, Purpose.RANDOM_TOKEN)[sample[random]]
    out[random] = template.drawn(below(keys, position[random], template.n_ordinary))
    return out
