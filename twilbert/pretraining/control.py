"""Messages between the driver, whose main thread receives Ctrl-C, and the workers: stop requests, progress, failures.

They pass through a small Ray actor. Rank 0 calls `heartbeat` with its progress, gets back whether to stop, and shares
the answer with the other ranks in the step's all-reduce. The driver polls for progress, lines to print and failures.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

from twilbert import signals
from twilbert.cluster import local_ray, ray_errors, ray_session
from twilbert.errors import TwilbertError
from twilbert.progress import Progress

STOP_NO, STOP_SIGNAL, STOP_TIME = 0, 1, 2
SAVE_NOW = 3  # not a stop: a node is about to be taken, save and go on
STOP_REASONS = {STOP_SIGNAL: "interrupted", STOP_TIME: "training.max_time reached"}


_POLL_S = 1.0  # between two polls of the actor; a signal or the end of training is handled at once
_DRAIN_POLL_S = 5.0  # notices come at least half a minute ahead
_SAME_SIGNAL_S = 2.0  # `timeout` and terminals may send one stop twice; a later signal counts as a second one


class RunControl:
    """The Ray actor that relays messages between driver and workers."""

    def __init__(self, secrets: dict[str, str] | None = None, seconds: float | None = None) -> None:
        """`seconds`: after which the run stops with a checkpoint, restarts of the workers included; None: never."""
        self._secrets = secrets or {}
        self._deadline = math.inf if seconds is None else time.monotonic() + seconds
        self._stop = STOP_NO
        self._save = False
        self._attempts = 0
        self._crash = ""
        self._progress: dict[str, Any] = {}
        self._lines: list[str] = []
        self._failure: TwilbertError | None = None
        self._outcome: dict[str, Any] | None = None

    def secrets(self) -> dict[str, str]:
        """Environment variables for the workers that Ray must not log, as it does those of a runtime environment."""
        return self._secrets

    def heartbeat(self, progress: dict[str, Any]) -> int:
        """Rank 0 reports its progress; returns whether to stop or to save now (STOP_NO, …)."""
        remaining = self._deadline - time.monotonic()
        self._progress = progress | {"seconds_left": max(0.0, min(progress["seconds_left"], remaining))}
        save, self._save = self._save, False
        return self._stop or (STOP_TIME if remaining <= 0 else SAVE_NOW if save else STOP_NO)

    def say(self, line: str) -> None:
        """Queue a line for the driver to print."""
        self._lines.append(line)

    def stop(self, reason: int) -> None:
        """Ask the workers to stop after the current step, with a checkpoint."""
        self._stop = reason

    def save(self) -> None:
        """Ask the workers for a checkpoint after the current step."""
        self._save = True

    def attempt(self, limit: int) -> None:
        """Rank 0 starts or restarts; more than `limit` restarts without a new checkpoint fail the run."""
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

    def crashed(self, reason: str, is_recoverable: bool) -> None:
        """A worker reports the exception that ends it; later ones are consequences of the first."""
        self._crash = self._crash or reason
        if not is_recoverable:
            self.fail(
                TwilbertError(
                    f"{reason}: a restart would fail in the same way. Checkpoints are intact: mend it and start the "
                    "same command"
                )
            )

    def committed(self) -> None:
        """Rank 0 has committed a checkpoint: restarts count from here."""
        self._attempts = 1

    def fail(self, error: TwilbertError) -> None:
        """A worker reports a failure that a restart cannot mend."""
        self._failure = self._failure or error

    def failed(self) -> bool:
        """Whether a worker has failed for good."""
        return self._failure is not None

    def finish(self, outcome: dict[str, Any]) -> None:
        """Rank 0 reports the outcome of the run."""
        self._outcome = outcome

    def poll(self) -> tuple[dict[str, Any], list[str], TwilbertError | None, dict[str, Any] | None]:
        """(progress, new lines, failure, outcome), for the driver."""
        lines, self._lines = self._lines, []
        return self._progress, lines, self._failure, self._outcome


def watch(fit: Callable[[], object], control: Any) -> dict[str, Any]:
    """Run `fit` in a thread while the main thread shows progress and handles signals; returns the outcome of the run.

    A first Ctrl-C or SIGTERM stops with a checkpoint; a second one, or one before the first step, stops at once.
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
        outcome = _poll_until_done(thread, control)
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


def _poll_until_done(thread: threading.Thread, control: Any) -> dict[str, Any] | None:
    """Start the thread and poll until it ends; returns the outcome, None where the workers left none."""
    import ray

    signalled_at: list[float] = []
    shown: dict[str, Any] = {}
    stop_requested, draining = False, ray_session.draining_nodes()
    drain_polled_at, polled_at = time.monotonic(), 0.0
    with (
        signals.handled(lambda *_: signalled_at.append(time.monotonic())),
        Progress("step", "starting workers", every_s=10) as display,
    ):
        thread.start()
        while True:
            thread.join(timeout=0.2)
            alive = thread.is_alive()
            if alive and not signalled_at and time.monotonic() - polled_at < _POLL_S:
                continue
            polled_at = time.monotonic()
            progress, lines, failure, outcome = ray.get(control.poll.remote())
            for line in lines:
                display.say(line)
            if progress and progress != shown:
                text = f"loss {progress['loss']:.3f}  {progress['tokens_per_second']:,.0f} tokens/s"
                display.show(progress["step"], progress["max_steps"], text, progress["seconds_left"])
                shown = progress
            if failure is not None:
                raise failure
            if time.monotonic() - drain_polled_at > _DRAIN_POLL_S:
                drain_polled_at, before = time.monotonic(), draining
                draining = ray_session.draining_nodes()
                if draining - before:
                    display.say("a node is about to be taken away: saving a checkpoint after this step")
                    control.save.remote()
            if signalled_at and not progress:  # there is nothing to save
                raise KeyboardInterrupt
            if signalled_at and not stop_requested:
                display.say("stopping after this step, with a checkpoint; once more to leave at once")
                control.stop.remote(STOP_SIGNAL)
                stop_requested = True
            if signalled_at and signalled_at[-1] - signalled_at[0] > _SAME_SIGNAL_S:
                raise KeyboardInterrupt
            if not alive:
                return outcome
