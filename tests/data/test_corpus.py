"""A corpus folder opens only when it is whole, and says what is wrong when it is not."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from twilbert.data.corpus import Corpus
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
    opened.verify()
    assert opened.splits["train"].rows + opened.splits["valid"].rows == 40
    assert [shard.file for shard in opened.shards("train")] == ["train/00000.parquet"]
    assert Path(opened.shard_path(opened.shards("valid")[0])).is_file()
    assert len(opened.id) == 16
    assert pickle.loads(pickle.dumps(opened)) == opened


def test_a_split_that_is_not_there_is_named(corpus: str):
    with pytest.raises(UsageError, match="no split 'test'; it has train, valid"):
        Corpus.open(corpus).shards("test")


def test_no_corpus_comes_with_the_command_that_makes_one(tmp_path: Path):
    with pytest.raises(UsageError, match="no such folder; make one with: twilbert-prepare"):
        Corpus.open(str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"holds no corpus\.json"):
        Corpus.open(str(tmp_path))


def test_another_format_or_a_damaged_file_is_refused(corpus: str):
    path = Path(corpus, "corpus.json")
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"format": 2}))
    with pytest.raises(UsageError, match="format 2, this version reads 1"):
        Corpus.open(corpus)
    path.write_text(json.dumps({key: value for key, value in info.items() if key != "splits"}))
    with pytest.raises(UsageError, match="'splits' is missing"):
        Corpus.open(corpus)
    path.write_text('{"format": 1')
    with pytest.raises(TwilbertError, match="not readable as JSON"):
        Corpus.open(corpus)


def test_verify_names_the_shard_that_is_damaged_or_missing(corpus: str):
    opened = Corpus.open(corpus)
    shard = Path(corpus, "train", "00000.parquet")
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(TwilbertError, match=r"train/00000\.parquet: damaged"):
        opened.verify()
    shard.unlink()
    with pytest.raises(TwilbertError, match=r"train/00000\.parquet: missing"):
        opened.verify()
