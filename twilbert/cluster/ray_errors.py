"""A user's error on its way out of Ray: raised in a task, actor or worker as anywhere else, it arrives as itself.

Ray wraps what a process of its raised in exceptions whose text is a page of traceback, and which are instances of the
wrapped class too: `except TwilbertError` catches the wrapping. Ray Data must be set to hand on the original
(`ray_session.quiet_ray_data`), and Ray Train collects exceptions by worker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from twilbert.errors import TwilbertError


def user_error(error: BaseException) -> TwilbertError | None:
    """Return the TwilbertError inside an exception of Ray, however deep; None where there is none."""
    from ray.exceptions import RayError

    chain = [error]
    for current in chain:
        if isinstance(current, TwilbertError) and not isinstance(current, RayError):
            return current
        inner = [getattr(current, "cause", None), current.__cause__, *getattr(current, "worker_failures", {}).values()]
        chain += [e for e in inner if isinstance(e, BaseException) and e not in chain]
    return None


def summary(error: BaseException) -> str:
    """Return the kind and the first line of what failed inside an exception of Ray."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    lines = text.strip().splitlines()  # after the first: Ray Data's advice
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


@contextlib.contextmanager
def user_errors(failed: str | None = None) -> Iterator[None]:
    """Raise the user's error inside what Ray raises in the body.

    With `failed`, what work it was, any other exception of Ray is raised as a TwilbertError of one line.
    """
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        user = user_error(error)
        if user is not None:
            raise user from error
        if failed is None:
            raise
        raise TwilbertError(f"{failed} failed ({summary(error)})") from error
