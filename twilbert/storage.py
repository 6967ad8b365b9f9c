"""Files and folders by path or URI (local, s3://, gs://), written whole or not at all.

Local writes go to a temporary sibling that is flushed to disk and renamed. Object stores have no rename but write an
object whole or not at all, so there a single file is written directly, and a folder is complete when it has the file
that lists its contents (corpus.json, encoded.json, manifest.json), always written last. outputs.py decides what a
command may replace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pyarrow import fs

from twilbert import credentials
from twilbert.errors import Interrupted, TwilbertError, UsageError

_CHUNK = 8 * 2**20  # bytes read at a time when hashing
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:4]  # locks show this machine's processes alone
_TEMPORARY = re.compile(rf"\.(.+)\.{_HOST}[0-9a-f]{{8}}\.(?:tmp|old)", re.DOTALL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux' renameat2
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EBUSY, errno.EFBIG}
_UNWRITABLE |= {errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.EEXIST}  # another command was faster


def is_uri(path: str) -> bool:
    """Whether `path` is a URI (s3://bucket/x) rather than a local path."""
    return "://" in path


def is_local(path: str) -> bool:
    """Whether `path` is in a local or mounted file system."""
    return not is_uri(path) or path.startswith("file://")


def absolute(path: str | os.PathLike[str]) -> str:
    """Return `path` as an absolute local path, or the URI unchanged; `file://` becomes a plain path.

    UsageError for a URI that contains a password.
    """
    text = os.fspath(path)
    if credentials.in_address(text):
        raise UsageError(credentials.IN_ADDRESS)
    if text.startswith("file://"):
        text = text[len("file://") :]
    return text.rstrip("/") if is_uri(text) else str(Path(text).expanduser().absolute())


def join(base: str, *parts: str) -> str:
    """Return `base` and `parts` joined by slashes."""
    return "/".join([base.rstrip("/"), *parts])


def filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """Return the pyarrow file system of `path` and the path inside it; UsageError for an unknown scheme."""
    if is_local(path):
        return fs.LocalFileSystem(), absolute(path)
    path = absolute(path)
    try:
        return fs.FileSystem.from_uri(path)
    except (ValueError, OSError) as error:
        raise UsageError(
            f"{path}: not a path or URI that can be opened ({error}); use a folder, s3:// or gs://"
        ) from error


def _info(path: str) -> fs.FileInfo:
    system, inner = filesystem(path)
    return system.get_file_info(inner)


def exists(path: str) -> bool:
    """Whether there is a file or folder at `path`."""
    return _info(path).type != fs.FileType.NotFound


def is_folder(path: str) -> bool:
    """Whether `path` is a folder (on an object store: a prefix of some object)."""
    return _info(path).type == fs.FileType.Directory


def is_file(path: str) -> bool:
    """Whether `path` is a file, not a folder, pipe or device."""
    return _info(path).type == fs.FileType.File


def size(path: str) -> int:
    """Return the size of a file in bytes; FileNotFoundError when there is none."""
    info = _info(path)
    if info.type != fs.FileType.File:
        raise FileNotFoundError(path)
    return info.size


def modified(path: str) -> float:
    """Return when a file was last written, in seconds since 1970; FileNotFoundError when there is none."""
    info = _info(path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(path)
    return (info.mtime_ns or 0) / 1e9


def list_dir(path: str) -> list[str]:
    """Return the sorted names in a folder; none when there is no folder."""
    system, inner = filesystem(path)
    return sorted(info.base_name for info in system.get_file_info(fs.FileSelector(inner, allow_not_found=True)))


def make_dir(path: str) -> None:
    """Create a folder and its parents."""
    system, inner = filesystem(path)
    with explained_write(path):
        system.create_dir(inner, recursive=True)


def delete(path: str) -> None:
    """Remove a file, or a folder with its contents; do nothing when there is none."""
    system, inner = filesystem(path)
    kind = system.get_file_info(inner).type
    if kind == fs.FileType.Directory:
        system.delete_dir(inner)
    elif kind != fs.FileType.NotFound:
        system.delete_file(inner)


def read_bytes(path: str) -> bytes:
    """Return a file's bytes; FileNotFoundError when there is none."""
    system, inner = filesystem(path)
    with system.open_input_stream(inner) as stream:
        return stream.read()


def sha256_file(path: str) -> str:
    """Return the hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    system, inner = filesystem(path)
    with system.open_input_stream(inner) as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def explained_write(path: str) -> Iterator[None]:
    """Turn errors of writing to `path` (full disk, no permission, read-only) into a TwilbertError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise TwilbertError(f"{path}: no space left to write; free some, or choose another folder") from error
        if error.errno in _UNWRITABLE:
            raise TwilbertError(
                f"{path}: cannot be written ({os.strerror(error.errno)}); choose another folder"
            ) from error
        raise


def sync_file(path: str) -> None:
    """Force a local file's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a new hidden file or folder beside `target`, to be renamed to it; at the end, the hidden name is removed.

    A process holds a lock on what it writes, which ends with the process: this distinguishes leftovers of killed
    processes for the same target, which are removed first, from the work of others.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    while True:
        path = target.with_name(f".{target.name}.{_HOST}{uuid.uuid4().hex[:8]}.tmp")
        path.mkdir() if folder else path.touch(exist_ok=False)
        lock = _lock(path, wait=True)
        if path.exists():
            break
        _unlock(lock)  # another command removed it as a leftover before it was locked
    try:
        yield path
    finally:
        _remove(path)
        _unlock(lock)


def remove_leftovers(target: Path) -> None:
    """Remove leftovers of killed processes beside `target`; an old folder without a new one is renamed back."""
    for path in list(target.parent.iterdir()):
        name, depth = path.name, 0
        while match := _TEMPORARY.fullmatch(name):  # a temporary folder may itself be a target
            name, depth = match[1], depth + 1
        if not depth or name != target.name or (lock := _lock(path, wait=False)) is None:
            continue
        if path.suffix == ".old" and depth == 1 and not target.exists():
            path.rename(target)
        else:
            _remove(path)
        _unlock(lock)


def is_temporary(name: str) -> bool:
    """Whether a file or folder has the name of a temporary one."""
    return _TEMPORARY.fullmatch(name) is not None


def replace_folder(new: Path, target: Path) -> None:
    """Give the folder `new` the name `target`, which names one of them at any time; the old one may remain at `new`."""
    if not target.exists() or not any(target.iterdir()):
        new.rename(target)  # replaces an empty folder too
        return
    libc = ctypes.CDLL(None, use_errno=True)
    exchange = getattr(libc, "renameat2", None)  # glibc and musl on Linux
    if exchange is not None and exchange(_AT_FDCWD, bytes(new), _AT_FDCWD, bytes(target), _RENAME_EXCHANGE) == 0:
        return
    retired = new.with_suffix(
        ".old"
    )  # file systems that cannot exchange: after a kill in between, remove_leftovers repairs
    lock = _lock(target, wait=False)
    try:
        target.rename(retired)
        new.rename(target)
    except BaseException:
        if not target.exists():
            retired.rename(target)
        raise
    finally:
        _unlock(lock)
    _remove(retired)


def _lock(path: Path, *, wait: bool) -> int | None:
    """Return a descriptor that holds the lock on a file or folder; None where it cannot be locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # remaining files are leftovers for the next command
    else:
        path.unlink(missing_ok=True)


def write_bytes_atomic(path: str, data: bytes) -> None:
    """Write a file whole or not at all, creating parents."""
    if is_local(path):
        with new_file(path) as out:
            out.write(data)
        return
    system, inner = filesystem(path)
    with explained_write(path), system.open_output_stream(inner) as stream:
        stream.write(data)


def write_json_atomic(path: str, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_bytes_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def new_file(path: str) -> Iterator[IO[bytes]]:
    """Yield a stream to a file that appears whole or not at all, creating parents.

    After an error an old file is untouched and nothing new is left.
    """
    with explained_write(path):
        if not is_local(path):
            with tempfile.TemporaryFile() as stream:  # an object store would store a part after an error
                yield stream
                stream.seek(0)
                system, inner = filesystem(path)
                with system.open_output_stream(inner) as out:
                    shutil.copyfileobj(stream, out, _CHUNK)
            return
        target = Path(absolute(path))
        with temporary(target) as work:
            with work.open("w+b") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            work.replace(target)
            sync_file(str(target.parent))


def probe_write(path: str) -> None:
    """Check that a small file can be written to folder `path` and read back; TwilbertError when not."""
    token = uuid.uuid4().hex
    probe = join(path, f".probe-{token}")
    make_dir(path)
    try:
        write_bytes_atomic(probe, token.encode())
        if read_bytes(probe) != token.encode():
            raise TwilbertError(f"{path}: a file written there does not read back the same; choose another storage")
    finally:
        delete(probe)


@contextlib.contextmanager
def undone_if_interrupted(path: str, stays: Callable[[], bool]) -> Iterator[None]:
    """Remove a folder that the body created where it is interrupted, unless `stays()` is true by then."""
    is_new = not exists(path)
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        if is_new and exists(path) and not stays():
            delete(path)
        raise
