"""The errors that commands report as one message; any other exception that escapes is a defect of the program.

A TwilbertError is work that failed; its two subclasses say that it was asked for wrongly, or ended by the user.
"""

from __future__ import annotations


class TwilbertError(Exception):
    """Work that failed for a reason the user can act on: the message names the thing, what was expected, the remedy."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message  # Ray Data appends advice to the `args` of exceptions that pass through it

    def __str__(self) -> str:
        return self.message


class UsageError(TwilbertError):
    """Wrong flags, a wrong recipe or input known to be bad before any work began."""

    exit_code = 2


class Interrupted(TwilbertError):
    """Work that the user ended, with everything saved."""

    exit_code = 130


def is_panic(error: BaseException) -> bool:
    """Return whether a library written in Rust panicked: no Exception, and of a class without a public name."""
    return type(error).__name__ == "PanicException"
