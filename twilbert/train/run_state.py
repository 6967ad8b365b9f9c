"""What a run is doing: its driver's signs of life, and what they tell a reader who has nothing but the folder.

state.json is written anew every half minute while a driver trains the run, and once at its end. A driver that was
killed writes no end: its last sign grows old, and the run has failed.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

from twilbert import cli, storage
from twilbert.errors import TwilbertError
from twilbert.parsing import read_record
from twilbert.train.run_folder import IDENTITY, OWNER, RAY_FOLDER, Owner, RunFolder

State = Literal["running", "finished", "stopped", "failed"]
STATE_FILE = "state.json"
_BEAT_S = 30.0
_SILENT_S = 5 * _BEAT_S  # a full disk queue or a short loss of the network is no death


@dataclass(frozen=True)
class Status:
    """What is known of a run."""

    state: State
    why: str = ""
    """Of a run that stopped or failed, on one line."""


@dataclass(frozen=True)
class _Record:
    """state.json."""

    state: State
    why: str
    driver: str
    """The token of who wrote it."""


class Signs:
    """Around a driver's training: `with Signs(run) as signs: …; signs.end(stop reason or "")`."""

    def __init__(self, run: RunFolder, every: float = _BEAT_S) -> None:
        self._run, self._every = run, every
        self._over = threading.Event()
        self._end: Status | None = None
        self._thread = threading.Thread(target=self._beat, name="signs", daemon=True)

    def __enter__(self) -> Signs:
        self._write(Status("running"))
        self._thread.start()
        return self

    def end(self, stopped: str) -> None:
        """The training came to its end, or was stopped for that reason."""
        self._end = Status("stopped", stopped) if stopped else Status("finished")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if isinstance(error, KeyboardInterrupt):
            self._end = Status("stopped", "interrupted, and left at once")
        elif error is not None or self._end is None:
            self._end = Status("failed", " ".join(str(error).split())[:500])
        self._write(self._end)

    def _beat(self) -> None:
        while not self._over.wait(self._every):
            self._write(Status("running"))

    def _write(self, status: Status) -> None:
        _write(self._run, status)


def _write(run: RunFolder, status: Status) -> None:
    """Unless another driver has taken the run over. A sign that cannot be written is reported, and ends nothing."""
    try:
        if run.is_ours():
            record = asdict(_Record(status.state, status.why, run.token))
            storage.write_json_atomic(storage.join(run.path, STATE_FILE), record)
    except (OSError, TwilbertError) as error:
        cli.say(f"the run's {STATE_FILE} could not be written: {error}")


def settle(run: RunFolder) -> None:
    """Say in the folder of a published run that it is finished, and remove what a killed driver left there."""
    try:
        storage.delete(storage.join(run.path, RAY_FOLDER))
        if storage.is_local(run.path):
            storage.remove_leftovers(Path(run.model))
        token = read_record(storage.join(run.path, OWNER), Owner).token
    except (OSError, TwilbertError) as error:
        cli.say(f"what the run's last driver left is not all mended: {error}")
        return
    _write(replace(run, token=token), Status("finished"))


def read(path: str, *, last_step: int, max_steps: int, hang_timeout: float) -> Status:
    """What the run at `path` is doing.

    `last_step` of its metrics, `max_steps` of its recipe and `hang_timeout` (minutes) decide for folders without a
    state.json of their last driver: runs from before there was one, and runs that are just being started.
    """
    record = storage.join(path, STATE_FILE)
    owner = storage.join(path, OWNER)
    if storage.exists(record):
        held = read_record(record, _Record)
        if not storage.exists(owner) or read_record(owner, Owner).token == held.driver:
            status = _of_record(held.state, held.why, _age(record))
            if status.state == "failed" and RunFolder(path, "", "", {}).trained_steps >= max_steps:
                return Status("finished")  # killed between publishing its model and saying so
            return status
    signs = [storage.join(path, name) for name in ("metrics.jsonl", OWNER, IDENTITY)]
    age = min([_age(sign) for sign in signs if storage.exists(sign)], default=float("inf"))
    if storage.exists(storage.join(path, RAY_FOLDER)) and age < hang_timeout * 60:
        return Status("running")
    trained = max(last_step, RunFolder(path, "", "", {}).trained_steps)
    if trained >= max_steps:
        return Status("finished")
    if storage.exists(storage.join(path, "model")):  # published where a run leaves of its own accord
        return Status("stopped", f"before step {max_steps:,}")
    return Status("running") if age < _SILENT_S else Status("failed", "it ended without a word: killed, or crashed")


def _of_record(state: State, why: str, age: float) -> Status:
    if state != "running" or age < _SILENT_S:
        return Status(state, why)
    return Status("failed", f"its driver was killed or lost: no sign of it for {_span(age)}")


def _age(path: str) -> float:
    return time.time() - storage.modified(path)


def _span(seconds: float) -> str:
    """12 minutes · 3.5 hours · 4 days."""
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
