"""SHA-256 sums of what this program wrote, compared before it is used: a shard's listed one, a JSON file's own."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from twilbert import cli, storage
from twilbert.errors import TwilbertError
from twilbert.parsing import REMEDY, check_record, read_record

_Shape = TypeVar("_Shape")

_OWN = "sha256"  # the entry of a JSON file that is the sum of all others
_THREADS_A_CPU, _MOST_THREADS = 2, 16  # a file system answers late, an object store later
_SAY_S = 30.0


class Listed(NamedTuple):
    """A file as some list names it: its sum, and what the user can do where the file has another."""

    path: str
    sha256: str
    remedy: str


def check_file(listed: Listed) -> int:
    """Read the file and compare its sum; its size in bytes. TwilbertError naming it when it is missing or differs."""
    try:
        digest = storage.sha256_file(listed.path)
        if digest == listed.sha256:
            return storage.size(listed.path)
        fault = "damaged or replaced: its SHA-256 is not the one that was written down when it was made"
    except FileNotFoundError:
        fault = "missing"
    except OSError as error:
        fault = f"cannot be read ({error})"
    raise TwilbertError(f"{listed.path}: {fault}; {listed.remedy}")


def check_files(files: Sequence[Listed]) -> None:
    """Compare the sums of many files, several at a time, and say how fast; TwilbertError for the first that differs."""
    began = last_line = time.monotonic()
    threads = min(_MOST_THREADS, _THREADS_A_CPU * (os.cpu_count() or 1))
    total = 0
    with ThreadPoolExecutor(threads) as pool:
        for number, size in enumerate(pool.map(check_file, files), start=1):  # a fault cancels what has not begun
            total += size
            if time.monotonic() - last_line > _SAY_S:
                last_line = time.monotonic()
                cli.say(f"compared the SHA-256 of {number} of {len(files)} shards")
    seconds = time.monotonic() - began
    rate = total / max(seconds, 1e-9)
    cli.say(f"compared the SHA-256 of {len(files)} shards: {total:,} bytes in {seconds:.1f} s, {rate:,.0f} a second")


def write_json(path: str, value: dict[str, Any]) -> None:
    """Write `value` as JSON with the sum of its entries beside them, whole or not at all."""
    storage.write_json_atomic(path, value | {_OWN: _sum(value)})


def read_json(path: str, shape: type[_Shape], remedy: str = REMEDY) -> _Shape:
    """What `write_json` wrote, as `shape`; or a file of before it did, which has no sum to compare.

    FileNotFoundError when it is not there; TwilbertError, naming it, when it is damaged or was edited.
    """
    if not storage.exists(path):
        raise FileNotFoundError(path)
    value: Any = read_record(path, object, remedy)
    if isinstance(value, dict) and (own := value.pop(_OWN, None)) is not None and own != _sum(value):
        raise TwilbertError(f"{path}: damaged or edited: its entries do not give its own SHA-256; {remedy}")
    return check_record(json.dumps(value), shape, path, remedy)


def _sum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
