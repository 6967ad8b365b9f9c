"""SHA-256 sums of data files, compared before their use: those that an index lists, and a JSON file's own."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from twilbert import cli, storage
from twilbert.errors import TwilbertError, UsageError
from twilbert.parsing import REMEDY, check_record, read_record

_Shape = TypeVar("_Shape")

_OWN = "sha256"  # the entry of a JSON file that is the sum of all others
_THREADS = min(16, 2 * (os.cpu_count() or 1))  # more than CPUs: storages answer late
_REPORT_S = 30.0


class Listed(NamedTuple):
    """A file with its expected sum, and the remedy for a user whose file has another."""

    path: str
    sha256: str
    remedy: str


def check_file(listed: Listed) -> int:
    """Read a file, compare its sum and return its size in bytes; TwilbertError naming it where it differs."""
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
    """Compare the sums of files, several at a time, and print the speed; TwilbertError for the first that differs."""
    began = last_line = time.monotonic()
    total = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, size in enumerate(pool.map(check_file, files), start=1):  # a fault cancels what has not begun
            total += size
            if time.monotonic() - last_line > _REPORT_S:
                last_line = time.monotonic()
                cli.say(f"compared the SHA-256 of {number} of {len(files)} shards")
    seconds = max(time.monotonic() - began, 1e-9)
    rate = f"{total:,} bytes in {seconds:.1f} s, {total / seconds:,.0f} a second"
    cli.say(f"compared the SHA-256 of {len(files)} shards: {rate}")


def write_json(path: str, value: dict[str, Any]) -> None:
    """Write `value` as JSON with the sum of its entries beside them, whole or not at all."""
    storage.write_json_atomic(path, value | {_OWN: _sum(value)})


def read_json(path: str, shape: type[_Shape], remedy: str = REMEDY) -> _Shape:
    """Return the value of `write_json`, as `shape`; a file of an older version may lack its own sum.

    FileNotFoundError when it is missing; TwilbertError, naming it, when it is damaged or was edited.
    """
    if not storage.exists(path):
        raise FileNotFoundError(path)
    value: Any = read_record(path, object, remedy)
    if isinstance(value, dict) and (own := value.pop(_OWN, None)) is not None and own != _sum(value):
        raise TwilbertError(f"{path}: damaged or edited: its entries do not give its own SHA-256; {remedy}")
    return check_record(json.dumps(value), shape, path, remedy)


def read_index(path: str, shape: type[_Shape], version: int, remedy: str) -> _Shape:
    """Return the index of a data folder as `shape`; UsageError for one of another format, else as `read_json`."""
    value = read_json(path, dict[str, Any], remedy)
    if value.get("format") != version:
        raise UsageError(f"{path}: format {value.get('format')!r}, this version reads {version}; {remedy}")
    return check_record(json.dumps(value), shape, path, remedy)


def _sum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
