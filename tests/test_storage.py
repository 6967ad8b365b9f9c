"""Storage: files and folders appear whole or not at all; faults of the disk are one message."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from twilbert import storage
from twilbert.errors import TwilbertError, UsageError


def test_a_file_written_bit_by_bit_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "lines.jsonl"
    with storage.new_file(str(path)) as out:
        out.write(b"one\n")
        assert not path.exists()
        out.write(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    with pytest.raises(RuntimeError), storage.new_file(str(path)) as out:
        out.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"one\ntwo\n"
    assert storage.list_dir(str(tmp_path / "a")) == ["lines.jsonl"]


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "cannot be written")])
def test_faults_of_the_disk_are_one_message(number, words):
    with pytest.raises(TwilbertError, match=words), storage.explained_write("/data/x"):
        raise OSError(number, os.strerror(number))


def test_unknown_schemes_are_refused():
    with pytest.raises(UsageError, match="not a path or URI"):
        storage.filesystem("foo://bar/x")


def test_paths():
    assert storage.absolute("file:///a/b/") == "/a/b"
    assert storage.absolute("s3://bucket/x/") == "s3://bucket/x"
    assert storage.absolute("x") == str(Path.cwd() / "x")
    assert storage.join("s3://b/", "c", "d") == "s3://b/c/d"


def test_the_write_probe_leaves_nothing_behind(tmp_path):
    storage.probe_write(str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []
