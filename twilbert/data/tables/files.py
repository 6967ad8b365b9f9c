"""Input files: which ones files, folders, globs, URIs and pipes name, and their bytes (plain, gzip or zstd)."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from twilbert import cli, storage
from twilbert.errors import UsageError

STANDARD_INPUT = "-"
FORMATS = ("text", "tsv", "csv", "jsonl", "parquet", "xlsx", "xml")
_SUFFIXES = {"txt": "text", "tab": "tsv", "json": "jsonl", "ndjson": "jsonl"} | {name: name for name in FORMATS[1:]}
_PACKED_SUFFIXES = (".gz", ".zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PAR1": "parquet", b"PK\x03\x04": "xlsx"}
_UNREADABLE = {
    b"BZh": "bzip2", b"\xfd7zXZ": "xz",
    b"\xd0\xcf\x11\xe0": "an Excel workbook of before 2007 (.xls), or a locked one",
}  # fmt: skip
REMEDY = "unpack it, or save it as CSV, JSON lines or Parquet, plain or packed with gzip or zstd"
_COPIED_BYTES = 2**20
_SHOWN = 10  # skipped files of a folder that are named


class Source(NamedTuple):
    """An input file: where it can be read again and again, and what messages call it."""

    path: str
    name: str


@contextlib.contextmanager
def sources(inputs: Sequence[str], more_suffixes: tuple[str, ...] = ()) -> Iterator[list[Source]]:
    """Yield the files that files, folders, globs, URIs, pipes and "-" (standard input) name, in a fixed order.

    A pipe can be read once only: it is copied to a temporary file, which lives as long as the context. UsageError for
    an input that names no file. What a folder holds and is not read is printed with the reason. `more_suffixes`: of
    files that are read from folders too.
    """
    with contextlib.ExitStack() as stack:
        listed: list[Source] = []
        for name in inputs:
            if _is_pipe(name):
                listed.append(_copied(name, stack))
            else:
                listed += [Source(path, path) for path in _named(name, more_suffixes)]
        yield list(dict.fromkeys(listed))


def _is_pipe(name: str) -> bool:
    """Whether an input is no file or folder that other processes can open: standard input, a FIFO, `<(…)`."""
    if name == STANDARD_INPUT:
        return True
    if not storage.is_local(name):
        return False
    path = Path(storage.absolute(name))
    return path.exists() and (
        not (path.is_file() or path.is_dir()) or str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/"))
    )


def _copied(name: str, stack: contextlib.ExitStack) -> Source:
    copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="twilbert-input-"))  # noqa: SIM115 (closed by stack)
    shown = "standard input" if name == STANDARD_INPUT else name
    try:
        if name == STANDARD_INPUT:
            _copy(sys.stdin.buffer, copy)
        else:
            with Path(storage.absolute(name)).open("rb") as pipe:
                _copy(pipe, copy)
        copy.flush()
    except OSError as error:
        raise UsageError(f"{shown}: cannot be read ({error.strerror}); give a file, folder or pipe") from error
    return Source(copy.name, shown)


def _copy(pipe: IO[bytes], copy: IO[bytes]) -> None:
    while data := pipe.read(_COPIED_BYTES):
        with storage.explained_write(tempfile.gettempdir()):
            copy.write(data)


def _named(name: str, more_suffixes: tuple[str, ...]) -> list[str]:
    """Paths of the files that one input names; UsageError when there are none."""
    try:
        path = storage.absolute(name)
        path.encode()
        if storage.is_folder(path):
            return _in_folder(path, more_suffixes)
        if storage.exists(path):
            return [path]
        if any(mark in name for mark in "*?[") and storage.is_local(path):
            matches = glob.glob(path, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute patterns)
            files = sorted(match for match in matches if not storage.is_folder(match))
            if not files:
                raise UsageError(f"{name}: no file matches")
            return files
    except UnicodeError as error:
        raise UsageError(
            f"{os.fsencode(name).decode(errors='replace')}: is, or holds, a file name that is not UTF-8; rename it"
        ) from error
    raise UsageError(f"{name}: no such file or folder")


def _in_folder(path: str, more_suffixes: tuple[str, ...]) -> list[str]:
    """Files of known formats under a folder; hidden ones and those that start with _ (_SUCCESS) are no data."""
    system, inner = storage.filesystem(path)
    names, skipped = [], []
    for info in sorted(system.get_file_info(fs.FileSelector(inner, recursive=True)), key=lambda info: info.path):
        below = info.path[len(inner) :].strip("/")
        if info.type == fs.FileType.Directory or any(part.startswith((".", "_")) for part in below.split("/")):
            continue
        is_table = format_of(below) not in (None, "xml") or below.lower().endswith(more_suffixes)
        if info.type == fs.FileType.File and is_table:
            names.append(below)
        else:
            skipped.append(f"{below} ({_why_skipped(below, info)})")
    if skipped:
        more = f" and {len(skipped) - _SHOWN:,} more" if len(skipped) > _SHOWN else ""
        cli.say(f"{path}: not read: {', '.join(skipped[:_SHOWN])}{more}; name a file to have it read")
    if not names:
        raise UsageError(f"{path}: no .tsv, .csv, .json, .jsonl, .txt, .parquet or .xlsx file in this folder")
    return [storage.join(path, name) for name in names]


def _why_skipped(name: str, info: fs.FileInfo) -> str:
    suffix = name.rpartition("/")[2].rpartition(".")[1:]
    if info.type != fs.FileType.File:
        return "no regular file"
    return f"unknown format {''.join(suffix).lower()}" if suffix[0] else "a name without a format"


def format_of(path: str) -> str | None:
    """The format (one of FORMATS) that a file's name stands for, whatever its case."""
    name = path.rpartition("/")[2].lower()
    for packed in _PACKED_SUFFIXES:
        name = name.removesuffix(packed)
    stem, dot, suffix = name.rpartition(".")
    return _SUFFIXES.get(suffix) if dot and stem else None


def packing_of(source: Source) -> str | None:
    """What a file's first bytes say: gzip, zstd, parquet or xlsx (any zip archive), None: none of these; UsageError for
    what is not read.
    """
    with open_stream(source.path, None) as stream:
        start = stream.read(8)
    for magic, kind in _UNREADABLE.items():
        if start.startswith(magic):
            raise UsageError(f"{source.name}: {kind}, which is not read; {REMEDY}")
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)


def open_stream(path: str, compression: str | None, start: int = 0) -> BinaryIO:
    """A stream of a file's unpacked bytes from `start` on; a truncated one raises OSError while it is read."""
    system, inner = storage.filesystem(path)
    stream = system.open_input_file(inner) if start else system.open_input_stream(inner, compression=None)
    if start:
        stream.seek(start)
    # Arrow's streams are file objects in all that is used here.
    return cast(BinaryIO, pa.CompressedInputStream(stream, compression) if compression else stream)


def open_parquet(path: str) -> pq.ParquetFile:
    """A Parquet file of any storage; where its pages have checksums, they are compared as they are read."""
    system, inner = storage.filesystem(path)
    return pq.ParquetFile(inner, filesystem=system, page_checksum_verification=True)
