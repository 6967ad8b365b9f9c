"""A BERT vocabulary file becomes a folder that gives the original's ids; damaged files are refused by line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests import places
from twilbert.data.cleaning import FIRST, named
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.data.tokenizer.wordpiece import LONGEST_WORD, save_wordpiece_folder
from twilbert.errors import UsageError
from twilbert.model.special_tokens import MASK, UNK

GOLDEN = places.SHARED / "golden"
ENTRIES = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", "hola", "##s", "que", "tal", "!", ".", "[", "]", "mask", "日"]


def written(path: Path, entries: list[str]) -> str:
    path.write_text("".join(f"{entry}\n" for entry in entries), encoding="utf-8")
    return str(path)


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    return save_wordpiece_folder(written(tmp_path / "vocab", ENTRIES), str(tmp_path / "tokenizer"))


def golden_rows() -> list[dict]:
    if not (GOLDEN / "tokenizer.jsonl").exists():
        pytest.skip(f"{GOLDEN} is not on this machine")
    rows = [json.loads(line) for line in (GOLDEN / "tokenizer.jsonl").read_text().split("\n") if line]
    assert len(rows) == 1000
    return rows


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token(i) for i in tokenizer.encode(text)]


def test_every_golden_text_has_the_originals_ids(tmp_path):
    rows = golden_rows()
    tokenizer = save_wordpiece_folder(str(GOLDEN / "vocab"), str(tmp_path / "tokenizer"))
    ids, offsets = tokenizer.encode_batch([row["preprocessed"] for row in rows])
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == [row["ids"] for row in rows]
    assert [tokenizer.encode(row["preprocessed"]) for row in rows] == [row["ids"] for row in rows]


def test_our_cleaning_is_the_originals_but_for_rt_inside_words():
    clean = named(FIRST)
    applied = [row for row in golden_rows() if row["preprocess_applied"]]
    different = [row for row in applied if clean(row["text"], remove_rt=True) != row["preprocessed"]]
    assert len(applied) == 629 and len(different) == 8
    for row in different:
        assert " ".join(clean(row["text"]).replace("RT", " ").split()) == row["preprocessed"]


def test_lower_case_no_accents_longest_match(tokenizer):
    assert tokens(tokenizer, "¡HOLÁS! Qué\ttal") == ["[UNK]", "hola", "##s", "!", "que", "tal"]
    assert tokens(tokenizer, "que日tal.") == ["que", "日", "tal", "."]
    assert tokens(tokenizer, "") == []


def test_a_word_over_the_longest_is_unknown(tokenizer):
    assert tokenizer.encode("hola" + "s" * (LONGEST_WORD - 4)).count(UNK) == 0
    assert tokenizer.encode("hola" + "s" * (LONGEST_WORD - 3)) == [UNK]


def test_a_text_that_spells_a_special_token_gives_none(tokenizer):
    assert tokens(tokenizer, "[MASK]") == ["[", "mask", "]"]
    assert tokenizer.encode_masked("hola [MASK].")[1] == MASK


def test_it_loads_like_any_other_folder_and_decodes(tokenizer, tmp_path):
    again = Tokenizer.load(str(tmp_path / "tokenizer"))
    assert again.fingerprint == tokenizer.fingerprint and again.vocab_size == len(ENTRIES)
    assert again.settings["type"] == "wordpiece"
    assert again.decode(again.encode("holas que tal!")) == "holas que tal !"


def test_transformers_gives_the_same_ids(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    auto = AutoTokenizer.from_pretrained(str(tmp_path / "tokenizer"))
    assert auto("¡Holas! que")["input_ids"] == [3, *tokenizer.encode("¡Holas! que"), 4]
    assert auto.mask_token_id == MASK


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["hola", *ENTRIES], "first five lines are not"),
        ([*ENTRIES, ""], "line 16: empty"),
        ([*ENTRIES, "hola"], "line 16: 'hola' is already in line 6"),
        ([*ENTRIES, *(f"w{i}" for i in range(65_535))], "at most 65,535"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused_by_line(tmp_path, entries, message):
    with pytest.raises(UsageError, match=message):
        save_wordpiece_folder(written(tmp_path / "vocab", entries), str(tmp_path / "tokenizer"))
    assert not (tmp_path / "tokenizer").exists()


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        save_wordpiece_folder(str(tmp_path / "none"), str(tmp_path / "tokenizer"))
    (tmp_path / "vocab").write_bytes(b"[PAD]\n\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        save_wordpiece_folder(str(tmp_path / "vocab"), str(tmp_path / "tokenizer"))
