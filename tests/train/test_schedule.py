"""Learning rates are pure functions of the update's number; the first update already uses lr(1)."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from twilbert import recipe_file
from twilbert.train.schedule import learning_rate, linear, noam

GOLDEN = Path(__file__).parents[1] / "golden" / "noam.json"


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
    recipe = recipe_file.build({"model": {"hidden_size": 768}, "training": {"warmup_steps": 8000}})
    assert recipe.peak_learning_rate == pytest.approx(original_peak(768, 8000))


def test_linear_climbs_to_the_peak_and_falls_to_zero_after_the_last_update():
    rates = [linear(k, peak=1.0, warmup_steps=4, schedule_steps=10) for k in range(1, 13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    falls = [before - after for before, after in pairwise(rates[3:11])]
    assert falls == pytest.approx([1 / 7] * 7)
    assert rates[9] > 0, "the last update still moves"
    assert rates[10:] == [0.0, 0.0]


@pytest.mark.parametrize("schedule", ["noam", "linear"])
def test_the_first_update_moves_and_the_peak_is_reached_at_the_end_of_warm_up(schedule):
    def rate(k: int) -> float:
        return learning_rate(k, schedule=schedule, peak=2e-3, warmup_steps=50, schedule_steps=200)

    assert rate(1) == pytest.approx(2e-3 / 50)
    assert rate(50) == pytest.approx(2e-3)
    assert max(rate(k) for k in range(1, 201)) == rate(50)


def test_updates_count_from_one_and_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="count from 1"):
        learning_rate(0, schedule="noam", peak=1.0, warmup_steps=1, schedule_steps=10)
    with pytest.raises(ValueError, match="'cosmic'"):
        learning_rate(1, schedule="cosmic", peak=1.0, warmup_steps=1, schedule_steps=10)
