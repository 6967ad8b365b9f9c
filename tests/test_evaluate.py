"""Evaluation: scores of known predictors, the baselines without context, inputs of every kind."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch

from tests.evaluation.evaluation_world import make_world
from twilbert import evaluate as verb
from twilbert.data.cleaning import TWILBERT
from twilbert.data.stream.masking import MaskingSettings
from twilbert.data.stream.stream import evaluation_batches
from twilbert.data.tokenizer.template import ours
from twilbert.errors import TwilbertError, UsageError
from twilbert.evaluation import scoring
from twilbert.evaluation.data import chosen_samples, encode_pairs, read_pairs, token_counts
from twilbert.evaluation.pairs import Frequencies, PairScores, predict_masked
from twilbert.evaluation.scores import evaluate_orders, evaluate_pairs, evaluate_texts
from twilbert.hub.folder import ModelFolder, find_model
from twilbert.model.special_tokens import N_SPECIAL


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_a_model_that_knows_nothing_scores_so(world):
    folder, _, tokenizer = world
    scores = evaluate_pairs(str(folder / "model"), str(folder / "corpus"))
    assert scores["mlm_loss"] == pytest.approx(math.log(tokenizer.vocab_size), abs=1e-5)
    assert scores["mlm_loss_at_mask"] == pytest.approx(math.log(tokenizer.vocab_size), abs=1e-5)
    assert scores["rop_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert scores["pairs"] + scores["singles"] == 80
    assert scores["n_rop"] == 2 * scores["pairs"]
    assert 0.7 < scores["n_at_mask"] / scores["n_masked"] < 0.9


def test_baselines_are_those_of_the_train_splits_frequencies(world):
    folder, _, tokenizer = world
    counts = token_counts(read_pairs(str(folder / "corpus"), TWILBERT, "train"), tokenizer)
    assert counts[:N_SPECIAL].sum() == 0
    share = (counts[N_SPECIAL:] + 1) / (counts[N_SPECIAL:] + 1).sum()
    entropy = -(counts[N_SPECIAL:] / counts.sum() * np.log(share)).sum()
    scores = evaluate_pairs(str(folder / "model"), str(folder / "corpus"))
    assert scores["unigram_loss_at_mask"] == pytest.approx(entropy, abs=0.1)  # words are drawn independently
    assert scores["label_entropy_at_mask"] <= scores["unigram_loss_at_mask"] + 1e-9
    assert scores["context_free_loss"] < scores["unigram_loss_at_mask"]  # it also sees kept and random words


def test_the_context_free_predictor_follows_bayes():
    settings = MaskingSettings()
    counts = np.zeros(N_SPECIAL + 3, np.int64)
    counts[N_SPECIAL:] = [9, 4, 0]
    reference = Frequencies(counts, settings, ours(N_SPECIAL + 3))
    u = np.array([10, 5, 1]) / 16

    class Batch:
        input_ids = np.array([[3, 5, 6, 2, 4]])
        masked_index = np.array([1, 2, 3])
        masked_labels = np.array([5, 5, 6])  # 5 kept; 6 shown in place of 5; 6 under [MASK]

    list(reference.counted([Batch()]))
    unchanged = u[0] * (0.1 + 0.1 / 3) / (0.1 * u[0] + 0.1 / 3)
    replaced = u[0] * (0.1 / 3) / (0.1 * u[1] + 0.1 / 3)
    expected = -(math.log(unchanged) + math.log(replaced) + math.log(u[1])) / 3
    assert reference.losses()["context_free_loss"] == pytest.approx(expected)
    assert reference.losses()["unigram_loss_at_mask"] == pytest.approx(-math.log(u[1]))


def test_raw_pairs_and_their_corpus_score_alike(world, tmp_path):
    folder, _, _ = world
    rows = [
        f"{i}\t{t}\t\t\n" if r is None else f"{i}\t{t}\t{i}r\t{r}\n"
        for tweets, replies in read_pairs(str(folder / "corpus"), TWILBERT)
        for i, (t, r) in enumerate(zip(tweets, replies, strict=True))
    ]
    (tmp_path / "raw.tsv").write_text("ORIG_ID\tORIG_TEXT\tREPLY_ID\tREPLY_TEXT\n" + "".join(rows))
    unchanged, raw = (
        evaluate_pairs(str(folder / "model"), data, train=str(folder / "corpus"))
        for data in (str(folder / "corpus"), str(tmp_path / "raw.tsv"))
    )
    for key in ("n_masked", "n_rop", "mlm_loss", "unigram_loss_at_mask", "context_free_loss"):
        assert raw[key] == pytest.approx(unchanged[key]), key


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
        assert find_model(name) == str(run / "model")
    assert find_model("a", runs=str(tmp_path / "runs")) == str(run / "model")
    with pytest.raises(UsageError, match="no model; looked for"):
        find_model("nothing")


@pytest.mark.parametrize("data", ["missing.tsv", "empty.tsv"])
def test_bad_data_is_one_message(world, tmp_path, data, capsys):
    folder, _, _ = world
    (tmp_path / "empty.tsv").write_text("")
    assert verb.main([str(folder / "model"), str(tmp_path / data)]) == 2
    assert data in capsys.readouterr().err


def test_perplexity_is_the_losses_exponential(world):
    folder, _, tokenizer = world
    scores = evaluate_pairs(str(folder / "model"), str(folder / "corpus"))
    assert scores["mlm_perplexity"] == pytest.approx(tokenizer.vocab_size, rel=1e-5)
    assert scores["mlm_perplexity_at_mask"] == pytest.approx(math.exp(scores["mlm_loss_at_mask"]))


@pytest.fixture
def encoded(world, tmp_path):
    """The random model, and the corpus' held-out pairs encoded for it."""
    folder, _, tokenizer = world
    network = ModelFolder.open(str(folder / "random")).load_pretrained()
    pairs = encode_pairs(read_pairs(str(folder / "corpus"), TWILBERT), tokenizer, 32, str(tmp_path / "scratch"))
    return network.eval(), pairs


