"""Aborts a worker that completes no step in time and dumps the stacks of its threads."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

EXIT_CODE = 70
_GRACE_S = 10.0  # the other workers hang too: time for each to dump its own stacks


class Watchdog:
    """Calls `report(stacks)` and ends the process when `touch` was not called for `seconds`."""

    def __init__(self, seconds: float, report: Callable[[str], None], leave: Callable[[int], None] = os._exit) -> None:
        self._seconds, self._report, self._leave = seconds, report, leave
        self._closed = threading.Event()
        self._touched = time.monotonic()
        self.touch()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def touch(self) -> None:
        """Report that a step was completed."""
        self._touched = time.monotonic()
        # Needs no Python to run, for a library that never releases the interpreter lock.
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
    """The stack of every thread of this process, as text."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        lines = "".join(traceback.format_stack(frame)).rstrip()
        parts.append(f"thread {names.get(ident, ident)}:\n{lines}")
    return "\n".join(parts)
