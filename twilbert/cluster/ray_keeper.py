"""Run a command until standard input ends or it ends itself: `python ray_keeper.py COMMAND…`, alone, without packages.

A local Ray is started this way in a session of its own: no signal for the user's command reaches it, and however that
command ends, SIGKILL included, its end of the pipe closes and Ray ends too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

_END_S = 10.0


def kill_session(leader: int) -> None:
    """SIGKILL all processes of this session but our own until none is left; without /proc, only its process group.

    A local Ray has nothing to store at its end, and Ray's own shutdown takes seconds. Its workers are in process
    groups of their own within the session.
    """
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline and (running := _running_in(leader)):
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    if not Path("/proc/self/stat").exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)


def _running_in(session: int) -> list[int]:
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, _, its_session = stat.read_text(errors="replace").rpartition(")")[2].split()[:4]
            if int(its_session) == session and state not in "ZX" and int(stat.parent.name) != os.getpid():
                pids.append(int(stat.parent.name))
    return pids


def main() -> None:
    """Exit with the command's code, once nothing is left of our session where we lead it."""
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def end_when_it_ends() -> None:
        code = command.wait()
        if os.getsid(0) == os.getpid():
            kill_session(os.getpid())
        os._exit(code & 0xFF)

    threading.Thread(target=end_when_it_ends).start()
    sys.stdin.buffer.read()
    command.kill()


if __name__ == "__main__":
    main()
