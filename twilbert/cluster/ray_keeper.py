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

_TERMINATIONS = 15  # one a second: a signal that reaches a Python program while it forks can be lost


def main() -> None:
    """Exit with the command's code, or with all that is left of our process group where we lead it."""
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def leave_with_it() -> None:
        code = command.wait()
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(code & 0xFF)

    threading.Thread(target=leave_with_it).start()
    sys.stdin.buffer.read()
    for _ in range(_TERMINATIONS):
        command.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(timeout=1)
    command.kill()


if __name__ == "__main__":
    main()
