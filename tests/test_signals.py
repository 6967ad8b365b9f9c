"""Deferred signals arrive after the body."""

from __future__ import annotations

import os
import signal

import pytest

from twilbert import signals


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_that_is_deferred_comes_after_the_body(number):
    reached = False
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), signals.handled(signals.interrupt), signals.deferred() as arrived:
        os.kill(os.getpid(), number)
        reached = arrived == [number]
    assert reached
    assert signal.getsignal(number) is before


def test_the_handler_of_a_library_that_exits_is_no_way_out():
    """Ray sets one for SIGTERM while it starts, and an alarm beside it."""
    with pytest.raises(KeyboardInterrupt), signals.handled(signals.interrupt), signals.deferred():
        signal.alarm(60)
        raise SystemExit(signal.SIGTERM)
    assert signal.alarm(0) == 0


def test_without_a_signal_nothing_happens():
    with signals.deferred() as arrived:
        pass
    assert not arrived


def test_the_alarm_that_rays_handler_sets_before_ours_is_cancelled():
    with pytest.raises(KeyboardInterrupt), signals.handled(signals.interrupt), signals.deferred():
        signal.alarm(60)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.alarm(0) == 0
