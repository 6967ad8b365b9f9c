"""Sums of training between two rows of metrics."""

from __future__ import annotations

import json
import time

import pytest

from twilbert.evaluation import scoring
from twilbert.model.heads import PretrainingOutput

NAMES = (*PretrainingOutput._fields, "real_tokens", "padded_tokens", "samples")
STEPS = [scoring.sums_named({name: 1 + 0.1 * i * len(name) for name in NAMES}) for i in range(5)]


def test_an_interval_that_went_through_a_checkpoint_tells_the_same(monkeypatch):
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    whole = scoring.Interval()
    resumed = scoring.Interval()
    for step, totals in enumerate(STEPS):
        if step == 3:
            state = json.loads(json.dumps(resumed.state(clock)))
            before, clock = clock, 99_000.0  # another process, later
            resumed = scoring.Interval(state)
            whole.started += clock - before
        for interval in (whole, resumed):
            interval.add(totals, 7, 2, 0.25)
        clock += 2
    assert resumed.steps == 5
    assert resumed.row() == whole.row()
    assert whole.row()["speed/step_seconds"] == pytest.approx(2)
