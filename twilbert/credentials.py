"""Credentials in environment variables and addresses, which must never reach a file or a log."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

# Variables that Ray may log; all others are passed to workers as secrets, whatever their names.
_PLAIN = {
    "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION",
    "DS_ACCELERATOR", "HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_MODE",
    "WANDB_PROJECT",
}  # fmt: skip
TUNING = ("NCCL_", "TORCH_NCCL_", "GLOO_", "FI_", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Settings of networks and allocators, none of which holds a secret; needed before a process group exists."""
_TUNING_VALUE = re.compile(r"[\w./:=,^-]{0,200}")
_PLAIN_VALUE = re.compile(r"(https?://)?[\w./:-]{0,200}")
_LONG_WORD = re.compile(r"\w{24,}")  # a key in the wrong variable
_PASSWORD = re.compile(
    r"://[^\s@/:]*:[^\s@]+@|[?&][\w-]*(secret|token|password|signature|sig|key)[\w-]*=", re.IGNORECASE
)
IN_ADDRESS = (
    "an address with a password in it is refused: it would be written into files; leave it out and set the "
    "environment, e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)


def is_plain(name: str, value: str) -> bool:
    """Whether a variable is a setting without any secret."""
    if name.startswith(TUNING):
        return _TUNING_VALUE.fullmatch(value) is not None
    return name in _PLAIN and _PLAIN_VALUE.fullmatch(value) is not None and not _LONG_WORD.search(value)


def in_address(text: str) -> bool:
    """Whether `text` is a URI with a password, a key or a signature in it."""
    return "://" in text and _PASSWORD.search(text) is not None


@contextlib.contextmanager
def hidden_from_ray_tune() -> Iterator[None]:
    """Hide AWS keys during the body from Ray Tune, which copies them to a runtime environment, which Ray logs.

    They stay in the C environment of the process, which Arrow's object stores and child processes read.
    """
    names = [name for name, value in os.environ.items() if name.startswith("AWS_") and not is_plain(name, value)]
    hidden = {name: os.environ.pop(name) for name in names}
    for name, value in hidden.items():
        os.putenv(name, value)  # not visible in os.environ
    try:
        yield
    finally:
        os.environ.update(hidden)