def _batches(pairs):
    return evaluation_batches(pairs, "valid", 0, 1, 300, MaskingSettings(), 3)


def test_scores_one_by_one_add_up_to_trainings_sums(encoded):
    network, pairs = encoded
    device = torch.device("cpu")
    gathered = PairScores(network.config.vocab_size, network.config.n_positions)
    gathered.run(network, _batches(pairs), device)
    sums = scoring.evaluate(network, _batches(pairs), device).tolist()
    assert gathered.sums == pytest.approx(sums, rel=1e-5)
    samples = gathered.samples()
    totals = scoring.sums_named(dict(zip(scoring._SUMS, sums, strict=True)))
    assert totals == sums
    named = dict(zip(scoring._SUMS, sums, strict=True))
    assert samples.masked.sum() == named["n_masked"] and samples.correct.sum() == named["mlm_correct"]
    assert samples.mlm_loss_sum.sum() == pytest.approx(named["mlm_loss_sum"], rel=1e-5)
    assert samples.is_scored.sum() == named["n_rop"] > 0
    assert (np.diff(samples.ids) > 0).all()
    for counts in (gathered.by_token, gathered.by_position):
        assert counts.sum(1).tolist() == [named["n_at_mask"], named["mlm_correct_at_mask"]]
    assert gathered.by_token[0, :N_SPECIAL].sum() == gathered.by_position[0, 0] == 0


