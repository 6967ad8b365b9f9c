"""Lines of a text file, plain or gzip or zstd, a few thousand at a time: memory does not grow with the file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice

from twilbert import storage
from twilbert.data.tables import files
from twilbert.errors import TwilbertError, UsageError

_LINES = 4096
_OF_PAIRS = (".tsv", ".csv", ".jsonl", ".ndjson", ".parquet")
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def holds_pairs(path: str) -> bool:
    """Whether a path is a folder, or by its name a file of records rather than of lines."""
    name = path.lower().removesuffix(".gz").removesuffix(".zst")
    return storage.is_folder(path) or name.endswith(_OF_PAIRS)


def text_lines(path: str) -> Iterator[list[str]]:
    """Lists of lines without their ends; UsageError when there is no such file, TwilbertError when it is no UTF-8."""
    if not storage.exists(path):
        raise UsageError(f"{path}: no such file")
    read = 0
    try:
        with files.open_stream(path, None) as stream:
            magic = stream.read(4)
        packed = next((name for start, name in _PACKED.items() if magic.startswith(start)), None)
        with files.open_stream(path, packed) as stream:
            lines = io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8-sig", newline="\n")  # pyright: ignore[reportArgumentType]
            while part := [line.rstrip("\r\n") for line in islice(lines, _LINES)]:
                read += len(part)
                yield part
    except UnicodeDecodeError as error:
        raise TwilbertError(f"{path}: not UTF-8 after line {read} ({error}); store it as UTF-8") from error
    except OSError as error:
        raise TwilbertError(
            f"{path}: cannot be read after line {read} ({error}); it is damaged, or no file but a pipe"
        ) from error
