"""Progress: plain lines at intervals where there is no terminal, else a bar that other lines do not disturb."""

from __future__ import annotations

import io
import sys

import pytest

from twilbert import progress
from twilbert.progress import Progress


class Clock:
    """Seconds that pass when a test says so."""

    now = 1.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_plain_lines_come_at_intervals_with_the_time_left_by_the_pace_so_far(clock, capsys):
    with Progress("batch", every_s=30, first_s=30) as shown:
        for done in range(1, 101):
            clock.now += 2
            shown.show(done, 100, "epoch 1/1")
        shown.say("dev 0.5")
    assert capsys.readouterr().err.splitlines() == [
        "batch 15/100  epoch 1/1  2.8 min left",
        "batch 30/100  epoch 1/1  2.3 min left",
        "batch 45/100  epoch 1/1  1.8 min left",
        "batch 60/100  epoch 1/1  1.3 min left",
        "batch 75/100  epoch 1/1  0.8 min left",
        "batch 90/100  epoch 1/1  0.3 min left",
        "dev 0.5",
    ]


def test_the_first_line_comes_at_once_unless_it_is_to_wait(clock, capsys):
    with Progress("step", every_s=10) as shown:
        shown.show(0, 5, "loss 9", None)  # no pace yet
        clock.now += 9
        shown.show(1, 5, "loss 8", 240)
        clock.now += 1
        shown.show(2, 5, "loss 7", 180)
    assert capsys.readouterr().err.splitlines() == ["step 0/5  loss 9", "step 2/5  loss 7  3.0 min left"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_and_whole_lines(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with Progress("batch", "starting", every_s=30) as shown:
        shown.show(3, 10, "epoch 1/2")
        shown.say("seed 0: dev [f1] 0.5")
    written = terminal.getvalue()
    assert "batch 3/10" in written and "epoch 1/2" in written and "seed 0: dev [f1] 0.5" in written
