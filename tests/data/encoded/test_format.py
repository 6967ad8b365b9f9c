"""The encoded corpus' reader: its index says what its files hold, and a fault names the file and the remedy."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.make_encoded import make_corpus, make_encoded
from twilbert.data import checksums
from twilbert.data.encoded import format as layout
from twilbert.data.encoded.format import EncodedCorpus, read_row_group
from twilbert.errors import TwilbertError, UsageError
from twilbert.model.special_tokens import N_SPECIAL


def test_the_index_counts_what_the_row_groups_hold(tmp_path):
    corpus = make_encoded(tmp_path / "e", rows_per_row_group=[30, 20, 7], single_share=0.3, unk_share=0.2)
    train = corpus.split("train")
    assert [group.rows for group in train.row_groups] == [30, 20, 7]
    assert train.rows == 57 and train.pairs + train.singles == 57 and train.singles > 0
    assert train.samples == 2 * train.pairs + train.singles
    for group in train.row_groups:
        table = read_row_group(corpus, group)
        orig, reply = table.column("orig_ids").to_pylist(), table.column("reply_ids").to_pylist()
        assert group.pairs == sum(1 for ids in reply if ids)
        assert group.tokens == sum(map(len, orig)) + sum(map(len, reply))
        assert group.maskable == sum(i >= N_SPECIAL for ids in orig + reply for i in ids)
        assert table.column("orig_len").to_pylist() == [len(ids) for ids in orig]
        assert table.column("reply_maskable").to_pylist() == [sum(i >= N_SPECIAL for i in ids) for ids in reply]
    assert sum(group.tokens for group in train.row_groups) == train.tokens


def test_row_groups_come_in_file_order(tmp_path):
    corpus = make_encoded(tmp_path / "e", rows_per_row_group=[5, 6, 7, 8, 9], n_shards=2)
    places = [(group.file, group.index) for group in corpus.split("train").row_groups]
    assert places == [(f"train/{s:05d}.parquet", i) for s, n in ((0, 3), (1, 2)) for i in range(n)]


def test_only_the_columns_asked_for_are_read(tmp_path):
    corpus = make_encoded(tmp_path / "e")
    table = read_row_group(corpus, corpus.split("valid").row_groups[0], ["orig_len", "reply_len"])
    assert table.column_names == ["orig_len", "reply_len"] and table.num_rows == 30


def test_it_travels_by_pickle(tmp_path):
    corpus = make_encoded(tmp_path / "e")
    assert pickle.loads(pickle.dumps(corpus)) == corpus


def test_a_split_it_does_not_have_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no split 'test'.*train, valid"):
        make_encoded(tmp_path / "e").split("test")


def test_make_table_keeps_empty_texts_as_empty_lists():
    ragged = (np.array([7, 1, 9], np.uint16), np.array([0, 2, 2, 3]))
    table = layout.make_table(ragged, ragged)
    assert table.column("orig_ids").to_pylist() == [[7, 1], [], [9]]
    assert table.column("orig_maskable").to_pylist() == [1, 0, 1]


def test_a_shard_cut_short_is_named_when_the_folder_is_opened(tmp_path):
    make_encoded(tmp_path / "e")
    shard = tmp_path / "e" / "train" / "00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(TwilbertError, match=r"train/00001\.parquet.*bytes.*twilbert-encode"):
        EncodedCorpus.open_folder(str(tmp_path / "e"))


@pytest.mark.parametrize(
    "harm", [Path.unlink, lambda shard: shard.unlink() or shard.mkdir(), lambda shard: shard.write_bytes(b"")]
)
def test_a_shard_that_is_missing_empty_or_a_folder_is_named(tmp_path, harm):
    make_encoded(tmp_path / "e")
    harm(tmp_path / "e" / "valid" / "00000.parquet")
    with pytest.raises(TwilbertError, match=r"valid/00000\.parquet: cannot be read \((no such file|0 bytes).*encode"):
        EncodedCorpus.open_folder(str(tmp_path / "e"))


def test_files_of_others_in_the_folder_change_nothing(tmp_path):
    made = make_encoded(tmp_path / "e")
    (tmp_path / "e" / "notes.txt").write_text("mine")
    (tmp_path / "e" / "train" / "00009.parquet").mkdir()
    (tmp_path / "e" / "train" / ".DS_Store").write_bytes(b"\0")
    assert EncodedCorpus.open_folder(str(tmp_path / "e")) == made
    checksums.check_files(made.listed)


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"x" * len(data)])
def test_a_shard_damaged_after_opening_is_named_by_the_read(tmp_path, damage):
    corpus = make_encoded(tmp_path / "e")
    shard = tmp_path / "e" / "train" / "00000.parquet"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(TwilbertError, match=r"train/00000\.parquet.*cannot be read"):
        read_row_group(corpus, corpus.split("train").row_groups[0])


def test_a_folder_without_an_index_is_not_an_encoded_corpus(tmp_path):
    with pytest.raises(UsageError, match="not an encoded corpus"):
        EncodedCorpus.open_folder(str(tmp_path))


@pytest.mark.parametrize("change", [{"format": 99}, {"splits": {"train": {}}}, {"splits": []}])
def test_an_index_of_another_form_is_refused_with_the_remedy(tmp_path, change):
    make_encoded(tmp_path / "e")
    index = str(tmp_path / "e" / "encoded.json")
    checksums.write_json(index, checksums.read_json(index, dict) | change)
    with pytest.raises(TwilbertError, match="twilbert-encode"):
        EncodedCorpus.open_folder(str(tmp_path / "e"))


def _encode_by_hand(corpus, tokenizer: str, max_len: int) -> Path:
    """Place a fabricated encoding where the corpus expects its own."""
    folder = Path(corpus.path) / "encoded" / layout.fingerprint(tokenizer, max_len, corpus.id)
    make_encoded(folder)
    index = str(folder / "encoded.json")
    own = {"tokenizer": tokenizer, "max_len": max_len, "corpus": corpus.id, "fingerprint": folder.name}
    checksums.write_json(index, checksums.read_json(index, dict) | own)
    return folder


def test_a_corpus_opens_its_own_encoding(tmp_path):
    corpus = make_corpus(tmp_path / "c", [("a", "b")])
    folder = _encode_by_hand(corpus, "f" * 64, 128)
    assert EncodedCorpus.open(corpus.path, "f" * 64, 128).path == str(folder)


def test_a_corpus_never_encoded_says_how(tmp_path):
    corpus = make_corpus(tmp_path / "c", [("a", "b")])
    with pytest.raises(UsageError, match=r"not encoded yet.*twilbert-encode .*/c --tokenizer TOKENIZER --max-len 64"):
        EncodedCorpus.open(corpus.path, "f" * 64, 64)


@pytest.mark.parametrize(("tokenizer", "max_len"), [("0" * 64, 128), ("f" * 64, 64)])
def test_another_tokenizer_or_cut_names_both_fingerprints_and_the_command(tmp_path, tokenizer, max_len):
    corpus = make_corpus(tmp_path / "c", [("a", "b")])
    there = _encode_by_hand(corpus, "f" * 64, 128).name
    asked = layout.fingerprint(tokenizer, max_len, corpus.id)
    with pytest.raises(UsageError, match="does not match") as caught:
        EncodedCorpus.open(corpus.path, tokenizer, max_len)
    assert there in str(caught.value) and asked in str(caught.value) and "twilbert-encode" in str(caught.value)
