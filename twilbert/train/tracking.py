"""Where a run's numbers go: always metrics.jsonl, and Weights & Biases unless it is disabled.

Keys group by slash: train/ valid/ optim/ speed/ data/ pkm/. Every row carries its step, also in W&B, whose own step
starts again at 0 after a restart.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from twilbert import cli, storage
from twilbert.parsing import read_rows
from twilbert.recipe import Tracking

METRICS_FILE = "metrics.jsonl"


class Histogram(NamedTuple):
    """Counts between edges: one more edge than counts."""

    edges: list[float]
    counts: list[int]


class MetricsFile:
    """metrics.jsonl of a run: one JSON object a line, in order of steps.

    Appended to in a local or mounted folder. An object store cannot append: there rows are kept and the file is
    written whole by `flush`, which the run calls at evaluations and checkpoints.
    """

    def __init__(self, path: str, last_step: int) -> None:
        self.path = path
        self._rows = [json.dumps(row) for row in read_metrics(path) if row["step"] <= last_step]
        self.flush()
        self._stream = None
        if storage.is_local(path):
            self._stream = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def append(self, row: dict[str, Any]) -> None:
        """Add one row."""
        line = json.dumps(row)
        if self._stream is None:
            self._rows.append(line)
            return
        with storage.explained_write(self.path):
            self._stream.write(line + "\n")
            self._stream.flush()

    def flush(self) -> None:
        """Make rows durable where `append` did not."""
        if getattr(self, "_stream", None) is None:
            storage.write_bytes_atomic(self.path, "".join(line + "\n" for line in self._rows).encode())

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._stream is not None:
            self._stream.close()


def read_metrics(path: str) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; what is damaged in it is left out, and told of."""
    return list(read_rows(path, cli.say))


def resolve_mode(settings: Tracking) -> str:
    """online, offline or disabled: auto is online where a W&B key is in the environment."""
    if settings.mode != "auto":
        return settings.mode
    wanted = os.environ.get("WANDB_MODE")
    if wanted in ("online", "offline", "disabled"):
        return wanted
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def open_run(
    folder: str,
    name: str,
    project: str,
    mode: str,
    config: dict[str, Any],
    run_id: str,
    *,
    group: str | None = None,
    kind: str | None = None,
    beside_others: bool = False,
) -> Any:
    """A W&B run whose rows carry their own step; `beside_others` where one process logs several at a time."""
    import wandb

    Path(folder).mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=project,
        name=name,
        group=group,
        job_type=kind,
        id=run_id,
        resume="allow",
        reinit="create_new" if beside_others else "default",
        mode="offline" if mode == "offline" else "online",
        dir=folder,
        config=config,
        # Numbers only: no host, user, command line, packages or source ever leave the run.
        settings=wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            host="",
            username="",
        ),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    # A link to a log in the home folder, whose path tells the user's name; nothing in it is about this run.
    (Path(run.dir).parent / "logs" / "debug-core.log").unlink(missing_ok=True)
    return run


class Tracker:
    """Rank 0's log: one row goes to metrics.jsonl and to W&B."""

    def __init__(
        self, run_folder: str, run_name: str, settings: Tracking, config: dict[str, Any], run_id: str, last_step: int
    ) -> None:
        self._file = MetricsFile(storage.join(run_folder, METRICS_FILE), last_step)
        self._run = None
        self.mode = resolve_mode(settings)
        self.where = storage.join(run_folder, METRICS_FILE)
        if self.mode == "disabled":
            self.first_line = f"tracking: W&B disabled; metrics in {self.where}"
            return
        folder = run_folder if storage.is_local(run_folder) else tempfile.mkdtemp(prefix="twilbert-wandb-")
        self._run = open_run(folder, run_name, settings.project, self.mode, config, run_id)
        inside = Path(self._run.dir).parent
        self.first_line = f"tracking: W&B {self.mode} in {inside}; metrics in {self.where}" + (
            f"; to upload later: wandb sync {inside}" if self.mode == "offline" else f"; {self._run.url}"
        )

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write one row of `step`: numbers, and histograms, which metrics.jsonl holds as {"edges", "counts"}."""
        row = {"step": step, **values}
        self._file.append({key: v._asdict() if isinstance(v, Histogram) else v for key, v in row.items()})
        if self._run is not None:
            self._run.log({key: _wandb_value(value) for key, value in row.items()})

    def flush(self) -> None:
        """Make the rows so far durable."""
        self._file.flush()

    def close(self) -> None:
        """End both logs."""
        self._file.close()
        if self._run is not None:
            import wandb

            self._run.finish()
            # `finish` returns before the last block is on the disk: end W&B's own process, which waits for it.
            wandb.teardown()


def _wandb_value(value: Any) -> Any:
    if not isinstance(value, Histogram):
        return value
    import numpy as np
    import wandb

    return wandb.Histogram(np_histogram=(np.asarray(value.counts), np.asarray(value.edges)))
