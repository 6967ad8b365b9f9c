"""What may hold a credential: variables that are handed on, and addresses. None is ever written down."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

# Settings that Ray may write to its logs; whatever else is handed on travels as a secret, without a guess at its name.
_PLAIN = {
    "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION",
    "DS_ACCELERATOR", "HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_MODE",
    "WANDB_PROJECT",
}  # fmt: skip
_PLAIN_VALUE = re.compile(r"(https?://)?[\w./:-]{0,200}")
_LONG_WORD = re.compile(r"\w{24,}")  # a key that was put into the wrong variable
_PASSWORD = re.compile(
    r"://[^\s@/:]*:[^\s@]+@|[?&][\w-]*(secret|token|password|signature|sig|key)[\w-]*=", re.IGNORECASE
)
IN_ADDRESS = (
    "an address with a password in it is refused: it would be written into files; leave it out and set the "
    "environment, e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)


def is_plain(name: str, value: str) -> bool:
    """Whether a variable is a setting that anybody may read."""
    return name in _PLAIN and _PLAIN_VALUE.fullmatch(value) is not None and not _LONG_WORD.search(value)


def in_address(text: str) -> bool:
    """Whether `text` is a URI with a password, a key or a signature in it."""
    return "://" in text and _PASSWORD.search(text) is not None


@contextlib.contextmanager
def unseen_by_ray_tune() -> Iterator[None]:
    """Around a search: Ray Tune would copy the AWS keys of `os.environ` into a runtime environment, which Ray logs.

    They stay in the process's own environment, where Arrow's object stores and what it starts look for them.
    """
    names = [name for name, value in os.environ.items() if name.startswith("AWS_") and not is_plain(name, value)]
    hidden = {name: os.environ.pop(name) for name in names}
    for name, value in hidden.items():
        os.putenv(name, value)  # which os.environ does not show
    try:
        yield
    finally:
        os.environ.update(hidden)
