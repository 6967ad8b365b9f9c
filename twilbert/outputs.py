"""Outputs: a command replaces only what the same command wrote, and never what it reads.

A folder holds a record, .twilbert.json (RECORD): its files by the command that wrote them. With --overwrite a folder
is replaced where the record lists all it holds. A stranger's file in it, another command's folder, an input, a folder
that holds an input or the working directory are refused, whatever flags are given. The new folder is complete before it
changes places with the old one.

A single file is replaced with --overwrite; without it only where the same command wrote it, which pages, JSON and
pictures show in their first bytes (`marks`). An input is never replaced.

A folder that a long command fills (a run, a fine-tuning, a sweep) is claimed by it (`Claim`): the same command resumes
it, one with other settings or data is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from twilbert import cli, storage
from twilbert.errors import TwilbertError, UsageError
from twilbert.parsing import dump_yaml, read_record, read_yaml

RECORD = ".twilbert.json"
_SHOWN = 3  # strangers' files that a refusal names
_SHOWN_CHANGES = 8
_HEAD = 4096  # bytes of a file in which its mark stands


@contextlib.contextmanager
def new_folder(
    path: str,
    by: str,
    *,
    overwrite: bool = False,
    inputs: Iterable[str] = (),
    before: Collection[str] = (),
    keep: bool = False,
) -> Iterator[str]:
    """Yield where to write a folder, which gets its name, whole, on a clean exit.

    `by`: the command that writes. `inputs`: files and folders that it reads. `before`: for folders without a record,
    the files that version 0.2 of the command wrote, one that is always there first. With `keep`, strangers' files are
    not refused but moved to the new folder, unless it has a file of the same name. On an object store the place to
    write is `path` itself. UsageError where there is something that may not be replaced, checked before and after the
    work; after any fault the old folder is untouched.
    """
    path, inputs = storage.absolute(path), list(inputs)
    check_folder(path, by, overwrite=overwrite, inputs=inputs, before=before, keep=keep)
    if not storage.is_local(path):
        yield path
        _write_record(path, by)
        return
    target = Path(os.path.realpath(path))
    with storage.explained_write(path), storage.temporary(target, folder=True) as work:
        yield str(work)
        strangers = check_folder(path, by, overwrite=overwrite, inputs=inputs, before=before, keep=keep)
        _write_record(str(work), by)
        for name in strangers:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                (work / name).mkdir(exist_ok=True)
            elif not os.path.lexists(work / name):
                shutil.copy2(target / name, work / name, follow_symlinks=False)
        storage.replace_folder(work, target)
        storage.sync_file(str(target.parent))


def check_folder(
    path: str,
    by: str,
    *,
    overwrite: bool = False,
    inputs: Iterable[str] = (),
    before: Collection[str] = (),
    keep: bool = False,
) -> list[str]:
    """UsageError where `new_folder` refuses; return the strangers' files there."""
    if not storage.exists(path):
        return []
    if not storage.is_folder(path):
        raise UsageError(f"{path}: a file; choose another folder")
    if not keep and storage.is_local(path) and _holds(path, "."):
        raise UsageError(f"{path}: holds the working directory; choose another folder")
    refuse_inputs(path, inputs)
    strangers = strangers_in(path, by, before)
    if strangers and not keep:
        raise UsageError(
            f"{path}: already holds something that twilbert-{by} did not write ({shown(strangers)}); choose another "
            "folder, or move that away"
        )
    if not overwrite and _names_in(path):
        raise UsageError(f"{path}: already holds something; choose another folder, or --overwrite it")
    return strangers


def refuse_inputs(path: str, inputs: Iterable[str]) -> None:
    """UsageError where the folder `path` is one of `inputs`, or holds one."""
    for given in inputs:
        if _holds(path, given):
            raise UsageError(
                f"{path}: holds {storage.absolute(given)}, which this command reads; choose another folder"
            )


def strangers_in(path: str, by: str, before: Collection[str] = ()) -> list[str]:
    """Return the files (and empty folders, with a slash) in a folder that its record does not list under `by`."""
    names = _names_in(path)
    ours = set(recorded(path).get(by, ()))
    if RECORD not in names and before and next(iter(before)) in names:
        ours = set(before)
    return [name for name in names if name not in ours and name != RECORD]


