"""Any fast tokenizer: its own special ids, pairs and types, through encoding, pairing and masking."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers

from tests.make_encoded import make_encoded
from tests.make_models import make_tokenizer
from twilbert.data import batches
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream.masking import MaskingSettings
from twilbert.data.stream.order import StreamPlan
from twilbert.data.stream.stream import micro_batches
from twilbert.data.tokenizer.template import Template, ours
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.errors import UsageError

WORDS = ["hola", "que", "tal", "no", "si", "burla", "nada"]
TEXTS = ["hola que tal", "no si burla"]


def bert(**options):
    vocabulary = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##da"]
    return transformers.BertTokenizerFast(vocab={token: i for i, token in enumerate(vocabulary)}, **options)


def roberta():
    letters = sorted({letter for word in WORDS for letter in word})
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *letters, "Ġ", "Ġh", "Ġhola", "<mask>"]
    return transformers.RobertaTokenizerFast(vocab={t: i for i, t in enumerate(vocabulary)}, merges=[("Ġ", "h")])


def xlm_roberta(size: int = 70_000):
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁w{i}", -9.0) for i in range(size))]
    pieces += [(f"▁{word}", -5.0) for word in WORDS]
    return transformers.XLMRobertaTokenizerFast(vocab=[*pieces, ("▁", -20.0), ("<mask>", 0.0)])


KINDS = {"bert": bert, "roberta": roberta, "xlm-roberta": xlm_roberta}


@pytest.fixture(params=KINDS)
def pair(request, tmp_path):
    """transformers' tokenizer and ours of the same folder."""
    theirs = KINDS[request.param]()
    theirs.save_pretrained(tmp_path)
    return theirs, Tokenizer.load(str(tmp_path))


def encoded(theirs, *texts) -> tuple[list[int], list[int]]:
    one = theirs(*texts, return_token_type_ids=True)
    return one["input_ids"], one["token_type_ids"]


def test_sequences_are_those_of_transformers(pair):
    theirs, tokenizer = pair
    template = tokenizer.template
    assert (template.pad, template.mask) == (theirs.pad_token_id, theirs.mask_token_id)
    assert template.of_single == theirs.num_special_tokens_to_add(False)
    assert template.of_pair == theirs.num_special_tokens_to_add(True)
    for second in (None, TEXTS[::-1]):
        sequences = batches.encode(tokenizer, TEXTS, second, max_len=50, cleaning="none")
        for row, text in enumerate(TEXTS):
            ids, types = encoded(theirs, text, *([] if second is None else [second[row]]))
            batch = batches.padded(sequences, np.array([row]), len(ids))
            assert batch.input_ids[0].tolist() == ids and batch.segment_ids[0].tolist() == types
    assert Tokenizer.load(str(Path(tokenizer._where).parent)).template == template


def test_a_text_never_becomes_a_special_token(pair):
    theirs, tokenizer = pair
    special = set(theirs.all_special_ids) - {theirs.unk_token_id}
    ids, _ = tokenizer.encode_batch([*theirs.all_special_tokens, f"hola {theirs.mask_token} que"])
    assert not special & set(ids.tolist())
    assert theirs.mask_token_id in tokenizer.encode_masked(f"hola {theirs.mask_token}")


def test_ids_of_a_large_vocabulary_are_uint32(tmp_path):
    for size, dtype in ((70_000, np.uint32), (100, np.uint16)):
        xlm_roberta(size).save_pretrained(tmp_path / str(size))
        tokenizer = Tokenizer.load(str(tmp_path / str(size)))
        ids, _ = tokenizer.encode_batch([f"w{size - 1} hola"])
        assert ids.dtype == dtype and tokenizer.token(ids[0]) == f"▁w{size - 1}" and tokenizer.token(ids[1]) == "▁hola"


def test_our_own_tokenizers_have_our_template(tmp_path):
    tokenizer = Tokenizer.load(make_tokenizer(tmp_path))
    assert tokenizer.template == ours(tokenizer.vocab_size)
    assert tokenizer.template.n_ordinary == tokenizer.vocab_size - 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masking", [MaskingSettings("span", mask=0.5, random=0.5, keep=0), MaskingSettings("token")])
def test_samples_have_the_templates_pairs_and_masks(kind, masking, tmp_path):
    KINDS[kind]().save_pretrained(tmp_path / "t")
    template = Tokenizer.load(str(tmp_path / "t")).template
    corpus = make_encoded(tmp_path / "c", vocab_size=template.size, template=template, unk_share=0.1)
    assert EncodedCorpus.open(corpus.path).template == template
    plan = StreamPlan(corpus, seed=3, global_batch_size=32, world_size=1, accumulation=2, masking=masking)
    n_masked, drawn = 0, set()
    for batch in micro_batches(plan, 0, 0, 6):
        assert batch.input_ids.dtype == template.dtype
        before = batch.input_ids.astype(np.int64)
        before.reshape(-1)[batch.masked_index] = batch.masked_labels
        assert template.is_ordinary(batch.masked_labels).all()
        shown = batch.input_ids.reshape(-1)[batch.masked_index]
        drawn |= set(shown[shown != template.mask].tolist())
        n_masked += int((shown == template.mask).sum())
        for ids, types, length in zip(before, batch.segment_ids, batch.lengths.tolist(), strict=True):
            check_sample(template, ids[:length].tolist(), types[:length].tolist())
            assert (ids[length:] == template.pad).all() and not types[length:].any()
    assert n_masked > 50 and drawn <= set(template.ordinary.tolist())


def check_sample(template: Template, ids: list[int], types: list[int]) -> None:
    first, middle, end = len(template.prefix), list(template.middle), list(template.end)
    assert tuple(ids[:first]) == template.prefix and ids[-len(end) :] == end
    around = {*template.prefix, *middle, *end}
    inside = [i for i in range(first, len(ids) - len(end)) if ids[i] in around]
    assert inside == [] or ([ids[i] for i in inside] == middle and inside[-1] - inside[0] == len(middle) - 1)
    second = inside[-1] + 1 if inside and template.has_types else len(ids)
    assert types == [0] * second + [1] * (len(ids) - second)


def fault(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        Tokenizer.load(str(folder))
    return str(caught.value)


def test_faults_are_named_with_the_remedy(tmp_path):
    assert "no such tokenizer folder" in fault(tmp_path / "none")
    (tmp_path / "slow").mkdir()
    assert "no tokenizer.json" in fault(tmp_path / "slow")
    (tmp_path / "slow" / "sentencepiece.bpe.model").write_bytes(b"x")
    message = fault(tmp_path / "slow")
    assert "a slow tokenizer alone (sentencepiece.bpe.model" in message and "save_pretrained" in message
    edits = {
        "has no mask token": lambda spec, config: (
            config.pop("mask_token"),
            spec["added_tokens"].remove(next(t for t in spec["added_tokens"] if t["content"] == "[MASK]")),
        ),
        "puts no special tokens around texts": lambda spec, config: spec.update(post_processor=None),
        "tokenizer.json: not a readable tokenizer": lambda spec, config: spec.pop("model"),
    }
    for number, (message, edit) in enumerate(edits.items()):
        folder = tmp_path / str(number)
        bert().save_pretrained(folder)
        spec, config = (json.loads((folder / f).read_text()) for f in ("tokenizer.json", "tokenizer_config.json"))
        edit(spec, config)
        (folder / "tokenizer.json").write_text(json.dumps(spec))
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        assert message in fault(folder), message
