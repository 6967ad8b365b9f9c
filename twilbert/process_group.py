"""Start processes that do not hear the signals meant for the command that starts them.

`timeout` and a shell's `kill %1` signal a whole process group. The command answers with a checkpoint, for which it
needs its Ray.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator


@contextlib.contextmanager
def group_of_their_own() -> Iterator[None]:
    """What the body starts, and all that those start in turn, forms a process group apart from this process's.

    This process joins that group for the time of the body: a child can only be moved before it becomes its program.
    A signal that ends processes, sent to our own group meanwhile, reaches this process after the body.
    """
    if not hasattr(os, "setpgid") or os.getsid(0) == os.getpid():  # Windows; who leads a session cannot leave its group
        yield
        return
    own = os.getpgrp()
    with _member(own) as ears, _member(0) as first:
        os.setpgid(0, first.pid)
        try:
            yield
        finally:
            os.setpgid(0, own)  # still there: `ears` is not reaped yet, whatever was sent to it
            if (ended := ears.poll()) is not None:
                os.kill(os.getpid(), -ended)  # a signal for the group, Ctrl-C perhaps, came meanwhile


@contextlib.contextmanager
def _member(group: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process of `group` (0: of a new one) that does nothing and ends with the body, or with this process."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, process_group=group) as waiting:
        try:
            yield waiting
        finally:
            waiting.kill()
