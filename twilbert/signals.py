"""SIGINT and SIGTERM, to the process or to its group: both interrupt a command, and neither is lost.

Handlers belong to the main thread: in another one, where a program calls us so, its signals stay as they are.
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
    """`handler` hears these signals, or both of the above, during the body."""
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
    """A handler that does what Python does for Ctrl-C."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def held_back() -> Iterator[list[int]]:
    """Signals during the body, listed as they come, are heard after it.

    An exception in the middle of a fork is printed and forgotten by Python, and with it a Ctrl-C.
    """
    came: list[int] = []
    with handled(lambda number, _: came.append(number)):
        try:
            yield came
        except SystemExit as error:  # of the handler that Ray sets for SIGTERM
            if error.code != signal.SIGTERM:
                raise
            came.append(signal.SIGTERM)
    if came:
        signal.raise_signal(came[0])
