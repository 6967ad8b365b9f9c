"""Our masking beside forty seeded maskings of the original: the same rules, but for the original's defects."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from tests import places
from twilbert.data.stream.masking import MaskingSettings, Samples, mask_samples
from twilbert.data.tokenizer import template
from twilbert.model.special_tokens import MASK, PAD

DRAWS = 300  # of ours, and of the rule, for each of the forty texts
VOCAB = 30_002
BOUND = 3.5  # standard deviations; ten statistics are compared


@cache
def cases() -> list[dict[str, np.ndarray]]:
    """For each text the ids before and after the original's masking, and which were chosen; words' ids are hashes."""
    with np.load(places.GOLDEN / "masking.npz") as file:
        edges = np.cumsum(file["lengths"])[:-1]
        columns = {name: np.split(file[name], edges) for name in file.files if name != "lengths"}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def statistics(before: np.ndarray, after: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """[tokens chosen, runs of them, of them [MASK], of them as they were], of [PAD] nothing; float64 [4]."""
    chosen = chosen & (before != PAD)
    runs = chosen[0] + (chosen[1:] & ~chosen[:-1]).sum()
    return np.array([chosen.sum(), runs, (after[chosen] == MASK).sum(), (after[chosen] == before[chosen]).sum()], float)


def originals(kind: str) -> np.ndarray:
    """Of the original's maskings, [40, 4]."""
    names = ("before", f"{kind}s_after", f"{kind}s_chosen")
    return np.stack([statistics(*(case[name] for name in names)) for case in cases()])


def ours(kind: str) -> np.ndarray:
    """Of DRAWS of our maskings of each text, [40, DRAWS, 4]."""
    settings, out = MaskingSettings("span" if kind == "span" else "token"), []
    for number, case in enumerate(cases()):
        one = case["before"]
        starts, length = np.arange(DRAWS) * len(one), np.full(DRAWS, len(one))
        samples = Samples(starts, length, np.full(DRAWS, number), np.arange(DRAWS))
        masked = mask_samples(np.tile(one, DRAWS), samples, 0, settings, template.ours(VOCAB))
        chosen = np.zeros(DRAWS * len(one), bool)
        chosen[masked.index] = True
        rows = zip(masked.ids.reshape(DRAWS, -1), chosen.reshape(DRAWS, -1), strict=True)
        out.append([statistics(one, after, flags) for after, flags in rows])
    return np.array(out)


def rule_of_spans(before: np.ndarray, rng: np.random.Generator, *, defects: bool) -> np.ndarray:
    """Tokens chosen by the original's words: with its defects (a token revisited and [PAD] are counted, the last span
    goes over the budget) or without."""
    maskable = before >= 5
    left, chosen = math.ceil(0.15 * maskable.sum()), np.zeros(len(before), bool)
    while left > 0:
        length = rng.choice([1, 2, 3], p=np.array([6, 3, 2]) / 11)
        starts = maskable & ~chosen
        if defects:
            starts[len(before) - length + 1 :] = False
        start = rng.choice(np.flatnonzero(starts))
        for position in range(start, start + length):
            if defects:
                hit = before[position] >= 5 or before[position] == PAD
            elif not left or not maskable[position] or chosen[position]:
                break
            else:
                hit = True
            chosen[position] |= hit
            left -= hit
    return chosen


def deviations(found: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """How far the sums over texts [40, n] lie from those of draws [40, m, n], in standard deviations of such a sum."""
    return (found.sum(0) - drawn.mean(1).sum(0)) / np.sqrt(drawn.var(1, ddof=1).sum(0))


def test_token_masking_is_the_originals_in_number_runs_and_replacement():
    assert np.abs(deviations(originals("token"), ours("token"))).max() < BOUND


def test_spans_are_replaced_as_the_originals():
    """Of the chosen tokens, the shares that became [MASK] and that stayed."""
    theirs, drawn = originals("span").sum(0), ours("span").sum((0, 1))
    for column in (2, 3):
        share = drawn[column] / drawn[0]
        deviation = (theirs[column] - share * theirs[0]) / math.sqrt(theirs[0] * share * (1 - share))
        assert abs(deviation) < BOUND


def rule_draws(*, defects: bool) -> np.ndarray:
    rng, out = np.random.default_rng(1), []
    for case in cases():
        before = case["before"]
        maskings = [rule_of_spans(before, rng, defects=defects) for _ in range(DRAWS // 3)]
        out.append([statistics(before, before, chosen)[:2] for chosen in maskings])
    return np.array(out)


def test_the_originals_spans_follow_the_rule_with_its_defects():
    assert np.abs(deviations(originals("span")[:, :2], rule_draws(defects=True))).max() < BOUND


def test_our_spans_follow_the_rule_without_them():
    drawn, mine = rule_draws(defects=False), ours("span")[..., :2]
    assert (mine[..., 0] == [[math.ceil(0.15 * (case["before"] >= 5).sum())] for case in cases()]).all()
    assert (drawn[..., 0] == mine[:, :1, 0]).all()
    error = np.sqrt(drawn[..., 1].var(1).sum() / drawn.shape[1] + mine[..., 1].var(1).sum() / mine.shape[1])
    assert abs(drawn[..., 1].mean(1).sum() - mine[..., 1].mean(1).sum()) < BOUND * error
