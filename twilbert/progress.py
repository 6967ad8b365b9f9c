"""Progress of long work on standard error: a bar with time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType

from twilbert import cli


class Progress:
    """A context in which `show` says how far the work is; lines of `say` do not disturb the bar.

    `unit`: what is counted. `every_s`: seconds between two plain lines. `first_s`: seconds until the first of them.
    """

    def __init__(self, unit: str, waiting_for: str = "", *, every_s: float, first_s: float = 0.0) -> None:
        self._unit, self._waiting_for, self._every_s = unit, waiting_for, every_s
        self._live = sys.stderr.isatty()
        self._began = time.monotonic()
        self._next = self._began + first_s

    def __enter__(self) -> Progress:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn(self._unit + " {task.completed}/{task.total}"), BarColumn(),
                TextColumn("{task.description}"), TimeRemainingColumn(), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(self._waiting_for, total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line."""
        if self._live:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            cli.say(line)

    def show(self, done: int, total: int, text: str, seconds_left: float | None = None) -> None:
        """Say that `done` of `total` units are done; without `seconds_left` those that the pace so far gives."""
        if self._live:
            self._bar.update(self._task, total=total, completed=done, description=text)
        elif (now := time.monotonic()) >= self._next:
            self._next = now + self._every_s
            if seconds_left is None:
                seconds_left = (now - self._began) * (total - done) / done if done else math.inf
            left = f"  {seconds_left / 60:.1f} min left" if math.isfinite(seconds_left) else ""
            cli.say(f"{self._unit} {done}/{total}  {text}{left}")
