"""Learning-rate schedules as functions of the number of the update, from 1.

All begin with a linear warm-up: peak · k / warmup_steps at update k ≤ warmup_steps.
"""

from __future__ import annotations

import math

from twilbert.recipe.pretraining import Recipe


def noam(update: int, *, peak: float, warmup_steps: int) -> float:
    """Return the rate of Vaswani et al. 2017, equation 3, scaled to `peak` at `warmup_steps`.

    With peak = hidden_size^-0.5 * warmup_steps^-0.5 it is hidden_size^-0.5 * min(k^-0.5, k * warmup_steps^-1.5).
    """
    return peak * min((warmup_steps / update) ** 0.5, update / warmup_steps)


def constant(update: int, *, peak: float, warmup_steps: int) -> float:
    """Return `peak` from `warmup_steps` on."""
    return peak * min(1.0, update / warmup_steps)


def linear(update: int, *, peak: float, warmup_steps: int, schedule_steps: int) -> float:
    """Return a rate up to `peak` at `warmup_steps` and down to 0 at the update after `schedule_steps`."""
    if update <= warmup_steps:
        return peak * update / warmup_steps
    return peak * (1 - _progress(update, warmup_steps, schedule_steps))


def cosine(update: int, *, peak: float, warmup_steps: int, schedule_steps: int) -> float:
    """Return a rate up to `peak` at `warmup_steps` and down half a cosine to 0 after `schedule_steps`."""
    if update <= warmup_steps:
        return peak * update / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * _progress(update, warmup_steps, schedule_steps)))


def warmup_stable_decay(update: int, *, peak: float, warmup_steps: int, decay_start: int, schedule_steps: int) -> float:
    """Return a rate up to `peak` at `warmup_steps`, constant to `decay_start`, down to 0 after `schedule_steps`."""
    if update <= decay_start:
        return constant(update, peak=peak, warmup_steps=warmup_steps)
    return peak * (1 - _progress(update, decay_start, schedule_steps))


def _progress(update: int, start: int, end: int) -> float:
    """0 at update `start`, 1 at the update after `end` and later."""
    return min(1.0, (update - start) / (end + 1 - start))


def rate(schedule: str, update: int, *, peak: float, warmup_steps: int, decay_start: int, schedule_steps: int) -> float:
    """Return the learning rate of an update, from 1, under the schedule of that name; ValueError for update 0."""
    if update < 1:
        raise ValueError(f"updates count from 1, got {update}")
    start = {"peak": peak, "warmup_steps": warmup_steps}
    match schedule:
        case "noam":
            return noam(update, **start)
        case "constant":
            return constant(update, **start)
        case "linear":
            return linear(update, **start, schedule_steps=schedule_steps)
        case "cosine":
            return cosine(update, **start, schedule_steps=schedule_steps)
        case "wsd":
            return warmup_stable_decay(update, **start, decay_start=decay_start, schedule_steps=schedule_steps)
    raise ValueError(f"no schedule {schedule!r}")


def learning_rate(recipe: Recipe, update: int) -> float:
    """Return the learning rate of an update under a recipe's schedule; ValueError for an update before the first."""
    training = recipe.training
    return rate(
        training.schedule, update, peak=recipe.peak_learning_rate, warmup_steps=training.warmup_steps,
        decay_start=recipe.decay_start, schedule_steps=recipe.schedule_steps,
    )  # fmt: skip
