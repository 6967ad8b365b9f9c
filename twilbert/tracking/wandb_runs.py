"""Runs of Weights & Biases, whose failures never end the tracked work and whose waits are bounded.

A server that is unreachable or refuses the key makes a command's runs offline ones. Later failures are reported in one
line; the rows so far stay in W&B's folder, from which `wandb sync` uploads them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_INIT_S, _FINISH_S = 15, 30  # at most, to begin an online run and to finish its upload


def resolve_mode(mode: str) -> str:
    """Return online, offline or disabled: auto is online where a W&B key is in the environment."""
    if mode != "auto":
        return mode
    from_environment = os.environ.get("WANDB_MODE")
    if from_environment in ("online", "offline", "disabled"):
        return from_environment
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


class Wandb:
    """The W&B runs of one command; only `close` guarantees that their rows are on the disk."""

    def __init__(self, project: str, mode: str, say: Callable[[str], None]) -> None:
        self.mode = resolve_mode(mode)
        self.why = ""  # mode differs from the requested one
        self._project, self._say = project, say
        self._open: list[Run] = []

    def open(
        self,
        folder: str,
        name: str,
        config: Mapping[str, Any],
        run_id: str,
        *,
        group: str | None = None,
        kind: str | None = None,
        beside_others: bool = False,
    ) -> Run:
        """Open a run whose rows carry their step; `beside_others` where one process logs several at a time.

        Paths in `config` are left out, since they may contain the user's name.
        """
        arguments = {
            "project": self._project,
            "name": name,
            "group": group,
            "job_type": kind,
            "id": run_id,
            "resume": "allow",
            "reinit": "create_new" if beside_others else "default",
            "dir": folder,
            "config": _without_paths(config),
        }
        try:
            run = self._init(folder, run_id, arguments)
        except Exception as error:  # noqa: BLE001 - the tracked work goes on after any error
            run, self.mode, self.why = None, "disabled", f" ({_line(error)})"
        self._open.append(Run(run, self._say))
        return self._open[-1]

    def _init(self, folder: str, run_id: str, arguments: dict[str, Any]) -> Any:
        if self.mode == "disabled":
            return None
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's crash reports wait for the network at exit
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - there may be no home
        existing = next(path for path in (cache, *cache.parents) if path.exists())
        if not os.access(existing, os.W_OK) and not self._open:
            self._say(f"{cache}: not writable, so W&B logs to this terminal; choose another folder: XDG_CACHE_HOME=DIR")
        inside = Path(folder, "wandb")
        inside.mkdir(parents=True, exist_ok=True)
        before = set(inside.iterdir())
        if self.mode == "online":
            try:
                if "WANDB_API_KEY" not in os.environ and not wandb.login(prompt=False, verify=False):
                    raise ValueError("no WANDB_API_KEY")
                return _started(wandb.init(mode="online", settings=_settings(), **arguments))
            except Exception as error:  # noqa: BLE001 - of W&B, the network or the server
                self.mode, self.why = "offline", f" (not online: {_line(error)})"
            if any(run.is_open for run in self._open):
                return None  # W&B's process has this run's id, and other runs
            wandb.teardown()
            for left in set(inside.glob(f"run-*-{run_id}")) - before:
                shutil.rmtree(left)
        return _started(wandb.init(mode="offline", settings=_settings(), **arguments))

    def close(self) -> None:
        """End all runs and wait for the disk."""
        for run in self._open:
            run.finish()
        if self._open and self.mode != "disabled":
            import wandb

            try:
                # `finish` returns before the last block is on the disk: end W&B's own process, which waits for it.
                wandb.teardown()
            except Exception as error:  # noqa: BLE001 - as above
                if not any(run.failed for run in self._open):
                    self._say(f"tracking: W&B did not end properly ({_line(error)})")
        self._open.clear()


class Run:
    """A W&B run, or a no-op where W&B is disabled."""

    def __init__(self, run: Any, say: Callable[[str], None]) -> None:
        self._run, self._say = run, say
        self.failed = False
        self.folder = None if run is None else Path(run.dir).parent
        self.url = None if run is None else run.url

    @property
    def is_open(self) -> bool:
        """Whether it still accepts rows."""
        return self._run is not None

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row, which carries its step."""
        self._try(lambda run: run.log(dict(row)))

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """End the run, with a summary."""

        def end(run: Any) -> None:
            run.summary.update(dict(summary or {}))
            run.finish()

        self._try(end)
        self._run = None

    def _try(self, action: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # noqa: BLE001 - the tracked work goes on after any error
            self._run, self.failed = None, True
            self._say(f"tracking: W&B failed ({_line(error)}); to upload the rows so far: wandb sync {self.folder}")


def _settings() -> Any:
    import wandb

    # Numbers only: no host, user, command line, packages or source ever leave the run.
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        host="",
        username="",
        init_timeout=_INIT_S,
        finish_timeout=_FINISH_S,
        finish_timeout_raises=True,
    )


def _started(run: Any) -> Any:
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    # A link to a log in the home folder: its path contains the user's name, its contents are not of this run.
    (Path(run.dir).parent / "logs" / "debug-core.log").unlink(missing_ok=True)
    return run


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    return None if isinstance(value, str) and ("/" in value or os.sep in value or value.startswith("~")) else value


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
