"""twilbert-vocab is deterministic, and refuses impossible sizes with the possible ones."""

from __future__ import annotations

import json
import re

import pytest

from tests.make_encoded import make_corpus, make_texts
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.errors import TwilbertError, UsageError
from twilbert.vocab import cut, main, vocab

SIZE = 400


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    texts = make_texts(3000)
    rows = [(texts[i], texts[i + 1] if i % 5 else None) for i in range(0, len(texts) - 1, 2)]
    return make_corpus(tmp_path_factory.mktemp("vocab") / "corpus", rows, n_shards=2, row_group_rows=300)


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_holds_a_tokenizer_of_this_size_and_damage_is_refused(corpus, tmp_path):
    settings = vocab(corpus.path, str(tmp_path / "t"), vocab_size=SIZE)
    tokenizer = Tokenizer.load(str(tmp_path / "t"))
    assert tokenizer.vocab_size == SIZE
    assert [tokenizer.token(i) for i in range(7)] == [
        "[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", "▁url", "▁user"
    ]  # fmt: skip
    assert set(files_of(tmp_path / "t")) == {
        "tokenizer.json", "tokenizer_config.json", "twilbert_tokenizer.json", "spm.model", ".twilbert.json"
    }  # fmt: skip
    assert tokenizer.settings == settings == json.loads((tmp_path / "t" / "twilbert_tokenizer.json").read_text())
    assert settings["corpus"] == corpus.id and settings["sentences"] == 1500 + 1200
    assert settings["compared_with_sentencepiece"] == {"texts": 2700, "different": 0}
    file = tmp_path / "t" / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b"user", b"usdr"))
    with pytest.raises(UsageError, match=r"tokenizer\.json: damaged or edited: its SHA-256 .*tokenizer_sha256"):
        Tokenizer.load(str(tmp_path / "t"))


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_same_corpus_gives_the_same_bytes(corpus, tmp_path, model_type):
    for name in ("a", "b"):
        vocab(corpus.path, str(tmp_path / name), vocab_size=SIZE, model_type=model_type)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_conversion_that_differs_writes_nothing(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("twilbert.data.tokenizer.sentencepiece._merges", lambda scores: [])
    with pytest.raises(TwilbertError, match=r"other ids than sentencepiece for \d+ of 2700 texts"):
        vocab(corpus.path, str(tmp_path / "t"), vocab_size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_lowercase_and_accents_shape_the_vocabulary(corpus, tmp_path):
    vocab(corpus.path, str(tmp_path / "t"), vocab_size=SIZE, lowercase=True, strip_accents=True)
    tokenizer = Tokenizer.load(str(tmp_path / "t"))
    assert tokenizer.decode(tokenizer.encode("¡Ñandú! Éxito")) == "¡nandu! exito"
    pieces = "".join(tokenizer.token(i) for i in range(263, tokenizer.vocab_size))
    assert pieces == pieces.lower() and not set("áéíóúñü") & set(pieces)


def test_a_large_corpus_is_sampled_and_the_sample_is_always_the_same(corpus, tmp_path):
    first = vocab(corpus.path, str(tmp_path / "a"), vocab_size=300, max_sentences=900)
    vocab(corpus.path, str(tmp_path / "b"), vocab_size=300, max_sentences=900)
    assert 700 <= first["sentences"] <= 1000
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize(
    ("size", "model_type", "fault", "bound"),
    [
        (60_000, "bpe", "too large", "less"),
        (60_000, "unigram", "too large", "less"),
        (100, "bpe", "too small for the special tokens", "more"),
    ],
)
def test_an_impossible_size_names_the_nearest_possible_one(corpus, tmp_path, size, model_type, fault, bound):
    with pytest.raises(UsageError, match=fault) as caught:
        vocab(corpus.path, str(tmp_path / "t"), vocab_size=size, model_type=model_type)
    possible = re.search(rf"use --vocab-size (\d+) or {bound}", str(caught.value))
    assert possible is not None
    assert vocab(corpus.path, str(tmp_path / "t"), vocab_size=int(possible[1]), model_type=model_type)["vocab_size"]


def test_a_train_split_without_text_is_refused(tmp_path):
    empty = make_corpus(tmp_path / "c", [])
    with pytest.raises(UsageError, match="train split holds no text"):
        vocab(empty.path, str(tmp_path / "t"), vocab_size=SIZE)


def test_a_folder_is_replaced_only_where_asked_and_only_its_own_files(corpus, tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "mine").write_text("x")
    with pytest.raises(UsageError, match="already holds something"):
        vocab(corpus.path, str(tmp_path / "t"), vocab_size=SIZE)
    with pytest.raises(UsageError, match=r"twilbert-vocab did not write \(mine\)"):
        vocab(corpus.path, str(tmp_path / "t"), vocab_size=SIZE, overwrite=True)
    (tmp_path / "t" / "mine").unlink()
    vocab(corpus.path, str(tmp_path / "t"), vocab_size=SIZE)
    vocab(corpus.path, str(tmp_path / "t"), vocab_size=SIZE + 1, overwrite=True)
    assert Tokenizer.load(str(tmp_path / "t")).vocab_size == SIZE + 1


def test_a_truncated_shard_is_named_without_a_traceback_and_nothing_is_left(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "c", [(text, None) for text in make_texts(200)])
    shard = tmp_path / "c" / "train" / "00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-50])
    assert main([corpus.path, "--out", str(tmp_path / "t"), "--vocab-size", "300"]) == 1
    message = capsys.readouterr().err
    assert "train/00000.parquet: damaged" in message and "Traceback" not in message
    assert not (tmp_path / "t").exists()


def test_a_missing_corpus_is_wrong_usage(tmp_path, capsys):
    assert main([str(tmp_path / "none"), "--out", str(tmp_path / "t")]) == 2
    assert "twilbert-prepare" in capsys.readouterr().err


def test_every_wrong_flag_is_reported_at_once(tmp_path, capsys):
    flags = ["--vocab-size", "70000", "--type", "word", "--max-sentences", "0", "--character-coverage", "2"]
    assert main([str(tmp_path), "--out", str(tmp_path / "t"), *flags]) == 2
    message = capsys.readouterr().err
    assert all(flag in message for flag in flags[::2])


def test_the_last_line_says_what_was_written_where(corpus, tmp_path, capsys):
    assert main([corpus.path, "--out", str(tmp_path / "t"), "--vocab-size", str(SIZE)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"tokenizer of {SIZE} entries (bpe, 2,700 texts) in {tmp_path / 't'}"


def test_long_texts_are_read_whole_in_pieces_and_counted(tmp_path, capsys):
    """sentencepiece leaves sentences over 4,192 bytes out; here nearly all text is longer."""
    laugh = " ".join("zaza" * (1 + i % 3) for i in range(1500))
    rows = [(f"hola qué tal {i}", None) for i in range(50)] + [(laugh, "ñ" * 5000 + " kiki"), ("x" + "é" * 2095, None)]
    corpus = make_corpus(tmp_path / "c", rows)
    assert main([corpus.path, "--out", str(tmp_path / "t"), "--vocab-size", "320"]) == 0
    assert "53 texts, 2 of them over 4,192 bytes and read in pieces)" in capsys.readouterr().out
    pieces = [Tokenizer.load(str(tmp_path / "t")).token(i) for i in range(263, 320)]
    assert "▁zaza" in pieces and "ñ" in pieces
    for text in (laugh, rows[-2][1], "aa " * 3000 + "b", "😂" * 3000, "a" + "😂" * 1048):
        parts = cut(text)
        assert max(len(part.encode()) for part in parts) <= 4192
        assert "".join(parts).replace(" ", "") == text.replace(" ", "")
        assert all(part.split(" ") for part in parts)
    assert cut("palabra " * 600)[0].count(" ") > 500


def test_a_corpus_of_long_texts_alone_trains(tmp_path):
    corpus = make_corpus(tmp_path / "c", [("jaja" * 2000, None)])
    assert vocab(corpus.path, str(tmp_path / "t"), vocab_size=270)["long_texts_cut"] == 1
