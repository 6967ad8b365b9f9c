"""A local Ray for one command: on the loopback interface, with a token, and stopped with the command.

command ── pipe ──▶ ray_keeper.py (a session of its own) ──▶ ray start --head --block ──▶ Ray's processes
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from twilbert import signals
from twilbert.cluster import ray_keeper
from twilbert.errors import Interrupted, TwilbertError, UsageError

_OBJECT_STORE_BYTES = 2**30, 2**27  # in all at least, and a CPU: blocks in flight, not a whole corpus
_START_S = 120.0  # a loaded machine takes half a minute
_END_S = 30.0
PATIENCE_S = 3.0
_GONE = signal.SIGUSR2  # to the main thread: Ray has ended
_PORTS = range(20_000, 32_768)  # below those that systems hand out (Linux: from 32,768), above Ray's own for workers
_FOLDER = "twilbert-ray-"
_LONGEST_FOLDER = 40  # bytes: Ray's sockets lie 65 bytes deeper, and no system takes paths over 103
_SETTINGS = {
    # On Linux too: the node's address, where all of Ray's servers listen, is then 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # A local Ray shares its cores with what it is there for. Nobody reads its metrics; a worker without work wakes a
    # hundred times a second: one is kept, others end after a second. Workers are what the user started, at any
    # program's priority: at Ray's niceness of 15 training all but stops beside another busy one.
    "RAY_enable_metrics_collection": "0",
    "RAY_num_workers_soft_limit": "1",
    "RAY_worker_niceness": "0",
}
# Ray Train's: numbers for a Prometheus, and a process that looks for nodes about to be taken; a user's own stay.
_TRAIN_SETTINGS = {"RAY_TRAIN_METRICS_ENABLED": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
_TOKEN = secrets.token_hex(32)
_mode = ""  # of authentication, in this process
_running: _LocalRay | None = None


def address() -> str:
    """Its address for `ray.init`; empty when none runs."""
    return _running.address if _running else ""


def folder() -> str:
    """The folder of its sockets and logs; empty when none runs."""
    return _running.folder if _running else ""


def check(patience: float = 0.0) -> None:
    """TwilbertError when that Ray has ended by itself, or does so within `patience` seconds.

    Calls to a Ray whose processes die may fail a second or two before its first process has ended.
    """
    if _running is not None and _running.gone.wait(patience):
        raise TwilbertError(
            "the local Ray has ended: one of its processes failed or was killed, by hand or for want of memory; "
            f"start the same command again. Ray's logs: {_running.folder}/session_latest/logs"
        )


@contextlib.contextmanager
def start(num_cpus: int, asked_cpus: int, interrupted: Sequence[int] = ()) -> Iterator[str]:
    """Run a local Ray during the body; yields the address for `ray.init`. TwilbertError when it fails to start or dies.

    It has `num_cpus` logical CPUs, and an object store for the `asked_cpus` that the job may use. When it dies during
    the body, the main thread is interrupted (nothing else ends its calls of Ray), and the error replaces the interrupt.
    The folder is removed unless the body failed: then its logs stay until the next local Ray starts. KeyboardInterrupt
    when `interrupted` becomes non-empty before it is up.
    """
    global _running
    with _environment():
        _running = _LocalRay(num_cpus, asked_cpus)
        logs_matter = False
        try:
            _running.wait_until_up(interrupted)
            with signals.handled(signals.interrupt, _GONE):
                yield _running.address
        except BaseException as error:
            logs_matter = not isinstance(error, KeyboardInterrupt | UsageError | Interrupted)
            check(0.0 if isinstance(error, KeyboardInterrupt | TwilbertError) else PATIENCE_S)
            raise
        finally:
            local_ray, _running = _running, None
            with signals.deferred():
                local_ray.end()
            if not logs_matter and not local_ray.gone.is_set():
                shutil.rmtree(local_ray.folder, ignore_errors=True)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set environment variables during the body: a token for Ray, and features of Ray Train that are off.

    Ray reads its mode when it is imported and its token once per process: a program that imported Ray without one
    before cannot use one here. A token of the user's is kept, but not the file that Ray generates by itself.
    """
    global _mode
    given = os.environ.get("RAY_AUTH_MODE", "disabled")
    _mode = _mode or (given if "ray" in sys.modules else "token")
    settings = {name: value for name, value in _TRAIN_SETTINGS.items() if name not in os.environ}
    settings["RAY_AUTH_MODE"] = _mode
    by_file = given == "token" and Path("~/.ray/auth_token").expanduser().exists()
    if not by_file and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        settings["RAY_AUTH_TOKEN"] = _TOKEN
    before = {name: os.environ[name] for name in settings if name in os.environ}
    os.environ |= settings
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name, None)
        os.environ |= before


