"""A corpus folder opens when it is whole; a fault names the file and the remedy."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from twilbert.data import checksums
from twilbert.data.corpus.corpus import Corpus, read_shard
from twilbert.errors import TwilbertError, UsageError
from twilbert.prepare import prepare, run_here


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    raw = tmp_path / "raw.tsv"
    raw.write_text("".join(f"{i}\ttweet número {i} aquí\t{i}5\tuna respuesta {i}\n" for i in range(100, 140)))
    out = str(tmp_path / "corpus")
    prepare([str(raw)], out, valid_share=0.2, runner=run_here)
    return out


def test_what_was_prepared_is_what_opens(corpus: str):
    opened = Corpus.open(corpus)
    assert opened.splits["train"].rows + opened.splits["valid"].rows == 40
    assert [shard.file for shard in opened.shards("train")] == ["train/00000.parquet"]
    assert Path(opened.shard_path(opened.shards("valid")[0])).is_file()
    assert len(opened.id) == 16
    with pytest.raises(UsageError, match="no split 'test'; it has train, valid"):
        opened.shards("test")
    assert pickle.loads(pickle.dumps(opened)) == opened


def test_no_corpus_comes_with_the_command_that_makes_one(tmp_path: Path):
    with pytest.raises(UsageError, match="no such folder; make one with: twilbert-prepare"):
        Corpus.open(str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"has no corpus\.json"):
        Corpus.open(str(tmp_path))


def test_another_format_or_a_damaged_file_is_refused(corpus: str):
    path = Path(corpus, "corpus.json")
    info = checksums.read_json(str(path), dict)
    checksums.write_json(str(path), info | {"format": 2})
    with pytest.raises(UsageError, match="format 2, this version reads 1"):
        Corpus.open(corpus)
    checksums.write_json(str(path), {key: value for key, value in info.items() if key != "splits"})
    with pytest.raises(TwilbertError, match="splits: field required"):
        Corpus.open(corpus)
    path.write_text('{"format": 1')
    with pytest.raises(TwilbertError, match="invalid JSON"):
        Corpus.open(corpus)
    path.unlink()
    path.mkdir()
    with pytest.raises(TwilbertError, match=r"corpus\.json: expected a file, this is a folder.* twilbert-prepare"):
        Corpus.open(corpus)


@pytest.mark.parametrize("has_own_sum", [True, False], ids=["now", "as 0.2.0 wrote it"])
def test_a_list_that_was_edited_is_refused(corpus: str, has_own_sum: bool):
    """Another shard's sum, or another count, written into corpus.json by hand."""
    path = Path(corpus, "corpus.json")
    info = json.loads(path.read_text())
    if not has_own_sum:
        del info["sha256"]
        path.write_text(json.dumps(info))
        Corpus.open(corpus)
    (shard,) = info["splits"]["train"]["shards"]
    for change in ({"sha256": "0" * 64}, {"rows": shard["rows"] + 1}):
        info["splits"]["train"]["shards"] = [shard | change]
        path.write_text(json.dumps(info))
        with pytest.raises(TwilbertError, match=r"corpus\.json: damaged or edited: its .* twilbert-prepare"):
            Corpus.open(corpus)


def test_a_shard_that_is_damaged_or_missing_is_named_before_a_row_is_read(corpus: str):
    opened = Corpus.open(corpus)
    (shard,) = opened.shards("train")
    path = Path(corpus, "train", "00000.parquet")
    path.write_bytes(path.read_bytes()[:-10])
    for fault in ("damaged or replaced", "missing", "cannot be read"):
        with pytest.raises(TwilbertError, match=rf"train/00000\.parquet: {fault}.* twilbert-prepare"):
            checksums.check_files(opened.listed)
        with pytest.raises(TwilbertError, match=rf"train/00000\.parquet: {fault}.* twilbert-prepare"):
            next(read_shard(str(path), shard, ["orig_text"]))
        if fault == "missing":
            path.mkdir()
        elif fault != "cannot be read":
            path.unlink()
