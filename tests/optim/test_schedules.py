"""Learning rates are pure functions of the update's number; the first update already uses lr(1)."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from tests import places
from twilbert.optim.schedules import cosine, learning_rate, linear, noam, warmup_stable_decay
from twilbert.recipe import loading

GOLDEN = places.GOLDEN / "noam.json"


def original_peak(hidden: int, warmup: int) -> float:
    return (hidden * warmup) ** -0.5


@pytest.mark.parametrize(("hidden", "warmup"), [(32, 5), (768, 8000), (768, 10_000)])
def test_noam_is_the_formula(hidden, warmup):
    peak = original_peak(hidden, warmup)
    for k in (1, 2, warmup - 1, warmup, warmup + 1, 3 * warmup, 110_000):
        expected = hidden**-0.5 * min(k**-0.5, k * warmup**-1.5)
        assert noam(k, peak=peak, warmup_steps=warmup) == pytest.approx(expected, rel=1e-12)


def test_noam_has_the_values_that_the_original_printed():
    """Hidden 32, warm-up 5. There update k left lr(k) behind for the next: one late, so read it after the update."""
    rows = json.loads(GOLDEN.read_text())["rows"]
    changes = [after for (_, _, before), (_, _, after) in pairwise(rows) if before != after]
    assert len(changes) == 10
    for k, value in enumerate(changes, start=1):
        assert noam(k, peak=original_peak(32, 5), warmup_steps=5) == pytest.approx(value, rel=1e-6)


def test_the_recipes_default_peak_is_the_originals():
    recipe = loading.build({"model": {"hidden_size": 768}, "training": {"warmup_steps": 8000}})
    assert recipe.peak_learning_rate == pytest.approx(original_peak(768, 8000))


def test_linear_climbs_to_the_peak_and_falls_to_zero_after_the_last_update():
    rates = [linear(k, peak=1.0, warmup_steps=4, schedule_steps=10) for k in range(1, 13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    falls = [before - after for before, after in pairwise(rates[3:11])]
    assert falls == pytest.approx([1 / 7] * 7)
    assert rates[9] > 0, "the last update still moves"
    assert rates[10:] == [0.0, 0.0]


def test_cosine_is_half_way_down_in_the_middle():
    rates = [cosine(k, peak=2.0, warmup_steps=4, schedule_steps=13) for k in range(1, 16)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[8] == pytest.approx(1.0), "9 of the updates 4 to 14: half of the way"
    assert all(before > after for before, after in pairwise(rates[3:14]))
    assert rates[13:] == [0.0, 0.0]


def test_warm_up_stable_decay_rests_at_the_peak():
    rates = [warmup_stable_decay(k, peak=1.0, warmup_steps=2, decay_start=6, schedule_steps=9) for k in range(1, 12)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0])


def recipe_of(schedule: str, **training):
    settings = {"schedule": schedule, "learning_rate": 2e-3, "warmup_steps": 50, "max_steps": 200, **training}
    return loading.build({"training": settings})


@pytest.mark.parametrize("schedule", ["noam", "linear", "cosine", "wsd", "constant"])
def test_the_first_update_moves_and_the_peak_is_reached_at_the_end_of_warm_up(schedule):
    rates = [learning_rate(recipe_of(schedule), k) for k in range(1, 201)]
    assert rates[0] == pytest.approx(2e-3 / 50)
    assert rates[49] == pytest.approx(2e-3)
    assert max(rates) == pytest.approx(rates[49])
    assert all(before < after for before, after in pairwise(rates[:50]))
    assert all(before >= after > 0 for before, after in pairwise(rates[49:]))


def test_the_decay_of_wsd_takes_its_share():
    rates = [learning_rate(recipe_of("wsd", decay_share=0.25), k) for k in range(1, 201)]
    assert rates[149] == 2e-3
    assert rates[150] < 2e-3


def test_updates_count_from_one():
    with pytest.raises(ValueError, match="count from 1"):
        learning_rate(recipe_of("noam"), 0)
