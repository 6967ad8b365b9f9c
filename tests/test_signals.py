"""Signals are held back while something must not be disturbed, and come afterwards."""

from __future__ import annotations

import os
import signal

import pytest

from twilbert import signals


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_that_is_held_back_comes_after_the_body(number):
    reached = False
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), signals.handled(signals.interrupt), signals.held_back() as came:
        os.kill(os.getpid(), number)
        reached = came == [number]
    assert reached
    assert signal.getsignal(number) is before


def test_the_handler_of_a_library_that_exits_is_no_way_out():
    """Ray sets one for SIGTERM while it starts."""
    with pytest.raises(KeyboardInterrupt), signals.handled(signals.interrupt), signals.held_back():
        raise SystemExit(signal.SIGTERM)


def test_without_a_signal_nothing_happens():
    with signals.held_back() as came:
        pass
    assert not came
