"""Learning-rate schedules: pure functions of the update's number, 1 for the first update."""

from __future__ import annotations


def noam(update: int, *, peak: float, warmup_steps: int) -> float:
    """Vaswani et al. 2017, equation 3, scaled so that `peak` is reached at `warmup_steps`.

    With peak = hidden_size^-0.5 * warmup_steps^-0.5 it is hidden_size^-0.5 * min(k^-0.5, k * warmup_steps^-1.5).
    """
    return peak * min((warmup_steps / update) ** 0.5, update / warmup_steps)


def linear(update: int, *, peak: float, warmup_steps: int, schedule_steps: int) -> float:
    """Up to `peak` at `warmup_steps`, down to 0 at the update after `schedule_steps`."""
    if update <= warmup_steps:
        return peak * update / warmup_steps
    return peak * max(0.0, (schedule_steps + 1 - update) / (schedule_steps + 1 - warmup_steps))


def learning_rate(update: int, *, schedule: str, peak: float, warmup_steps: int, schedule_steps: int) -> float:
    """The learning rate of an update under the schedule of that name; ValueError for an unknown one."""
    if update < 1:
        raise ValueError(f"updates count from 1, got {update}")
    if schedule == "noam":
        return noam(update, peak=peak, warmup_steps=warmup_steps)
    if schedule == "linear":
        return linear(update, peak=peak, warmup_steps=warmup_steps, schedule_steps=schedule_steps)
    raise ValueError(f"unknown schedule {schedule!r}")
