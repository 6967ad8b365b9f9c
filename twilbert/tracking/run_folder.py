"""A run's folder, identity and status: the same recipe and data resume, another identity under its name is refused.

STORAGE/NAME/  identity.json  owner.json  recipe.yaml  metrics.jsonl  wandb/  checkpoint-000500/ …  model/
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from twilbert import cli, outputs, storage
from twilbert.errors import TwilbertError
from twilbert.parsing import read_record
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Recipe

State = Literal["running", "finished", "stopped", "failed"]
STATUS_FILE = "status.json"
_STATUS_FILE_BEFORE = "state.json"  # of version 0.2: the name of a checkpoint's file too
_BEAT_S = 30.0
_SILENT_S = 5 * _BEAT_S  # a full disk queue or a short network outage must not count as a death


@dataclass(frozen=True)
class Status:
    """The state of a run."""

    state: State
    why: str = ""
    """Why the run stopped or failed, on one line."""


@dataclass(frozen=True)
class _Record:
    """status.json."""

    state: State
    why: str
    driver: str
    """Token of the driver that wrote it."""


class Heartbeat:
    """Keeps status.json up to date during training: `with Heartbeat(run) as heartbeat: …; heartbeat.end(reason)`."""

    def __init__(self, run: RunFolder, every: float = _BEAT_S) -> None:
        self._run, self._every = run, every
        self._over = threading.Event()
        self._end: Status | None = None
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        _write_status(self._run, Status("running"))
        self._thread.start()
        return self

    def end(self, stop_reason: str) -> None:
        """Record that training finished, or stopped for a reason."""
        self._end = Status("stopped", stop_reason) if stop_reason else Status("finished")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if isinstance(error, KeyboardInterrupt):
            self._end = Status("stopped", "interrupted, and left at once")
        elif error is not None or self._end is None:
            self._end = Status("failed", " ".join(str(error).split())[:500])
        _write_status(self._run, self._end)

    def _beat(self) -> None:
        while not self._over.wait(self._every):
            _write_status(self._run, Status("running"))


def _write_status(run: RunFolder, status: Status) -> None:
    """Write status.json, unless another driver has taken the run over; a failure is reported and stops nothing."""
    try:
        if run.is_ours():
            record = asdict(_Record(status.state, status.why, run.token))
            storage.write_json_atomic(storage.join(run.path, STATUS_FILE), record)
    except (OSError, TwilbertError) as error:
        cli.say(f"the run's {STATUS_FILE} could not be written: {error}")


def mark_finished(run: RunFolder) -> None:
    """Record a published run as finished and remove the leftovers of a killed driver."""
    try:
        storage.delete(storage.join(run.path, RAY_FOLDER))
        if storage.is_local(run.path):
            storage.remove_leftovers(Path(run.model))
        token = read_record(storage.join(run.path, OWNER), Owner).token
    except (OSError, TwilbertError) as error:
        cli.say(f"leftovers of the run's last driver could not all be removed: {error}")
        return
    _write_status(replace(run, token=token), Status("finished"))


def read_status(path: str, *, last_step: int, max_steps: int, hang_timeout: float) -> Status:
    """Return the status of the run at `path`.

    `last_step` of its metrics, `max_steps` of its recipe and `hang_timeout` (minutes) decide for folders without a
    status.json of their last driver: older runs, and runs that are just starting.
    """
    record, owner = storage.join(path, STATUS_FILE), storage.join(path, OWNER)
    if not storage.exists(record):
        record = storage.join(path, _STATUS_FILE_BEFORE)
    if storage.exists(record):
        written = read_record(record, _Record)
        if not storage.exists(owner) or read_record(owner, Owner).token == written.driver:
            age = _age(record)
            if written.state == "running" and age >= _SILENT_S:
                written = replace(
                    written, state="failed", why=f"its driver was killed or lost: silent for {_span(age)}"
                )
            if written.state == "failed" and trained_steps(path) >= max_steps:
                return Status("finished")  # killed after publishing its model, before recording that
            return Status(written.state, written.why)
    files = [storage.join(path, name) for name in ("metrics.jsonl", OWNER, IDENTITY)]
    age = min([_age(file) for file in files if storage.exists(file)], default=float("inf"))
    if storage.exists(storage.join(path, RAY_FOLDER)) and age < hang_timeout * 60:
        return Status("running")
    if max(last_step, trained_steps(path)) >= max_steps:
        return Status("finished")
    if storage.exists(storage.join(path, "model")):  # a run publishes its model when it stops in good order
        return Status("stopped", f"before step {max_steps:,}")
    return Status("running") if age < _SILENT_S else Status("failed", "it ended without a record: killed, or crashed")


def _age(path: str) -> float:
    return time.time() - storage.modified(path)


def _span(seconds: float) -> str:
    """12 minutes · 3.5 hours · 4 days."""
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


IDENTITY = "identity.json"
OWNER = "owner.json"
RAY_FOLDER = ".ray"  # Ray Train's own files, of no use once it has ended
_REMEDY = "start it under another name with run.name=NAME"
_SCHEDULE_STEPS = "training.schedule_steps"
_CHECKPOINT = re.compile(r"checkpoint-(\d{6,})")
PUBLISHED = "training.json"  # in the model folder: which checkpoint it is, and how far the run had come


@dataclass(frozen=True)
class Identity:
    """identity.json."""

    id: str
    identity: dict[str, Any]


@dataclass(frozen=True)
class Owner:
    """owner.json."""

    token: str


@dataclass(frozen=True)
class Published:
    """training.json, as far as it is read."""

    trained_steps: int
    checkpoint: str = ""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder: `id` is drawn once, `identity` is all that changes the run's results."""

    path: str
    name: str
    id: str
    identity: dict[str, Any]
    token: str = field(default="", compare=False)
    """Of the driver that trains it: a later driver writes its own into the folder."""

    def check_owner(self) -> None:
        """TwilbertError when another driver has taken the run over: two must not write one run's checkpoints."""
        if not self.is_ours():
            raise TwilbertError(f"{self.path}: another command has since been started on this run; this one gives way")

    def is_ours(self) -> bool:
        """Whether no other driver has taken the run over since this one claimed it."""
        return read_record(storage.join(self.path, OWNER), Owner).token == self.token

    @property
    def model(self) -> str:
        """The finished run's model folder: the best by held-out loss, else the last."""
        return storage.join(self.path, "model")

    @property
    def trained_steps(self) -> int:
        """Steps of training behind the published model folder; 0 when there is none."""
        return trained_steps(self.path)

    def publish(self, step: int, trained_steps: int) -> str:
        """Copy the model of checkpoint `step` to the model folder, whole or not at all; the checkpoint's name."""
        name = folder_name(step)
        source = storage.join(self.path, name, "model")
        record = {"run": self.id, "checkpoint": name, "trained_steps": trained_steps}
        files = storage.list_dir(source)
        with outputs.new_folder(
            self.model, "pretrain", overwrite=True, before=(PUBLISHED, *files), keep=True
        ) as target:
            for file in files:
                storage.write_bytes_atomic(storage.join(target, file), storage.read_bytes(storage.join(source, file)))
            storage.write_json_atomic(storage.join(target, PUBLISHED), record)
        return name


