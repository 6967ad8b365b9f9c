"""The line between the driver, whose main thread hears Ctrl-C, and the workers, which Ray gives no chance of their own.

A small actor: rank 0 calls `beat` now and then with its progress and learns whether to stop; it shares the answer
with the other ranks in the step's own reduction. The driver polls it for progress, lines to print and faults.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from twilbert import cli, signals
from twilbert.cluster import local_ray, ray_errors, ray_session
from twilbert.errors import TwilbertError

STOP_NO, STOP_SIGNAL, STOP_TIME = 0, 1, 2
SAVE_NOW = 3  # not a stop: a node is about to be taken, save and go on
STOP_REASONS = {STOP_SIGNAL: "interrupted", STOP_TIME: "training.max_time reached"}


_POLL_S = 1.0  # between two questions to the actor; a signal or the end is heard at once
_DRAIN_POLL_S = 5.0  # notices come at least half a minute ahead
_SAME_SIGNAL_S = 2.0  # `timeout` and terminals may send one stop twice: later than this it is a second one


class RunControl:
    """The actor's body."""

    def __init__(self, secrets: dict[str, str] | None = None) -> None:
        self._secrets = secrets or {}
        self._stop = STOP_NO
        self._save = False
        self._attempts = 0
        self._crash = ""
        self._progress: dict[str, Any] = {}
        self._lines: list[str] = []
        self._fault: TwilbertError | None = None
        self._outcome: dict[str, Any] | None = None

    def secrets(self) -> dict[str, str]:
        """Worker: environment variables that must not travel where Ray would log them."""
        return self._secrets

    def beat(self, progress: dict[str, Any]) -> int:
        """Rank 0: here is how far I am; shall I stop, or save?"""
        self._progress = progress
        save, self._save = self._save, False
        return self._stop or (SAVE_NOW if save else STOP_NO)

    def say(self, line: str) -> None:
        """A line for the driver to print."""
        self._lines.append(line)

    def stop(self, reason: int) -> None:
        """Driver: ask the workers to leave after their step, with a checkpoint."""
        self._stop = reason

    def save(self) -> None:
        """Driver: ask for a checkpoint after the step."""
        self._save = True

    def attempt(self, limit: int) -> None:
        """Rank 0 begins, or begins again: more than `limit` restarts without a new checkpoint are a fault."""
        if self._attempts > limit:
            why = self._crash or "a process or its node was lost"
            self.fail(
                TwilbertError(
                    f"the workers died {self._attempts} times without a new checkpoint; the latest reason: {why}. "
                    "Checkpoints are intact: mend it and start the same command, or raise cluster.max_restarts"
                )
            )
        self._attempts += 1
        self._crash = ""

    def crashed(self, reason: str, may_be_mended: bool) -> None:
        """A worker is about to die of an exception; the first of them is the reason of the others."""
        self._crash = self._crash or reason
        if not may_be_mended:
            self.fail(
                TwilbertError(
                    f"{reason}: another start would end alike, so none is made. Checkpoints are intact: mend it and "
                    "start the same command"
                )
            )

    def sealed(self) -> None:
        """Rank 0: there is a new checkpoint."""
        self._attempts = 1

    def fail(self, error: TwilbertError) -> None:
        """A worker met a fault that trying again would not mend."""
        self._fault = self._fault or error

    def failed(self) -> bool:
        """Whether a worker has failed for good."""
        return self._fault is not None

    def finish(self, outcome: dict[str, Any]) -> None:
        """Rank 0: the run's outcome."""
        self._outcome = outcome

    def poll(self) -> tuple[dict[str, Any], list[str], TwilbertError | None, dict[str, Any] | None]:
        """Driver: progress, new lines, fault, outcome."""
        lines, self._lines = self._lines, []
        return self._progress, lines, self._fault, self._outcome


def watch(fit: Callable[[], object], control: Any) -> dict[str, Any]:
    """Run `fit` in a thread while this (main) thread shows progress and turns signals into a stop; the run's outcome.

    A first Ctrl-C or SIGTERM asks for a checkpoint; a second one, or one before the first step is done, leaves at once.
    TwilbertError carries a worker's own message, or says which part of Ray was lost.
    """
    from ray.exceptions import RayError

    failure: list[BaseException] = []

    def target() -> None:
        try:
            fit()
        except BaseException as error:  # noqa: BLE001 - carried to the main thread and raised there
            failure.append(error)

    thread = threading.Thread(target=target, name="fit", daemon=True)
    try:
        outcome = _until_over(thread, control)
    except KeyboardInterrupt:
        local_ray.check()
        raise
    except RayError as error:
        failure.append(error)
        outcome = None
    if failure:
        local_ray.check(local_ray.PATIENCE_S)
        what = f"training failed ({ray_errors.summary(failure[-1])}); checkpoints are intact"
        error = ray_errors.user_error(failure[-1]) or TwilbertError(f"{what}: start the same command again")
        raise error from failure[-1]
    if outcome is None:
        raise TwilbertError("the workers ended without a result; see the Ray log of the run")
    return outcome


def _until_over(thread: threading.Thread, control: Any) -> dict[str, Any] | None:
    """Start the thread and stay with it to its end: the outcome, None where there is none."""
    import ray

    came: list[float] = []  # when signals came
    asked, leaving = False, ray_session.draining_nodes()
    looked, polled = time.monotonic(), 0.0
    with signals.handled(lambda *_: came.append(time.monotonic())), _Display() as display:
        thread.start()
        while True:
            thread.join(timeout=0.2)
            alive = thread.is_alive()
            if alive and not came and time.monotonic() - polled < _POLL_S:
                continue
            polled = time.monotonic()
            progress, lines, fault, outcome = ray.get(control.poll.remote())
            for line in lines:
                display.say(line)
            display.show(progress)
            if fault is not None:
                raise fault
            if time.monotonic() - looked > _DRAIN_POLL_S:
                looked, known = time.monotonic(), leaving
                leaving = ray_session.draining_nodes()
                if leaving - known:
                    display.say("a node is about to be taken away: saving a checkpoint after this step")
                    control.save.remote()
            if came and not progress:  # there is nothing to save
                raise KeyboardInterrupt
            if came and not asked:
                display.say("stopping after this step, with a checkpoint; once more to leave at once")
                control.stop.remote(STOP_SIGNAL)
                asked = True
            if came and came[-1] - came[0] > _SAME_SIGNAL_S:
                raise KeyboardInterrupt
            if not alive:
                return outcome


class _Display:
    """A live bar on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = 0.0
        self._shown: dict[str, Any] = {}

    def __enter__(self) -> _Display:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"),
                TimeRemainingColumn(), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("starting workers", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bar.stop()

    def say(self, line: str) -> None:
        if self._live:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            cli.say(line)

    def show(self, progress: dict[str, Any]) -> None:
        if not progress or progress == self._shown:
            return
        self._shown = progress
        text = f"loss {progress['loss']:.3f}  {progress['tokens_per_second']:,.0f} tokens/s"
        if self._live:
            self._bar.update(self._task, total=progress["max_steps"], completed=progress["step"], description=text)
        elif time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            left = progress["seconds_left"]
            cli.say(f"step {progress['step']}/{progress['max_steps']}  {text}  {left / 60:.1f} min left")