def recorded(path: str) -> dict[str, list[str]]:
    """Return a folder's record, command → its files; empty where there is no readable one."""
    file = storage.join(path, RECORD)
    if not storage.exists(file):
        return {}
    try:
        return read_record(file, dict[str, list[str]])
    except TwilbertError:
        return {}  # all that is there counts as strangers'


def _write_record(path: str, by: str) -> None:
    names = [name for name in _names_in(path) if name != RECORD]
    storage.write_json_atomic(storage.join(path, RECORD), {by: names})


def add_to_record(path: str, by: str, names: Collection[str]) -> None:
    """List files that `by` has added to a folder in its record, where it has one."""
    if record := recorded(path):
        record[by] = sorted({*record.get(by, ()), *names})
        storage.write_json_atomic(storage.join(path, RECORD), record)


def _names_in(path: str) -> list[str]:
    """Return every file under a folder, and every empty folder (with a slash), by its path in it.

    Links are not followed. Temporary files, of commands that are running or were killed, are left out.
    """
    if not storage.is_local(path):
        system, inner = storage.filesystem(path)
        infos = system.get_file_info(fs.FileSelector(inner, recursive=True))
        return sorted(one.path[len(inner) :].strip("/") for one in infos if one.type == fs.FileType.File)
    names, root = [], Path(storage.absolute(path))
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = [name for name in folders if not storage.is_temporary(name)]
        files = [name for name in files if not storage.is_temporary(name)]
        links = [name for name in folders if (here / name).is_symlink()]
        names += [str((here / name).relative_to(root)) for name in [*files, *links]]
        if not folders and not files and here != root:
            names.append(f"{here.relative_to(root)}/")
    return sorted(names)


def _holds(folder: str, path: str) -> bool:
    """Return whether `path` is `folder` or lies in it, through links and dots too."""
    folder, path = storage.absolute(folder), storage.absolute(path)
    if storage.is_uri(folder) or storage.is_uri(path):
        return f"{os.path.normpath(path)}/".startswith(f"{os.path.normpath(folder)}/")
    here, real = Path(folder).stat(), Path(os.path.realpath(path))
    return any(one.exists() and os.path.samestat(here, one.stat()) for one in (real, *real.parents))


def shown(names: Sequence[str]) -> str:
    """Return the first of many names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


# ---- folders that a command claims and resumes ---------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """The claim of a command on the folder that it fills: new, or begun by the same command with the same identity."""

    path: str
    kind: str
    """What it fills the folder with, as messages name it: a run, a fine-tuning, a sweep."""
    identity: Mapping[str, Any]
    """What decides the results, as JSON: settings and fingerprints of the data, nested or by dotted keys."""
    remedy: str
    """What a user can do where the folder cannot be had."""

    def require_same(self, before: Mapping[str, Any]) -> None:
        """UsageError that lists the differences where the folder was begun with another identity."""
        lines = differences(before, self.identity)
        if len(lines) > _SHOWN_CHANGES:
            lines = [*lines[:_SHOWN_CHANGES], f"and {len(lines) - _SHOWN_CHANGES} more"]
        if lines:
            listed = "".join(f"  {line}\n" for line in lines)
            raise UsageError(f"{self.path}: holds {self.kind} with other settings or data:\n{listed}  {self.remedy}")

    def require_new(self) -> None:
        """UsageError where there is a file, or a folder with something in it."""
        self._require_folder()
        if names := [name for name in storage.list_dir(self.path) if not storage.is_temporary(name)]:
            what = f"already holds something that is not {self.kind} ({shown(names)})"
            raise UsageError(f"{self.path}: {what}; {self.remedy}")

    def record(self, name: str) -> dict[str, Any] | None:
        """Return the identity in the folder's file `name` (JSON, or YAML); None where it was not begun."""
        file = storage.join(self.path, name)
        if not storage.exists(file):
            return None
        before = read_yaml(file) if name.endswith(".yaml") else read_record(file, object)
        if not isinstance(before, dict):
            raise TwilbertError(f"{file}: not the settings of {self.kind}; the file is damaged: restore it")
        before.pop("twilbert", None)  # version 0.2 wrote its number; a later one resumes
        return before

    def begin(self, name: str) -> None:
        """Write the identity to the file `name` of a new folder, or resume; UsageError as above."""
        before = self.record(name)
        self.require_new() if before is None else self.require_same(before)
        storage.probe_write(self.path)
        if before is not None:
            return
        file, identity = storage.join(self.path, name), dict(self.identity)
        if name.endswith(".yaml"):
            storage.write_bytes_atomic(file, dump_yaml(identity).encode())
        else:
            storage.write_json_atomic(file, identity)

    @contextlib.contextmanager
    def held(self, has_results: Callable[[], bool], *, alone: bool = True) -> Iterator[None]:
        """Remove a folder that was new again where the body is interrupted before it `has_results`.

        With `alone`, UsageError where another command of this machine works in the folder (object stores, and mounts
        without locks, cannot say so). The lock ends with the process.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(storage.undone_if_interrupted(self.path, has_results))
            if alone and storage.is_local(self.path):
                self._require_folder()
                storage.make_dir(self.path)
                descriptor = os.open(storage.absolute(self.path), os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, descriptor)
                self._lock(descriptor)
            yield

    def _require_folder(self) -> None:
        if storage.exists(self.path) and not storage.is_folder(self.path):
            raise UsageError(f"{self.path}: a file; {self.remedy}")

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{self.path}: another command works there; let it end, or {self.remedy}") from error
        except OSError as error:
            cli.say(f"{self.path}: cannot be locked ({error.strerror}); start no second command there meanwhile")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return `dotted.key: was X, now Y` for every setting that differs; what is absent is the same as null."""
    lines = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += [f"{key}.{line}" for line in differences(old, new)]
        elif old != new:
            lines.append(f"{key}: was {_value(old)}, now {_value(new)}")
    return lines


