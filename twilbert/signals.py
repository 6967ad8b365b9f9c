"""SIGINT and SIGTERM, to the process or to its group: both interrupt a command, and neither is lost.

Only the main thread can set handlers; when called from another one, nothing here changes signals.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], object], *numbers: int) -> Iterator[None]:
    """Handle these signals (default: SIGINT and SIGTERM) by `handler` during the body."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers or ENDING}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt, as Python does for Ctrl-C."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def deferred() -> Iterator[list[int]]:
    """Defer signals until after the body; the list that is yielded grows as they arrive.

    A KeyboardInterrupt raised in the middle of a fork would be printed and dropped by Python.
    """
    arrived: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        signal.alarm(0)  # Ray's own handler, in place while it starts, has the process aborted 3 s after a SIGTERM
        arrived.append(number)

    with handled(note):
        try:
            yield arrived
        except SystemExit as error:  # by the handler that Ray sets for SIGTERM
            if error.code != signal.SIGTERM:
                raise
            note(signal.SIGTERM, None)
    if arrived:
        signal.raise_signal(arrived[0])
