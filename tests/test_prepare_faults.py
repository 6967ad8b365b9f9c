"""Raw pairs that cannot be prepared: one message, and nothing left behind; with Ray and without."""

from __future__ import annotations

import errno
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.raw_pairs import HEADER, ROWS, fails, make, rows_of, tsv
from twilbert import prepare as verb
from twilbert.errors import TwilbertError, UsageError
from twilbert.sample import sample_pairs


def test_wrong_input_is_one_message_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def file(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"orig_id": ["1"], "orig_text": ["uno dos tres"]}), whole)
    floats = tmp_path / "floats.parquet"
    pq.write_table(pa.table({"orig_id": [1.0], "orig_text": ["uno dos tres"]}), floats)
    other = file("other.tsv", b"parent\tchild\nhola a todos\tbuenas\n")
    cases = {
        (str(tmp_path / "missing.tsv"),): "missing.tsv: no such file or folder",
        (str(tmp_path / "*.nothing"),): "no file matches",
        (file("empty.tsv", b""),): "empty; expected lines of ORIG_ID",
        (file("blank.tsv", b"\n\n"),): "empty; expected lines of ORIG_ID",
        (file("header.tsv", HEADER.encode()),): "empty; expected lines of ORIG_ID",
        (other,): "columns found: 'parent', 'child'; expected ORIG_ID",
        (other, "--columns", "orig_text=madre"): "--columns orig_text=madre: no such column; columns found: 'parent'",
        (other, "--columns", "text=parent"): "--columns text=…: expected one of orig_id",
        (other, "--columns", "parent"): "--columns parent: expected e.g. orig_text=parent",
        (other, "--columns", "orig_text=parent", "reply_text=Parent"): "reply_text=Parent repeats one; name each",
        (other, "--columns", "orig_text=parent", "orig_text=child"): "orig_text=child repeats one; name each",
        (file("image.tsv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),): "image.tsv: a binary file",
        (file("cut.parquet", whole.read_bytes()[:-20]),): "cut.parquet: not a readable Parquet file",
        (str(floats),): "column 'orig_id' is double, expected text (floats have lost digits",
        (file("deep.jsonl", b"[" * 100_000 + b"\n"),): "no JSON object in its first lines",
        (file("list.jsonl", b"[1, 2]\n"),): "no JSON object in its first lines",
        (file("not.tsv.gz", b"\x1f\x8bnot gzip at all"),): "cannot be unpacked as gzip",
        (str(whole), "--valid-share", "1"): "--valid-share 1: expected a share from 0 to below 1",
    }
    for argv, message in cases.items():
        code, err = fails(capsys, tmp_path, *argv)
        assert (code, message in err) == (2, True), (argv, err)


def test_what_is_found_late_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packed = gzip.compress((HEADER + tsv(ROWS * 50_000)).encode())
    (tmp_path / "cut.tsv.gz").write_bytes(packed[: len(packed) * 3 // 4])
    with pytest.raises(TwilbertError, match=r"cut\.tsv\.gz: cannot be read to its end .*cut short or damaged"):
        make(tmp_path, tmp_path / "cut.tsv.gz")
    (tmp_path / "short.tsv").write_text("1\ta\t2\tb\n")
    with pytest.raises(TwilbertError, match="nothing to keep: of 1 lines read 0 were refused, dropped: 1 × too_short"):
        make(tmp_path, tmp_path / "short.tsv")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "good.tsv").write_text(tsv(ROWS))
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(TwilbertError, match="no space left"):
        make(tmp_path, tmp_path / "good.tsv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.tsv.gz", "good.tsv", "short.tsv"]


def test_a_corpus_is_replaced_only_when_asked(tmp_path: Path):
    raw = tmp_path / "raw.tsv"
    raw.write_text(tsv(ROWS[:1]))
    make(tmp_path, raw)
    raw.write_text(tsv(ROWS))
    with pytest.raises(UsageError, match="already holds something; choose another folder, or --overwrite"):
        make(tmp_path, raw)
    assert len(rows_of(tmp_path / "corpus", "train")) == 1
    make(tmp_path, raw, overwrite=True)
    assert len(rows_of(tmp_path / "corpus", "train")) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "raw.tsv"]


@pytest.mark.ray
def test_ray_makes_the_same_corpus_and_its_errors_are_messages(
    ray_local, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verb, "PARTITION_BYTES", 2**18)
    sample_pairs(str(tmp_path / "sample"), 4_000)
    raw = tmp_path / "sample" / "pairs.tsv"
    here, _ = make(tmp_path, raw, name="here", valid_share=0.1)
    there, _ = make(tmp_path, raw, name="there", valid_share=0.1, runner=None, piece_bytes=100_000)
    assert len(here["splits"]["train"]["shards"]) > 2
    assert there["splits"] == here["splits"]
    assert there["id"] == here["id"]
    assert verb.main([str(raw), "--out", str(tmp_path / "command"), "--valid-share", "0.1"]) == 0
    assert f"{sum(here['dropped'].values())} were dropped" in capsys.readouterr().out.splitlines()[-1]
    assert json.loads((tmp_path / "command" / "corpus.json").read_text())["id"] == here["id"]
    packed = gzip.compress(raw.read_bytes() * 4)  # damaged beyond what is looked at before any work
    (tmp_path / "cut.tsv.gz").write_bytes(packed[: len(packed) * 3 // 4])
    code, err = fails(capsys, tmp_path, str(tmp_path / "cut.tsv.gz"))
    assert code == 1
    assert "cut.tsv.gz: cannot be read to its end" in err
