"""The two errors that a user meets: everything else that escapes a command is a defect of the program."""

from __future__ import annotations


class TwilbertError(Exception):
    """Work that failed for a reason the user can act on: the message names the thing, what was expected, the remedy."""

    exit_code = 1


class UsageError(TwilbertError):
    """Wrong flags, a wrong recipe or input known to be bad before any work began."""

    exit_code = 2


class Interrupted(TwilbertError):
    """Ended by the user, with everything saved."""

    exit_code = 130


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust panicked: its error is no Exception, and its class has no public name."""
    return type(error).__name__ == "PanicException"
