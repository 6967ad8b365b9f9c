"""Sequences and masks: choice and replacement of tokens, which depend on (seed, epoch, sample) alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from twilbert.data.stream.masking import (
    MaskingSettings,
    Samples,
    choose_spans,
    choose_tokens,
    lay_out,
    mask_samples,
    ranges,
)
from twilbert.data.tokenizer.template import ours
from twilbert.errors import UsageError
from twilbert.model.special_tokens import CLS, MASK, PAD, SEP, UNK

VOCAB = 500
TEMPLATE = ours(VOCAB)
SPAN = MaskingSettings("span", max_span=3, budget=0.15)
TOKEN = MaskingSettings("token", budget=0.15)


def make_samples(n: int, lengths: tuple[int, int] = (20, 40), unk_share: float = 0.02, seed: int = 0):
    """n pairs of random ordinary ids, some [UNK], laid out with gaps of [PAD]: flat ids and Samples."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(lengths[0], lengths[1] + 1, (2, n))
    pool = rng.integers(5, VOCAB, first.sum() + second.sum()).astype(np.uint16)
    pool[rng.random(len(pool)) < unk_share] = UNK
    length = first + second + 3
    room = length + rng.integers(0, 4, n)
    starts = np.cumsum(room) - room
    first_at = np.cumsum(first) - first
    second_at = first.sum() + np.cumsum(second) - second
    ids, _ = lay_out(pool, first_at, first, second_at, second, starts, int(room.sum()), TEMPLATE)
    return ids, Samples(starts, length, np.full(n, 3), np.arange(n) * 7 + 1)


def per_sample(flags: np.ndarray, samples: Samples) -> np.ndarray:
    return np.add.reduceat(flags.astype(np.int64), samples.starts)


# --- sequences ----------------------------------------------------------------------------------------------------


def test_pairs_and_single_tweets_are_laid_out_as_cls_first_sep_second_sep():
    pool = np.array([10, 11, 12, 20, 21], np.uint16)
    ids, segments = lay_out(
        pool,
        first=np.array([0, 3, 0]), first_len=np.array([3, 2, 3]),
        second=np.array([3, 0, 0]), second_len=np.array([2, 3, 0]),
        starts=np.array([0, 10, 19]), size=26, template=TEMPLATE,
    )  # fmt: skip
    assert ids[:10].tolist() == [CLS, 10, 11, 12, SEP, 20, 21, SEP, PAD, PAD]
    assert segments[:10].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert ids[10:19].tolist() == [CLS, 20, 21, SEP, 10, 11, 12, SEP, PAD]
    assert segments[10:19].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0]
    assert ids[19:].tolist() == [CLS, 10, 11, 12, SEP, PAD, PAD]
    assert segments[19:].tolist() == [0] * 7


def test_ranges_are_runs_of_consecutive_numbers():
    assert ranges(np.array([5, 0, 7]), np.array([2, 0, 3])).tolist() == [5, 6, 7, 8, 9]


# --- span masking -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.15, 0.4, 1.0])
@pytest.mark.parametrize("lengths", [(1, 6), (20, 40)])
def test_span_masking_spends_exactly_its_budget_in_every_sample(budget, lengths):
    ids, samples = make_samples(2500, lengths)
    assert lengths[0] == 1 or len(ids) > 100_000
    maskable = per_sample(ids >= 5, samples)
    chosen = choose_spans(ids >= 5, samples, 1, MaskingSettings("span", budget=budget))
    expected = [math.ceil(budget * n) for n in maskable.tolist()]
    assert per_sample(chosen, samples).tolist() == expected
    assert (ids[chosen] >= 5).all()


def sequential_spans(ids: np.ndarray, budget: float, max_span: int, rng: np.random.Generator) -> np.ndarray:
    """The definition, one span at a time: a uniform start among what is left, a length, stopped where it must stop."""
    is_open = ids >= 5
    left = math.ceil(budget * is_open.sum())
    chosen = np.zeros(len(ids), bool)
    weights = 1 / np.arange(1, max_span + 1)
    while left:
        start = rng.choice(np.flatnonzero(is_open))
        for position in range(start, start + rng.choice(max_span, p=weights / weights.sum()) + 1):
            if not left or not is_open[position]:
                break
            is_open[position], chosen[position] = False, True
            left -= 1
    return chosen


@pytest.mark.parametrize(
    ("one", "budget", "max_span"),
    [
        ([CLS, 10, 11, 12, UNK, 13, 14, SEP, 15, 16, 17, SEP], 0.4, 3),  # 9 maskable, 4 chosen
        ([CLS, 10, 11, 12, UNK, 13, 14, SEP, 15, 16, 17, SEP], 0.4, 5),
        ([CLS, 10, UNK, 11, 12, SEP, 13, 14, SEP], 0.5, 9),  # alone or in twos, spans longer than any
        ([CLS, 10, UNK, 11, 12, SEP, 13, 14, SEP], 0.01, 9),  # a budget of one ends a span at once
    ],
)
def test_spans_are_distributed_as_in_the_sequential_definition(one, budget, max_span):
    """All subsets that one small sample can get, by frequency, against the definition: chi-square of two samples."""
    one, n = np.array(one, np.uint16), 20_000
    samples = Samples(np.arange(n) * len(one), np.full(n, len(one)), np.zeros(n, np.int64), np.arange(n))
    settings = MaskingSettings("span", max_span=max_span, budget=budget)
    chosen = choose_spans(np.tile(one, n) >= 5, samples, 0, settings).reshape(n, -1)
    assert (chosen.sum(axis=1) == math.ceil(budget * (one >= 5).sum())).all() and not chosen[:, one < 5].any()
    rng = np.random.default_rng(0)
    reference = np.stack([sequential_spans(one, budget, max_span, rng) for _ in range(n)])
    powers = 2 ** np.arange(len(one))
    counts = np.stack([np.bincount(x @ powers, minlength=2 ** len(one)) for x in (chosen, reference)])
    common = counts.sum(axis=0) >= 20
    assert counts[:, common].sum() > 0.99 * 2 * n
    a, b = counts[:, common]
    chi_square, freedom = ((a - b) ** 2 / (a + b)).sum(), int(common.sum()) - 1
    assert chi_square < freedom + 3.5 * math.sqrt(2 * freedom)


