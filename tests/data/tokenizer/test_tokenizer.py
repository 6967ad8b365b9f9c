"""tokenizer.json has sentencepiece's ids, keeps every character, and makes no special token from a tweet."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
import tokenizers

from tests.make_encoded import make_texts
from twilbert.data.cleaning import TWILBERT as clean
from twilbert.data.tokenizer.sentencepiece import (
    WHOLE_WORDS,
    add_special_tokens,
    encodes_words_alone,
    from_sentencepiece,
    text_normaliser,
)
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.errors import TwilbertError, UsageError
from twilbert.model.special_tokens import CLS, MASK, PAD, SEP

NASTY = [
    "", " ", "url", "user", "urlando users burla curl", "user, url. (url) 'user'", "url[MASK]", "[MASK]", "[CLS]x[SEP]",
    "<0x41>", "url<0x41>", "a [PAD] b", "👩‍👩‍👧 ☺️ 🇪🇸 👍🏽", "jajajajajajajajaja", "aaaaaaaaaaaa", "!!!!!!!!!....",
    "½ ª ﬁ ™ ＡＢＣ", "ñandú n\u0303andu\u0301", "مرحبا 日本語 ไทย", "x" * 300, "\u200bhola\u200d", "M&M < > \" '",
]  # fmt: skip


def train_sentencepiece(texts: list[str], model_type: str, vocab_size: int = 420) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type=model_type, vocab_size=vocab_size,
        normalization_rule_name="identity", byte_fallback=True, pad_id=0, pad_piece="[PAD]", unk_id=1,
        unk_piece="[UNK]", bos_id=-1, eos_id=-1, control_symbols=["[MASK]", "[CLS]", "[SEP]"],
        user_defined_symbols=list(WHOLE_WORDS), num_threads=1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    return model.getvalue()


def make_tokenizer(model: bytes, model_type: str, **folding: bool) -> Tokenizer:
    return Tokenizer({"tokenizer.json": from_sentencepiece(model, model_type, **folding).to_str().encode()})


def split(ids: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def random_texts(n: int, seed: int) -> list[str]:
    """Texts of characters that normalisers and word splitting might treat apart."""
    rng = np.random.default_rng(seed)
    parts = ["url", "user", "@", "ana", "https://t.co/x", "&amp;", "&lt;", "…", "▁", " ", "  ", "\u3000", "\t",
             "[MASK]", "ñ", "n\u0303", "É", "😂", "\u200d", "ja", "ja", ".", "<0x41>", "\u0301", "Σ", "İ"]  # fmt: skip
    return ["".join(rng.choice(parts, rng.integers(0, 12))) for _ in range(n)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return make_texts(3000)


@pytest.fixture(scope="module")
def models(texts) -> dict[str, bytes]:
    return {model_type: train_sentencepiece(texts, model_type) for model_type in ("bpe", "unigram")}


@pytest.fixture(scope="module")
def bpe(models) -> Tokenizer:
    return make_tokenizer(models["bpe"], "bpe")


@pytest.fixture(scope="module")
def unigram(models) -> Tokenizer:
    return make_tokenizer(models["unigram"], "unigram")


def test_bpe_ids_are_sentencepieces(models, bpe, texts):
    processor = sentencepiece.SentencePieceProcessor(model_proto=models["bpe"])
    held_out = [clean(text) for text in [*make_texts(1000, seed=1, n_words=5000), *NASTY]]
    assert split(*bpe.encode_batch(texts + held_out)) == processor.encode(texts + held_out)


def test_bpe_ids_of_uncleaned_text_are_sentencepieces_of_the_normalised(models, bpe):
    processor = sentencepiece.SentencePieceProcessor(model_proto=models["bpe"])
    raw = random_texts(2000, seed=3)
    normaliser = text_normaliser()
    assert split(*bpe.encode_batch(raw)) == processor.encode([normaliser.normalize_str(text) for text in raw])


def test_unigram_ids_are_sentencepieces_but_for_equal_scores(models, unigram, texts):
    processor = sentencepiece.SentencePieceProcessor(model_proto=models["unigram"])
    both = zip(split(*unigram.encode_batch(texts)), processor.encode(texts), strict=True)
    different = [pair for pair in both if pair[0] != pair[1]]
    for ours, theirs in ([sum(map(processor.get_score, ids)) for ids in pair] for pair in different):
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert len(different) <= len(texts) * 0.02


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


def test_special_tokens_are_ids_0_to_4_and_no_text_becomes_one(tokenizer):
    assert [tokenizer.token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]"]
    with pytest.raises(IndexError):
        tokenizer.token(tokenizer.vocab_size)
    ids, _ = tokenizer.encode_batch([*NASTY, *random_texts(1000, seed=4)])
    assert ids.min() >= 5


def test_every_cleaned_text_is_decoded_whole(tokenizer):
    for text in [clean(t) for t in NASTY]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_url_and_user_are_one_token_at_the_start_of_a_word_only(tokenizer):
    def tokens(text: str) -> list[str]:
        return [tokenizer.token(i) for i in tokenizer.encode(text)]

    assert tokens("url user") == ["▁url", "▁user"]
    assert tokens("https://t.co/abc @José_1") == ["▁url", "▁user"]
    assert tokens("user, hola url")[0] == "▁user" and tokens("user, hola url")[-1] == "▁url"
    assert not {"▁url", "▁user"} & set(tokens("burla curl superuser"))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("folding", [{}, {"lowercase": True}, {"lowercase": True, "strip_accents": True}])
def test_a_texts_ids_are_those_of_its_words(models, kind, folding):
    """encode_batch goes word by word; encode gives the library the whole text."""
    tokenizer = make_tokenizer(models[kind], kind, **folding)
    raw = [*random_texts(1500, seed=5), *NASTY, *make_texts(300, seed=6)]
    assert split(*tokenizer.encode_batch(raw)) == [tokenizer.encode(text) for text in raw]


def test_a_full_word_cache_is_emptied(models, texts, monkeypatch):
    monkeypatch.setattr("twilbert.data.tokenizer.tokenizer._MAX_CACHED_WORDS", 50)
    tokenizer = make_tokenizer(models["bpe"], "bpe")
    for start in range(0, 300, 20):
        batch = texts[start : start + 20]
        assert split(*tokenizer.encode_batch(batch)) == [tokenizer.encode(text) for text in batch]


def test_composed_and_decomposed_texts_have_the_same_ids(tokenizer):
    for text in ["hola @José qué tal", "@Íñigo_ mañana", "el niño comió piñón", "Ñandú", "á"]:
        apart = unicodedata.normalize("NFD", text)
        assert clean(apart) == clean(text) and apart != text
        assert tokenizer.encode(apart) == tokenizer.encode(text) == tokenizer.encode(clean(text))


def test_each_text_is_truncated_to_max_len(bpe, texts):
    ids, offsets = bpe.encode_batch(texts, max_len=4)
    assert ids.dtype == np.uint16 and offsets.dtype == np.int64
    assert split(ids, offsets) == [bpe.encode(text)[:4] for text in texts]


def test_none_and_arrow_arrays_are_texts_too(bpe):
    some = ["hola", None, "", "burla url"]
    for form in (some, pa.array(some), pa.chunked_array([some[:1], some[1:]]), pa.array(["x", *some]).slice(1)):
        assert split(*bpe.encode_batch(form)) == [bpe.encode(text or "") for text in some]
    ids, offsets = bpe.encode_batch([])
    assert ids.tolist() == [] and offsets.tolist() == [0]


def test_half_a_character_is_refused(bpe):
    with pytest.raises(TwilbertError, match="lone surrogate"):
        bpe.encode_batch(["a\ud83d"])


def test_the_normaliser_cleans_and_leaves_cleaned_text_unchanged(texts):
    normaliser = text_normaliser()
    for text in [clean(t) for t in [*texts, *NASTY, "@José: https://t.co/x … M&amp;M &#64;ana", "@\u0301x @½"]]:
        assert normaliser.normalize_str(text) == text
    raw = "  RT @@José_1: M&amp;M &lt;3…https://t.co/a?b=&amp;c \u3000fin\n"
    assert normaliser.normalize_str(raw).strip() == clean(raw)


@pytest.mark.parametrize(("folding", "normalised"), [
    ({}, "Ñandú Él"), ({"lowercase": True}, "ñandú él"), ({"strip_accents": True}, "Nandu El"),
])  # fmt: skip
def test_casing_and_accents_are_options(folding, normalised):
    assert text_normaliser(**folding).normalize_str("Ñandú Él") == normalised


def test_it_travels_by_pickle_and_keeps_its_fingerprint(bpe):
    copy = pickle.loads(pickle.dumps(bpe))
    assert copy.fingerprint == bpe.fingerprint and len(bpe.fingerprint) == 64
    assert copy.encode("hola burla") == bpe.encode("hola burla")


def test_transformers_reads_the_folder(bpe, tmp_path):
    from transformers import AutoTokenizer

    bpe.save(str(tmp_path))
    auto = AutoTokenizer.from_pretrained(str(tmp_path))
    assert (auto.pad_token_id, auto.unk_token_id, auto.mask_token_id) == (0, 1, 2)
    assert (auto.cls_token_id, auto.sep_token_id) == (3, 4)
    pair = auto("hola @ana", "burla url", return_token_type_ids=True)
    a, b = bpe.encode("hola user"), bpe.encode("burla url")
    assert pair["input_ids"] == [CLS, *a, SEP, *b, SEP]
    assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert auto("hola")["input_ids"] == [CLS, *bpe.encode("hola"), SEP]
    batch = auto(["hola", "hola burla url"], padding=True)
    assert batch["input_ids"][0][-1] == PAD and batch["attention_mask"][0][-1] == 0
    assert auto("[MASK]", add_special_tokens=False)["input_ids"] == [MASK]
    assert MASK not in auto("[MASK]", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    # A full stop after a mask is the ordinary one.
    masked = auto("burla [MASK]. url", add_special_tokens=False)["input_ids"]
    whole = bpe.encode("burla la. url")
    assert masked == [*bpe.encode("burla"), MASK, *whole[len(bpe.encode("burla la")) :]]


def test_berts_word_piece_goes_word_by_word_too(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", "hola", "##s", "que", "tal", "!", "日", "本"]
    wordpiece = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    wordpiece.normalizer = tokenizers.normalizers.BertNormalizer()
    wordpiece.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    add_special_tokens(wordpiece)
    (tmp_path / "tokenizer.json").write_text(wordpiece.to_str())
    assert encodes_words_alone(json.loads(wordpiece.to_str()))
    loaded = Tokenizer.load(str(tmp_path))
    some = ["¡Holas! que日本 tal", "Qué\ttal  hola", ""]
    assert split(*loaded.encode_batch(some)) == [loaded.encode(text) for text in some]


def test_a_tokenizer_that_looks_across_spaces_is_given_whole_texts(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", "h", "o", "l", "a", "\u0120", "\u0120h"]
    model = tokenizers.models.BPE({w: i for i, w in enumerate(vocabulary)}, [("\u0120", "h")])
    bytelevel = tokenizers.Tokenizer(model)
    bytelevel.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    add_special_tokens(bytelevel)
    (tmp_path / "tokenizer.json").write_text(bytelevel.to_str())
    assert not encodes_words_alone(json.loads(bytelevel.to_str()))
    loaded = Tokenizer.load(str(tmp_path))
    assert split(*loaded.encode_batch(["hola hola"])) == [loaded.encode("hola hola")]


def test_a_folder_without_a_tokenizer_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(UsageError, match=r"no such tokenizer folder.*twilbert-vocab"):
        Tokenizer.load(str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"no tokenizer\.json.*twilbert-vocab"):
        Tokenizer.load(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}'])
def test_a_damaged_file_or_one_without_mask_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UsageError, match=r"tokenizer\.json: not a readable tokenizer"):
        Tokenizer.load(str(tmp_path))
    other = tokenizers.Tokenizer(tokenizers.models.BPE({"<s>": 0, "a": 1}, []))
    (tmp_path / "tokenizer.json").write_text(other.to_str())
    with pytest.raises(UsageError, match=r"has no mask token \(no mask_token in tokenizer_config\.json\)"):
        Tokenizer.load(str(tmp_path))
