"""A command run on some of the cores, with the CPU seconds and memory of every process that came from it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Measured:
    """What a command took: seconds on the clock, CPU seconds of all its processes, peak MiB by kind of process."""

    wall: float
    cpu: float
    peak_mb: dict[str, int]


def run_module(command: list[str], cores: int | None = None) -> Measured:
    """Run `python -m COMMAND`, on the first `cores` of those this process may use; SystemExit with its exit code.

    Memory is what a process holds alone plus its share of files it maps: RSS without shared memory, where Ray's object
    store lies. Ray's daemons count, whatever their parent.
    """
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(mine)[:cores])  # a child has its parent's cores
    try:
        began = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", *command], env=environment)
    finally:
        os.sched_setaffinity(0, mine)
    watch = _Watch(process.pid)
    watch.start()
    code = process.wait()
    wall = time.monotonic() - began
    watch.done.set()
    watch.join()
    if code:
        raise SystemExit(code)
    peak = {kind: size >> 20 for kind, size in sorted(watch.peak.items(), key=lambda item: -item[1])}
    return Measured(wall, sum(watch.cpu.values()), peak)


class _Watch(threading.Thread):
    """Samples a process and all that came from it, every half second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.peak: dict[str, int] = {}  # bytes by kind of process
        self.cpu: dict[int, float] = {}  # seconds of each process seen
        self._known: dict[int, psutil.Process] = {pid: psutil.Process(pid)}

    def run(self) -> None:
        while not self.done.wait(0.5):
            self._sample()

    def _sample(self) -> None:
        for process in list(self._known.values()):
            try:
                for child in process.children():
                    self._known.setdefault(child.pid, child)
            except psutil.Error:
                continue
        for pid, process in self._known.items():
            try:
                memory, times = process.memory_info(), process.cpu_times()
                name = process.cmdline()[0] if process.cmdline() else process.name()
            except psutil.Error:
                continue
            self.cpu[pid] = times.user + times.system
            kind = re.split(r"[.(]", name.removeprefix("ray::"))[0] if name.startswith("ray::") else Path(name).name
            self.peak[kind] = max(self.peak.get(kind, 0), memory.rss - memory.shared)
