"""Processes that take turns: programs that are compared share the machine's drift, and nothing of their memory.

Every arm lives in a process of its own for as long as the comparison lasts. One of them works while the others wait on
a pipe, where they use no processor (threads of OpenMP spin for a millisecond after their work, then sleep).
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

WARM_UP = "warm up"
"""Asks a turn for something shorter that is not counted."""
Turn = Callable[[Any], dict[str, Any]]
"""One measurement of what `Arms.take` was asked for; what it found, for JSON."""


class PeakMemory:
    """The most memory used since this was made, over what was in use then, in bytes.

    On CUDA what the allocator handed out; on a CPU the resident set of this process, as Linux keeps it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.before = self._now()

    def _now(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else _status("VmRSS")

    def bytes(self) -> int:
        """The peak until now."""
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _status("VmHWM")
        return peak - self.before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


@contextmanager
def clock(device: torch.device, into: dict[str, Any], name: str = "seconds") -> Iterator[None]:
    """Add the seconds that the body took to into[name], the device's work included."""
    synchronise(device)
    began = time.perf_counter()
    yield
    synchronise(device)
    into[name] = into.get(name, 0.0) + time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def host_work() -> dict[str, float]:
    """What this process has used so far: seconds of its own, of the kernel for it, and pages first touched."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"user_seconds": used.ru_utime, "system_seconds": used.ru_stime, "page_faults": used.ru_minflt}


class Arms:
    """Arms by name; each is made in its own process by `make(*args)`, which returns its turn. Close at the end."""

    def __init__(
        self,
        threads: int,
        makers: dict[str, tuple[Callable[..., Turn], tuple[Any, ...]]],
        environments: dict[str, dict[str, str]] | None = None,
    ) -> None:
        """`environments`: variables that an arm's process starts with, by name."""
        context = multiprocessing.get_context("spawn")
        self._pipes: dict[str, Connection] = {}
        self._processes = []
        for name, (make, args) in makers.items():
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, threads, make, args), daemon=True)
            with patch.dict(os.environ, (environments or {}).get(name, {})):
                process.start()
            there.close()
            self._pipes[name] = here
            self._processes.append(process)
        try:
            for name in makers:  # made side by side: no turn is taken yet
                self._receive(name)
        except RuntimeError:
            self.close()
            raise

    def take(self, name: str, asked: Any = None) -> dict[str, Any]:
        """One turn of that arm, and what it used: seconds of the process and the kernel, pages first touched."""
        self._pipes[name].send(asked)
        return self._receive(name)

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes.values():
            pipe.close()
        for process in self._processes:
            process.join(timeout=20)
            if process.is_alive():
                process.kill()

    def _receive(self, name: str) -> dict[str, Any]:
        try:
            found, fault = self._pipes[name].recv()
        except EOFError as error:
            raise RuntimeError(f"{name}: its process died; most likely memory ran out") from error
        if fault:
            raise RuntimeError(f"{name}:\n{fault}")
        return found


def _serve(pipe: Connection, threads: int, make: Callable[..., Turn], args: tuple[Any, ...]) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(threads)
    try:
        turn = make(*args)
        pipe.send(({}, ""))
        while True:
            asked = pipe.recv()
            before = host_work()
            found = turn(asked)
            used = {key: value - before[key] for key, value in host_work().items()}
            pipe.send((used | found, ""))
    except EOFError:  # closed: the comparison is over
        return
    except Exception:  # noqa: BLE001 - shown by the process that compares
        pipe.send(({}, traceback.format_exc()))
