"""A hang ends: a training process that makes no step for too long writes down where each thread stands and leaves."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

EXIT_CODE = 70
_GRACE_S = 10.0  # the other workers hang too, and write down their own stacks before the first one leaves


class Watchdog:
    """Calls `report(stacks)` and ends the process when `touch` was not called for `seconds`."""

    def __init__(self, seconds: float, report: Callable[[str], None], leave: Callable[[int], None] = os._exit) -> None:
        self._seconds, self._report, self._leave = seconds, report, leave
        self._closed = threading.Event()
        self._touched = time.monotonic()
        self.touch()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def touch(self) -> None:
        """A step was made."""
        self._touched = time.monotonic()
        # Should the interpreter itself be stuck (a library that keeps its lock), this one needs no Python to run.
        faulthandler.dump_traceback_later(2 * self._seconds + _GRACE_S, exit=True, file=2)

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(min(5.0, self._seconds / 10)):
            if time.monotonic() - self._touched > self._seconds:
                self._report(stacks())
                if not self._closed.wait(_GRACE_S):
                    self._leave(EXIT_CODE)
                return


def stacks() -> str:
    """Where every thread of this process stands, as text."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        lines = "".join(traceback.format_stack(frame)).rstrip()
        parts.append(f"thread {names.get(ident, ident)}:\n{lines}")
    return "\n".join(parts)