class _LocalRay:
    def __init__(self, num_cpus: int, asked_cpus: int) -> None:
        self.folder = _new_folder()
        self.gone = threading.Event()
        self._ending = False
        gcs, self._raylet_port, client = _free_ports(3)
        # In this form Ray does not replace the loopback address by the machine's own.
        self.address = f"[::ffff:127.0.0.1]:{gcs}"
        store = max(_OBJECT_STORE_BYTES[0], asked_cpus * _OBJECT_STORE_BYTES[1])
        command = [
            *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--node-manager-port={self._raylet_port}"),
            *(f"--ray-client-server-port={client}", f"--num-cpus={num_cpus}", f"--temp-dir={self.folder}"),
            *(f"--object-store-memory={store}", "--include-dashboard=false"),
            "--include-log-monitor=false",  # it reads all logs ten times a second
        ]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | _SETTINGS
        self._output = Path(self.folder, "ray-start.log")
        # The keeper inherits the lock: a folder that is not locked belongs to no live Ray.
        with locked(self.folder) as lock, self._output.open("wb") as output:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", ray_keeper.__file__, *command],
                stdin=subprocess.PIPE, stdout=output, stderr=output,
                env=environment, start_new_session=True, pass_fds=[lock],
            )  # fmt: skip

    def wait_until_up(self, interrupted: Sequence[int]) -> None:
        """Wait for the raylet, the last part to start."""
        importlib.import_module("ray")  # takes a second, in which Ray starts

        deadline = time.monotonic() + _START_S
        while not _answers(self._raylet_port):
            if interrupted:
                raise KeyboardInterrupt
            if self._keeper.poll() is not None or time.monotonic() > deadline:
                lines = self._output.read_text(errors="replace").strip().splitlines()
                reason = lines[-1].strip() if lines else f"not up after {_START_S:.0f} s"
                raise TwilbertError(f"a local Ray cannot be started ({reason}); see {self._output}")
            time.sleep(0.02)
        threading.Thread(target=self._watch, name="local-ray", daemon=True).start()

    def end(self) -> None:
        """Stop it and wait until its processes have ended."""
        self._ending = True
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(timeout=_END_S)
        if self._keeper.poll() is None or self.gone.is_set():  # too slow, or killed without its children
            ray_keeper.kill_session(self._keeper.pid)

    def _watch(self) -> None:
        self._keeper.wait()
        if not self._ending:
            self.gone.set()
            os.kill(os.getpid(), _GONE)


def _new_folder() -> str:
    """Make a private folder for sockets and logs; folders of local Rays that have ended are removed."""
    places = [tempfile.gettempdir(), "/tmp"]
    for place in places:
        if place.isascii() and len(place) + len(_FOLDER) + 8 < _LONGEST_FOLDER and os.access(place, os.W_OK | os.X_OK):
            _remove_left_over(Path(place))
            return tempfile.mkdtemp(prefix=_FOLDER, dir=place)
    raise TwilbertError(
        f"a local Ray cannot be started: its sockets need a short path, and neither {' nor '.join(places)} will do; "
        f"set TMPDIR to a writable folder whose path has under {_LONGEST_FOLDER - len(_FOLDER) - 8} plain letters"
    )


def _remove_left_over(place: Path) -> None:
    for folder in place.glob(f"{_FOLDER}*"):
        with contextlib.suppress(OSError):  # another user's, in use, or removed by another command
            is_new = time.time() - folder.stat().st_mtime < 60  # its lock may not be held yet
            if folder.stat().st_uid == os.getuid() and not is_new:
                with locked(folder):
                    shutil.rmtree(folder)


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[int]:
    """Lock a folder during the body; yields the descriptor. OSError when another process has locked it."""
    lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
    finally:
        os.close(lock)


def _free_ports(number: int) -> list[int]:
    free: list[int] = []
    while len(free) < number:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            free += [port] if port not in free else []
    return free


def _answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0
