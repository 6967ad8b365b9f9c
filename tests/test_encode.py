"""twilbert-encode mirrors the corpus row by row, encodes once, and leaves nothing behind when it fails."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.make_encoded import make_corpus, make_texts
from twilbert.data.corpus.corpus import Corpus, Shard
from twilbert.data.encoded import encode as encoding
from twilbert.data.encoded.format import read_row_group
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.encode import encode, main
from twilbert.errors import TwilbertError
from twilbert.vocab import vocab

TEXTS = make_texts(500)
ROWS = [(TEXTS[i], TEXTS[i + 1] if i % 3 else None) for i in range(0, 498, 2)]


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    return make_corpus(tmp_path / "corpus", ROWS, valid=ROWS[:20], n_shards=3, row_group_rows=40)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory) -> str:
    base = tmp_path_factory.mktemp("encode")
    trained_on = make_corpus(base / "c", [(text, None) for text in TEXTS])
    vocab(trained_on.path, str(base / "tokenizer"), vocab_size=400)
    return str(base / "tokenizer")


def encode_one(corpus: Corpus, shard: Shard, tokenizer_path: str, folder: Path) -> None:
    """Encode one shard in this process."""
    tokenizer = Tokenizer.load(tokenizer_path)
    encoding.encode_shard(corpus.shard_path(shard), shard, str(folder / "x.parquet"), tokenizer, 128)


@pytest.mark.ray
def test_it_mirrors_the_corpus_row_by_row_and_does_nothing_twice(
    ray_local, corpus, tokenizer_path, monkeypatch, capsys
):
    encoded = encode(corpus.path, tokenizer_path, max_len=12)
    tokenizer = Tokenizer.load(tokenizer_path)
    ids = []
    for group in encoded.split("train").row_groups:
        table = read_row_group(encoded, group)
        ids += zip(table.column("orig_ids").to_pylist(), table.column("reply_ids").to_pylist(), strict=True)
    assert ids == [tuple(tokenizer.encode(text or "")[:12] for text in row) for row in ROWS]

    assert [s.file for s in encoded.split("train").shards] == [s.file for s in corpus.shards("train")]
    for shard in corpus.shards("train"):
        file = pq.ParquetFile(corpus.shard_path(shard))
        rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert [g.rows for g in encoded.split("train").row_groups if g.file == shard.file] == rows
    assert encoded.split("train").singles == sum(reply is None for _, reply in ROWS)
    assert (encoded.max_len, encoded.vocab_size, encoded.corpus) == (12, 400, corpus.id)
    assert encoding.find(corpus, tokenizer, 12) == encoded

    monkeypatch.setattr("twilbert.encode.ensure_ray", None)  # Ray is not started
    capsys.readouterr()
    assert encode(corpus.path, tokenizer_path, max_len=12) == encoded
    assert "already encoded" in capsys.readouterr().err


@pytest.mark.ray
def test_a_shard_cut_short_is_named_and_nothing_is_left(ray_local, corpus, tokenizer_path, tmp_path):
    shard = tmp_path / "corpus" / "train" / "00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(TwilbertError, match=r"train/00001\.parquet: damaged .* twilbert-prepare") as caught:
        encode(corpus.path, tokenizer_path)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "corpus" / "encoded").iterdir())


@pytest.mark.ray
def test_a_damaged_encoding_is_made_again(ray_local, corpus, tokenizer_path, capsys):
    encoded = encode(corpus.path, tokenizer_path)
    shard = f"{encoded.path}/train/00002.parquet"
    whole = pq.read_table(shard)
    with Path(shard).open("r+b") as file:
        file.truncate(100)
    assert encode(corpus.path, tokenizer_path) == encoded
    assert pq.read_table(shard) == whole
    assert "00002.parquet" in capsys.readouterr().err


def test_a_shard_of_other_rows_than_the_corpus_says_is_damaged(corpus, tokenizer_path, tmp_path):
    shard = corpus.shards("train")[0]
    with pytest.raises(TwilbertError, match=r"83 rows, corpus\.json says 84"):
        encode_one(corpus, replace(shard, rows=84), tokenizer_path, tmp_path)


def test_a_full_disk_is_one_message(corpus, tokenizer_path, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(TwilbertError, match=r"x\.parquet: no space left"):
        encode_one(corpus, corpus.shards("train")[0], tokenizer_path, tmp_path)


def test_missing_and_wrong_inputs_are_wrong_usage(corpus, tokenizer_path, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "tokenizer.json").write_text("{")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "corpus.json").write_text(json.dumps({"format": 0}))
    for arguments, message in [
        ([str(tmp_path / "none"), "--tokenizer", tokenizer_path], "no such folder"),
        ([str(damaged), "--tokenizer", tokenizer_path], "not a finished corpus"),
        ([str(tmp_path / "text"), "--tokenizer", tokenizer_path], "format 0, this version reads 1"),
        ([corpus.path, "--tokenizer", str(tmp_path / "none")], "no such tokenizer folder"),
        ([corpus.path, "--tokenizer", str(damaged)], "not a readable tokenizer"),
        *(([corpus.path, "--tokenizer", tokenizer_path, "--max-len", n], f"--max-len {n}") for n in ("0", "65536")),
    ]:
        assert main(arguments) == 2
        printed = capsys.readouterr().err
        assert message in printed and "Traceback" not in printed
    assert not (tmp_path / "corpus" / "encoded").exists()
