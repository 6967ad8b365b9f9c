"""Texts become [CLS] a [SEP] b [SEP] in batches of like lengths that hold every sequence once."""

from __future__ import annotations

import functools

import numpy as np

from tests.make_encoded import make_texts
from twilbert.data.batches import batches
from twilbert.data.batches import encode as encode_with
from twilbert.data.cleaning import TWILBERT
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.data.tokenizer.wordpiece import from_vocabulary
from twilbert.model.special_tokens import CLS, PAD, SEP

WORDS = sorted({word for text in make_texts(300) for word in text.lower().split()})
TOKENIZER = Tokenizer(
    {"tokenizer.json": from_vocabulary(["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", *WORDS]).to_str().encode()}
)

encode = functools.partial(encode_with, cleaning=TWILBERT.name)


def test_pairs_get_special_tokens_and_segments():
    sequences = encode(TOKENIZER, [WORDS[0], ""], [f"{WORDS[1]} {WORDS[2]}", WORDS[3]], max_len=5)
    ids = [sequences.ids[a:b].tolist() for a, b in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)]
    a, b, c, d = (TOKENIZER.encode(word) for word in WORDS[:4])
    assert ids == [[CLS, *a, SEP, *b, *c, SEP], [CLS, SEP, *d, SEP]]
    (batch,) = batches(sequences, 1000)
    order = batch.rows.argsort()
    assert batch.segment_ids[order][0].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + len(c) + 1)
    assert batch.input_ids[order][1, int(batch.lengths[order][1]) :].tolist().count(PAD) > 0


def test_each_text_is_cleaned_and_truncated():
    sequences = encode(TOKENIZER, ["RT " + " ".join(WORDS[:9])], max_len=4, remove_rt=True)
    expected = TOKENIZER.encode(" ".join(WORDS[:9]))[:4]
    assert sequences.ids.tolist() == [CLS, *expected, SEP]


def test_batches_hold_every_sequence_once_within_the_budget():
    texts = make_texts(400)
    sequences = encode(TOKENIZER, texts, max_len=12)
    numbers, shapes = [], set()
    for batch in batches(sequences, 128):
        assert batch.input_ids.size <= 128
        shapes.add(batch.input_ids.shape)
        for row, ids, length in zip(batch.rows, batch.input_ids, batch.lengths, strict=True):
            assert ids[:length].tolist() == sequences.ids[sequences.offsets[row] : sequences.offsets[row + 1]].tolist()
            assert not ids[length:].any()
            numbers.append(int(row))
    assert sorted(set(numbers)) == list(range(400)) and len(np.unique(sequences.lengths)) > 3
    assert len(shapes) <= 4  # lengths up to 8, up to 14, and what was left


def test_no_texts_give_no_batches():
    assert list(batches(encode(TOKENIZER, [], max_len=4), 128)) == []