def trained_steps(path: str) -> int:
    """Return the steps that the run at `path` had trained when it published its model folder; 0 when it has none."""
    record = storage.join(path, "model", PUBLISHED)
    return read_record(record, Published).trained_steps if storage.exists(record) else 0


def folder_name(step: int) -> str:
    """checkpoint-000500 for step 500."""
    return f"checkpoint-{step:06d}"


def step_of(name: str) -> int | None:
    """500 for checkpoint-000500; None for other names."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def default_name(recipe_path: str, identity: dict[str, Any]) -> str:
    """Return the recipe file's name and a short hash of the run identity."""
    stem = recipe_path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".yaml").removesuffix(".yml")
    return f"{stem}-{loading.short_hash(identity)}"


def find(recipe: Recipe, name: str, identity: dict[str, Any]) -> RunFolder | None:
    """The run of this name where there is one; UsageError that lists the differences of another run identity."""
    path = storage.join(recipe.run.storage_path, name)
    record = storage.join(path, IDENTITY)
    if not storage.exists(record):
        return None
    held = read_record(record, Identity)
    remedy = f"{_REMEDY}, or undo these changes to resume it"
    if held.identity.get(_SCHEDULE_STEPS) != identity.get(_SCHEDULE_STEPS):
        remedy += f"; to train longer give {_SCHEDULE_STEPS} its old value"
    outputs.Claim(path, "a run", identity, remedy).require_same(held.identity)
    return RunFolder(path, name, held.id, held.identity)


def claim(recipe: Recipe, name: str, identity: dict[str, Any]) -> RunFolder:
    """The run's folder, found again or made, and ours from now on; writes what it records. Errors as `find`."""
    run = find(recipe, name, identity)
    if run is None:
        run = RunFolder(storage.join(recipe.run.storage_path, name), name, uuid.uuid4().hex[:8], identity)
        outputs.Claim(run.path, "a run", identity, _REMEDY).require_new()
        storage.write_json_atomic(storage.join(run.path, IDENTITY), {"id": run.id, "identity": identity})
    run = replace(run, token=uuid.uuid4().hex)
    storage.write_json_atomic(storage.join(run.path, OWNER), {"token": run.token})
    storage.write_bytes_atomic(storage.join(run.path, "recipe.yaml"), loading.dump(recipe).encode())
    return run


@contextlib.contextmanager
def claimed(recipe: Recipe, name: str, identity: dict[str, Any]) -> Iterator[RunFolder]:
    """`claim` around a driver's work: of a new run that is interrupted before its first checkpoint nothing is left."""
    path = storage.join(recipe.run.storage_path, name)
    run: RunFolder | None = None

    def stays() -> bool:
        return (run is not None and not run.is_ours()) or any("checkpoint-" in name for name in storage.list_dir(path))

    with outputs.Claim(path, "a run", identity, _REMEDY).held(stays, alone=False):  # a later driver takes it over
        run = claim(recipe, name, identity)
        yield run