def _value(value: Any) -> str:
    return "unset" if value is None else f"{value!s:.200}"


# ---- single files --------------------------------------------------------------------------------------------------


def marks(by: str) -> dict[bytes, bytes]:
    """Return the first bytes of HTML, JSON, PNG and SVG → the mark that follows them in a file of the command `by`."""
    return {
        b"<!doctype html>": f'<meta name="generator" content="twilbert-{by}">'.encode(),
        b"{": f'"written_by": "twilbert-{by}"'.encode(),
        b"\x89PNG": f"Software\0twilbert-{by}".encode(),
        b"<?xml": f"<dc:title>twilbert-{by}</dc:title>".encode(),
    }


def check_files(named: Mapping[str, str | None], by: str, *, overwrite: bool, inputs: Iterable[str]) -> None:
    """UsageError where a file may not be written; `named`: flag → path."""
    inputs = list(inputs)
    given = {flag: path for flag, path in named.items() if path is not None}
    flag_of: dict[str, str] = {}
    for flag, path in given.items():
        path = storage.absolute(path)
        same = os.path.normpath(path) if storage.is_uri(path) else os.path.realpath(path)
        if same in flag_of:
            raise UsageError(f"{flag} {path}: the file of {flag_of[same]} too; name two files")
        flag_of[same] = flag
        if storage.is_folder(path):
            raise UsageError(f"{flag} {path}: a folder; name a file")
        if not storage.exists(path):
            continue
        if storage.is_local(path) and not stat.S_ISREG(Path(path).stat().st_mode):
            raise UsageError(f"{flag} {path}: not a regular file; name another")
        own = _bears_mark(path, by)
        if any(_holds_file(one, path, own=own) for one in inputs):
            raise UsageError(f"{flag} {path}: this command reads it; name another file")
        if not own and not overwrite:
            raise UsageError(
                f"{flag} {path}: already there, and not known as a file of twilbert-{by}; name another, or give "
                "--overwrite to replace it"
            )


def _holds_file(given: str, path: str, *, own: bool) -> bool:
    """Return whether the file `path` is the input `given`, or lies in that folder and is not the command's `own`."""
    return storage.exists(given) and not (own and storage.is_folder(given)) and _holds(given, path)


def _bears_mark(path: str, by: str) -> bool:
    system, inner = storage.filesystem(path)
    with system.open_input_stream(inner) as stream:
        head = stream.read(_HEAD)
    return any(head.startswith(start) and mark in head for start, mark in marks(by).items())


def marked_json(value: Mapping[str, Any], by: str) -> bytes:
    """Return a JSON file with the command's mark."""
    return (json.dumps({"written_by": f"twilbert-{by}", **value}, indent=1) + "\n").encode()


def marked_page(html: str, by: str) -> bytes:
    """Return an HTML page with the command's mark."""
    return html.replace("<head>\n", f"<head>\n{marks(by)[b'<!doctype html>'].decode()}\n", 1).encode()