def test_chosen_samples_are_masked_as_in_the_evaluation(encoded):
    network, pairs = encoded
    evaluated = {}
    for batch in _batches(pairs):
        row, position = np.divmod(batch.masked_index, batch.input_ids.shape[1])
        for i, sample in enumerate(batch.sample_ids.tolist()):
            mine = row == i
            shown = batch.input_ids[i, position[mine]]
            evaluated[sample] = list(zip(position[mine], batch.masked_labels[mine], shown, strict=True))
    rows = [0, 7, 41, 79]
    scored = predict_masked(network, chosen_samples(pairs, "valid", rows, MaskingSettings(), 3), torch.device("cpu"))
    assert {one.sample_id // 2 for one in scored} == set(rows)
    assert [one.sample_id for one in scored] == sorted(one.sample_id for one in scored)
    for one in scored:
        assert [(w.position, w.truth, w.shown) for w in one.words] == evaluated[one.sample_id]
        for word in one.words:
            assert one.ids[word.position] == word.truth
            shares = [share for _, share in word.top]
            assert shares == sorted(shares, reverse=True) and len(shares) == 5
            if word.truth_rank <= 5:
                assert word.top[word.truth_rank - 1] == (word.truth, pytest.approx(word.truth_probability))
            else:
                assert word.truth_probability <= shares[-1]


def test_examples_of_pairs_hold_every_sample_with_its_texts(world, tmp_path):
    folder, _, _ = world
    out = tmp_path / "examples.jsonl"
    scores = evaluate_pairs(str(folder / "random"), str(folder / "corpus"), examples=str(out))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 2 * scores["pairs"] + scores["singles"]
    texts = [pair for part in read_pairs(str(folder / "corpus"), TWILBERT) for pair in zip(*part, strict=True)]
    for line in lines:
        tweet, reply = texts[line["row"] - 1]
        expected = {"tweet": (tweet, None), "tweet, reply": (tweet, reply), "reply, tweet": (reply, tweet)}
        assert (line["first"], line["second"]) == expected[line["order"]]
        assert (line["rop_correct"] is None) == (reply is None)
    assert sum(line["masked"] for line in lines) == scores["n_masked"]
    loss = sum(line["mlm_loss"] * line["masked"] for line in lines) / scores["n_masked"]
    assert loss == pytest.approx(scores["mlm_loss"])
    scored = [line["rop_correct"] for line in lines if line["rop_correct"] is not None]
    assert np.mean(scored) == pytest.approx(scores["rop_accuracy"])


def test_a_model_without_a_reply_head_is_scored_on_words_alone(world, tmp_path):
    folder, _, _ = world
    page = tmp_path / "page.html"
    out = tmp_path / "lines.jsonl"
    scores = evaluate_pairs(
        str(folder / "mlm only"), str(folder / "corpus"), report=str(page), examples=str(out), n_samples=2
    )
    assert "rop_accuracy" not in scores and scores["n_rop"] == 0
    assert "Sampled pairs" in page.read_text() and "Reply order" not in page.read_text()
    assert all(json.loads(line)["reply_second"] is None for line in out.read_text().splitlines())
    (tmp_path / "rows.tsv").write_text("sol y mar\tluna\t1\n")
    with pytest.raises(TwilbertError, match="no reply-order head"):
        evaluate_orders(str(folder / "mlm only"), str(tmp_path / "rows.tsv"))


def _naive_orders(network, tokenizer, rows):
    for first, second, _ in rows:
        a, b = tokenizer.encode(first), tokenizer.encode(second)
        ids = torch.tensor([[3, *a, 4, *b, 4]])
        segments = torch.tensor([[0] * (len(a) + 2) + [1] * (len(b) + 1)])
        with torch.no_grad():
            yield float(network.reply_order(network.encoder(ids, segments)[:, 0]).softmax(-1)[0, 1])


def test_given_orders_are_judged_as_they_stand(world, tmp_path):
    folder, _, tokenizer = world
    network = ModelFolder.open(str(folder / "random")).load_pretrained()
    rows = [("sol y mar", "luna", 1), ("luna", "sol y mar", 0), ("gato perro casa", "pan", 1), ("vino", "hoy ayer", 0)]
    text = "".join(f"{a}\t{b}\t{label}\n" for a, b, label in rows)
    (tmp_path / "rows.tsv").write_text(text)
    (tmp_path / "header.tsv").write_text("FIRST\tSECOND\tLABEL\n" + text)
    out, page = tmp_path / "out.jsonl", tmp_path / "page.html"
    scores = evaluate_orders(str(folder / "random"), str(tmp_path / "rows.tsv"), examples=str(out), report=str(page))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    shares = list(_naive_orders(network.eval(), tokenizer, rows))
    assert [line["reply_second"] for line in lines] == pytest.approx(shares, abs=1e-5)
    right = [(share > 0.5) == bool(label) for share, (_, _, label) in zip(shares, rows, strict=True)]
    assert [line["correct"] for line in lines] == right
    assert (scores["rop_correct"], scores["rows"]) == (sum(right), 4)
    truth = [share if label else 1 - share for share, (_, _, label) in zip(shares, rows, strict=True)]
    assert scores["rop_loss"] == pytest.approx(-np.mean(np.log(truth)), abs=1e-5)
    assert evaluate_orders(str(folder / "random"), str(tmp_path / "header.tsv"))["rows"] == 4
    assert "Confusion" in page.read_text() and "gato perro casa" in page.read_text()


@pytest.mark.parametrize("line", ["sol\tluna", "sol\tluna\t2", "sol\t\t1", "sol\tluna\t1\tmar"])
def test_a_row_of_another_form_is_named(world, tmp_path, line, capsys):
    folder, _, _ = world
    (tmp_path / "rows.tsv").write_text(f"sol\tluna\t1\n{line}\n")
    assert verb.main([str(folder / "random"), str(tmp_path / "rows.tsv"), "--orders"]) == 2
    assert "line 2: expected FIRST, SECOND and 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--lm", "--train", "c"], ["--orders", "--sample", "s"], ["--samples", "-1"], ["--cleaning", "original"]]
)
def test_flags_that_do_not_go_together_are_refused(world, flags):
    folder, _, _ = world
    assert verb.main([str(folder / "model"), str(folder / "corpus"), *flags]) == 2


