"""The encoded corpus' index describes its files, and a fault names the file and the remedy."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from tests.make_encoded import make_encoded
from twilbert.data import checksums
from twilbert.data.encoded import format as layout
from twilbert.data.encoded.format import EncodedCorpus, read_row_group
from twilbert.data.tokenizer.template import ours
from twilbert.errors import TwilbertError, UsageError
from twilbert.model.special_tokens import N_SPECIAL


def test_the_index_counts_what_the_row_groups_hold(tmp_path):
    corpus = make_encoded(tmp_path / "e", rows_per_row_group=[30, 20, 7], single_share=0.3, unk_share=0.2, n_shards=2)
    assert pickle.loads(pickle.dumps(corpus)) == corpus
    train = corpus.split("train")
    places = [("train/00000.parquet", 0, 30), ("train/00000.parquet", 1, 20), ("train/00001.parquet", 0, 7)]
    assert [(group.file, group.index, group.rows) for group in train.row_groups] == places
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
    two_columns = read_row_group(corpus, train.row_groups[0], ["orig_len", "reply_len"])
    assert two_columns.column_names == ["orig_len", "reply_len"] and two_columns.num_rows == 30


def test_a_split_it_does_not_have_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no split 'test'.*train, valid"):
        make_encoded(tmp_path / "e").split("test")


def test_empty_texts_are_empty_lists():
    ragged = (np.array([7, 1, 9], np.uint16), np.array([0, 2, 2, 3]))
    table = layout.make_table(ragged, ragged, ours(20))
    assert table.column("orig_ids").to_pylist() == [[7, 1], [], [9]]
    assert table.column("orig_maskable").to_pylist() == [1, 0, 1]


def test_foreign_files_in_the_folder_change_nothing(tmp_path):
    encoded = make_encoded(tmp_path / "e")
    (tmp_path / "e" / "notes.txt").write_text("mine")
    (tmp_path / "e" / "train" / "00009.parquet").mkdir()
    (tmp_path / "e" / "train" / ".DS_Store").write_bytes(b"\0")
    assert EncodedCorpus.open(str(tmp_path / "e")) == encoded
    checksums.check_files(encoded.listed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda shard: shard.write_bytes(shard.read_bytes()[:-100]),
        lambda shard: shard.write_bytes(b"x" * shard.stat().st_size),
        lambda shard: shard.unlink(),
        lambda shard: shard.unlink() or shard.mkdir(),
    ],
)
def test_a_damaged_shard_is_named_by_the_comparison_and_by_the_read(tmp_path, damage):
    corpus = make_encoded(tmp_path / "e")
    damage(tmp_path / "e" / "train" / "00000.parquet")
    with pytest.raises(TwilbertError, match=r"train/00000\.parquet: (damaged|missing|cannot be read).*twilbert-encode"):
        checksums.check_files(corpus.listed)
    with pytest.raises(TwilbertError, match=r"train/00000\.parquet.*cannot be read.*twilbert-encode"):
        read_row_group(corpus, corpus.split("train").row_groups[0])


def test_a_folder_without_an_index_is_not_an_encoded_corpus(tmp_path):
    with pytest.raises(UsageError, match="not an encoded corpus"):
        EncodedCorpus.open(str(tmp_path))


@pytest.mark.parametrize("change", [{"format": 99}, {"splits": {"train": {}}}, {"splits": []}, {"max_len": 9}])
def test_an_index_of_another_form_is_refused_with_the_remedy(tmp_path, change):
    make_encoded(tmp_path / "e")
    index = str(tmp_path / "e" / "encoded.json")
    checksums.write_json(index, checksums.read_json(index, dict) | change)
    with pytest.raises(TwilbertError, match="twilbert-encode"):
        EncodedCorpus.open(str(tmp_path / "e"))


def test_counts_that_are_not_those_of_the_row_groups_are_refused(tmp_path):
    make_encoded(tmp_path / "e")
    path = str(tmp_path / "e" / "encoded.json")
    index = checksums.read_json(path, dict)
    index["splits"]["train"]["tokens"] += 1
    checksums.write_json(path, index)
    with pytest.raises(TwilbertError, match="counts of split 'train'"):
        EncodedCorpus.open(str(tmp_path / "e"))
