"""Evaluation: scores of known predictors, the baselines without context, inputs of every kind."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from tests.make_encoded import make_corpus
from twilbert import evaluate as verb
from twilbert import inference
from twilbert.data.heldout import read_pairs, token_counts
from twilbert.data.objectives import N_SPECIAL, MaskingSettings
from twilbert.data.tokenizer import Tokenizer
from twilbert.errors import UsageError
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.model.transformers_api import save_model_folder
from twilbert.vocab import vocab

WORDS = ["sol", "luna", "mar", "río", "gato", "perro", "casa", "calle", "vino", "pan", "hoy", "ayer", "burla", "url"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A corpus of random words, a tokenizer, and a model that gives every word the same chance."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)

    def text() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(3, 9)))

    def rows(count: int) -> list[tuple[str, str | None]]:
        return [(text(), None if rng.random() < 0.2 else text()) for _ in range(count)]

    corpus = make_corpus(folder / "corpus", train=rows(300), valid=rows(80))
    vocab(str(folder / "corpus"), str(folder / "tokenizer"), vocab_size=350)
    tokenizer = Tokenizer.load(str(folder / "tokenizer"))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, max_len=32, hidden_size=16, embedding_size=16, n_encoders=1, n_heads=2,
        attention_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = PretrainingModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("masked_lm", "reply_order")):
                parameter.zero_()
    save_model_folder(str(folder / "model"), config, model.state_dict(), str(folder / "tokenizer"))
    return folder, corpus, tokenizer


def test_a_model_that_knows_nothing_scores_so(world):
    folder, _, tokenizer = world
    scores = verb.evaluate(str(folder / "model"), str(folder / "corpus"))
    assert scores["mlm_loss"] == pytest.approx(math.log(tokenizer.vocab_size), abs=1e-5)
    assert scores["mlm_loss_at_mask"] == pytest.approx(math.log(tokenizer.vocab_size), abs=1e-5)
    assert scores["rop_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert scores["pairs"] + scores["singles"] == 80
    assert scores["n_rop"] == 2 * scores["pairs"]
    assert 0.7 < scores["n_at_mask"] / scores["n_masked"] < 0.9


def test_baselines_are_those_of_the_train_splits_frequencies(world):
    folder, _, tokenizer = world
    counts = token_counts(read_pairs(str(folder / "corpus"), "train"), tokenizer)
    assert counts[:N_SPECIAL].sum() == 0
    share = (counts[N_SPECIAL:] + 1) / (counts[N_SPECIAL:] + 1).sum()
    entropy = -(counts[N_SPECIAL:] / counts.sum() * np.log(share)).sum()
    scores = verb.evaluate(str(folder / "model"), str(folder / "corpus"))
    assert scores["unigram_loss_at_mask"] == pytest.approx(entropy, abs=0.1)  # words are drawn independently
    assert scores["label_entropy_at_mask"] <= scores["unigram_loss_at_mask"] + 1e-9
    assert scores["context_free_loss"] < scores["unigram_loss_at_mask"]  # it also sees kept and random words


def test_the_context_free_predictor_follows_bayes():
    settings = MaskingSettings()
    counts = np.zeros(N_SPECIAL + 3, np.int64)
    counts[N_SPECIAL:] = [9, 4, 0]
    reference = verb._Frequencies(counts, settings)
    u = np.array([10, 5, 1]) / 16

    class Batch:
        input_ids = np.array([[3, 5, 6, 2, 4]])
        masked_index = np.array([1, 2, 3])
        masked_labels = np.array([5, 5, 6])  # 5 kept; 6 shown in place of 5; 6 under [MASK]

    list(reference.seen([Batch()]))
    kept = u[0] * (0.1 + 0.1 / 3) / (0.1 * u[0] + 0.1 / 3)
    replaced = u[0] * (0.1 / 3) / (0.1 * u[1] + 0.1 / 3)
    expected = -(math.log(kept) + math.log(replaced) + math.log(u[1])) / 3
    assert reference.losses()["context_free_loss"] == pytest.approx(expected)
    assert reference.losses()["unigram_loss_at_mask"] == pytest.approx(-math.log(u[1]))


def test_raw_pairs_and_their_corpus_score_alike(world, tmp_path):
    folder, _, _ = world
    rows = [
        f"{i}\t{t}\t\t\n" if r is None else f"{i}\t{t}\t{i}r\t{r}\n"
        for tweets, replies in read_pairs(str(folder / "corpus"))
        for i, (t, r) in enumerate(zip(tweets, replies, strict=True))
    ]
    (tmp_path / "raw.tsv").write_text("ORIG_ID\tORIG_TEXT\tREPLY_ID\tREPLY_TEXT\n" + "".join(rows))
    kept, raw = (
        verb.evaluate(str(folder / "model"), data, train=str(folder / "corpus"))
        for data in (str(folder / "corpus"), str(tmp_path / "raw.tsv"))
    )
    for key in ("n_masked", "n_rop", "mlm_loss", "unigram_loss_at_mask", "context_free_loss"):
        assert raw[key] == pytest.approx(kept[key]), key


def test_the_command_prints_a_table_and_writes_json(world, tmp_path, capsys):
    folder, _, _ = world
    out = tmp_path / "scores.json"
    assert verb.main([str(folder / "model"), str(folder / "corpus"), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "MLM loss at [MASK] positions" in printed
    assert json.loads(out.read_text())["rop_accuracy"] == pytest.approx(0.5, abs=0.5)


def test_models_are_found_by_run_checkpoint_and_name(world, tmp_path):
    folder, _, _ = world
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "model").symlink_to(folder / "model")
    for name in (str(run), str(run / "model")):
        assert inference.find_model(name) == str(run / "model")
    assert inference.find_model("a", runs=str(tmp_path / "runs")) == str(run / "model")
    with pytest.raises(UsageError, match="no model; looked for"):
        inference.find_model("nothing")


@pytest.mark.parametrize("data", ["missing.tsv", "empty.tsv"])
def test_bad_data_is_one_message(world, tmp_path, data, capsys):
    folder, _, _ = world
    (tmp_path / "empty.tsv").write_text("")
    assert verb.main([str(folder / "model"), str(tmp_path / data)]) == 2
    assert data in capsys.readouterr().err