# --- token masking ------------------------------------------------------------------------------------------------


def test_token_masking_chooses_fifteen_percent_and_never_a_special_token():
    ids, samples = make_samples(4000, (35, 60))
    maskable = (ids >= 5).sum()
    assert maskable > 100_000
    chosen = choose_tokens(ids >= 5, samples, 1, TOKEN)
    assert abs(chosen.sum() / maskable - 0.15) < 0.003
    assert (ids[chosen] >= 5).all()


def test_token_masking_is_drawn_again_until_a_token_is_chosen():
    """Samples of two maskable tokens: 1/(1 - 0.85²) as many as one attempt gives, at least one in each."""
    ids, samples = make_samples(20_000, (1, 1), unk_share=0.0)
    chosen = per_sample(choose_tokens(ids >= 5, samples, 1, TOKEN), samples)
    assert chosen.min() == 1
    assert abs(chosen.mean() - 0.3 / (1 - 0.85**2)) < 0.01


@pytest.mark.parametrize("settings", [SPAN, TOKEN])
def test_samples_with_nothing_to_mask_stay_as_they_are(settings):
    ids = np.array([CLS, UNK, SEP, CLS, 10, SEP, CLS, SEP], np.uint16)
    samples = Samples(np.array([0, 3, 6]), np.array([3, 3, 2]), np.zeros(3, np.int64), np.arange(3))
    masked = mask_samples(ids, samples, 0, settings, TEMPLATE)
    assert masked.index.tolist() == [4] and masked.labels.tolist() == [10]


# --- replacement --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SPAN, TOKEN])
def test_chosen_tokens_become_mask_random_or_stay_eighty_ten_ten(settings):
    ids, samples = make_samples(8000)
    masked = mask_samples(ids, samples, 3, settings, TEMPLATE)
    assert len(masked.index) > 60_000
    now = masked.ids[masked.index]
    was_mask, stayed = (now == MASK).mean(), (now == masked.labels).mean()
    by_chance = 0.1 / (VOCAB - 5)  # a random token may be the token itself
    assert abs(was_mask - 0.8) < 0.01
    assert abs(stayed - 0.1 - by_chance) < 0.01
    drawn = now[(now != MASK) & (now != masked.labels)]
    assert drawn.min() == 5 and drawn.max() == VOCAB - 1
    expected = len(drawn) / (VOCAB - 5)
    assert ((np.bincount(drawn, minlength=VOCAB)[5:] - expected) ** 2 / expected).sum() < 597  # p = 0.001


@pytest.mark.parametrize("settings", [SPAN, TOKEN])
def test_labels_are_the_original_ids_and_the_rest_is_untouched(settings):
    ids, samples = make_samples(500)
    before = ids.copy()
    masked = mask_samples(ids, samples, 0, settings, TEMPLATE)
    assert (ids == before).all()
    assert (np.diff(masked.index) > 0).all()
    assert (masked.labels == ids[masked.index]).all()
    restored = masked.ids.copy()
    restored[masked.index] = masked.labels
    assert (restored == ids).all()


def test_shares_are_those_asked_for():
    ids, samples = make_samples(4000)
    masked = mask_samples(ids, samples, 0, MaskingSettings("span", mask=0.0, random=0.0, keep=1.0), TEMPLATE)
    assert (masked.ids == ids).all() and len(masked.index) > 0


# --- independence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SPAN, TOKEN])
def test_a_samples_mask_is_the_same_alone_elsewhere_and_in_other_company(settings):
    ids, samples = make_samples(300)
    whole = mask_samples(ids, samples, 0, settings, TEMPLATE)
    for i in (0, 17, 299):
        start, length = samples.starts[i], samples.lengths[i]
        alone = Samples(np.array([4]), samples.lengths[[i]], samples.epochs[[i]], samples.ids[[i]])
        shifted = np.concatenate([np.zeros(4, np.uint16), ids[start : start + length]])
        assert (mask_samples(shifted, alone, 0, settings, TEMPLATE).ids[4:] == whole.ids[start : start + length]).all()


@pytest.mark.parametrize("settings", [SPAN, TOKEN])
def test_other_seeds_and_epochs_mask_other_tokens(settings):
    ids, samples = make_samples(300)
    later = Samples(samples.starts, samples.lengths, samples.epochs + 1, samples.ids)
    first = mask_samples(ids, samples, 0, settings, TEMPLATE).index
    for other in (
        mask_samples(ids, samples, 1, settings, TEMPLATE),
        mask_samples(ids, later, 0, settings, TEMPLATE),
    ):
        assert len(np.intersect1d(first, other.index)) < 0.3 * len(first)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"kind": "word"}, "kind"),
        ({"max_span": 0}, "max_span"),
        ({"budget": 0.0}, "budget"),
        ({"mask": 0.9}, "sum to 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(wrong, names):
    with pytest.raises(UsageError, match=names):
        MaskingSettings(**wrong)
