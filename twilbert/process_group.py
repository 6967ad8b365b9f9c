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
    """
    if not hasattr(os, "setpgid") or os.getsid(0) == os.getpid():  # Windows; who leads a session cannot leave its group
        yield
        return
    own = os.getpgrp()
    with _member(own), _member(0) as new:  # a group lasts as long as it has members
        os.setpgid(0, new)
        try:
            yield
        finally:
            os.setpgid(0, own)


@contextlib.contextmanager
def _member(group: int) -> Iterator[int]:
    """A process of `group` (0: of a new one) that waits for the body to end; its id."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, process_group=group) as waiting:
        yield waiting.pid