def test_texts_are_scored_by_line_and_empty_ones_counted(world, tmp_path, capsys):
    folder, _, tokenizer = world
    (tmp_path / "texts.txt").write_text("sol y mar\n\ngato @alguien https://t.co/x\n")
    out = tmp_path / "texts.jsonl"
    scores_file = tmp_path / "scores.json"
    arguments = [str(folder / "model"), str(tmp_path / "texts.txt"), "--lm"]
    assert verb.main([*arguments, "--examples", str(out), "--json", str(scores_file)]) == 0
    scores = json.loads(scores_file.read_text())
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["text"] for line in lines] == ["sol y mar", "", "gato user url"]
    assert (scores["texts"], scores["empty"]) == (2, 1)
    uniform = math.log(tokenizer.vocab_size)
    assert scores["log_likelihood_per_token"] == pytest.approx(-uniform, abs=1e-5)
    assert scores["pseudo_perplexity"] == pytest.approx(tokenizer.vocab_size, rel=1e-4)
    counts = [line["tokens"] for line in lines if line["tokens"]]
    assert scores["original_log_likelihood"] == pytest.approx(
        np.mean([-uniform * n / (n + 2) for n in counts]), abs=1e-5
    )
    assert all(line["tokens"] == len(line["pieces"]) == len(line["log_likelihoods"]) for line in lines)
    assert "P(X)" in capsys.readouterr().out


def test_a_bad_byte_costs_its_own_line_and_is_named(world, tmp_path, capsys):
    folder, _, _ = world
    lines = [b"sol y mar"] * 5_000
    lines[4_321] = "camión".encode("latin-1")
    lines[17] = b"gato\0mar"
    (tmp_path / "texts.txt").write_bytes(b"\n".join([*lines, "camión".encode()[:-2]]))  # cut inside a character
    scores = evaluate_texts(str(folder / "model"), str(tmp_path / "texts.txt"))
    assert (scores["texts"], scores["empty"]) == (4_998, 3)
    said = capsys.readouterr().err
    for line, reason in ((18, "a NUL byte"), (4_322, "not UTF-8"), (5_001, "not UTF-8")):
        assert f"texts.txt: line {line}: {reason}, skipped" in said


def test_damaged_curves_cost_no_scores(world, tmp_path, capsys):
    folder, _, _ = world
    shutil.copytree(folder / "model", tmp_path / "run" / "model")
    sound = [json.dumps({"step": step, "train/mlm_loss": 5.0 / step}) for step in (1, 2, 3)]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join([sound[0], "\0" * 40, *sound[1:], '{"step": 4, "tr']))
    (tmp_path / "texts.txt").write_text("sol y mar\n")
    page = tmp_path / "page.html"
    scores = evaluate_texts(str(tmp_path / "run" / "model"), str(tmp_path / "texts.txt"), report=str(page))
    assert scores["texts"] == 1 and page.stat().st_size > 1_000
    assert "metrics.jsonl: line 2 damaged, skipped" in capsys.readouterr().err


def test_texts_of_a_corpus_are_its_tweets_and_replies(world):
    folder, _, _ = world
    pairs = evaluate_pairs(str(folder / "model"), str(folder / "corpus"))
    scores = evaluate_texts(str(folder / "model"), str(folder / "corpus"))
    assert scores["texts"] == 2 * pairs["pairs"] + pairs["singles"]
    assert scores["tokens"] == pairs["tokens"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00broken"])
def test_texts_that_are_none_are_one_message(world, tmp_path, content, capsys):
    folder, _, _ = world
    (tmp_path / "texts.txt").write_bytes(content)
    out = tmp_path / "out.jsonl"
    assert verb.main([str(folder / "model"), str(tmp_path / "texts.txt"), "--lm", "--examples", str(out)]) in (1, 2)
    assert "texts.txt" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt"]  # nothing half-written
