"""The pages of twilbert-evaluate: what they promise to show, and that texts of others stay texts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.evaluation.evaluation_world import WORDS, make_world
from tests.report.parsing import parsed, shows_texts_as_they_are
from twilbert.evaluation import page
from twilbert.evaluation.pairs import MaskedWord, PairScores, SamplePredictions, SampleScores
from twilbert.evaluation.scores import evaluate_pairs, evaluate_texts
from twilbert.model.special_tokens import CLS, MASK, SEP


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(1)> &lt;/span> sol"


def test_the_report_shows_the_pairs_and_escapes_them(world, tmp_path):
    folder, _, _ = world
    rows = [f"{i}\t{HOSTILE} {w}\t{i}9\tluna {w} mar pan vino\n" for i, w in enumerate(WORDS)]
    (tmp_path / "raw.tsv").write_text("".join(rows))
    page_file = tmp_path / "page.html"
    evaluate_pairs(str(folder / "random"), str(tmp_path / "raw.tsv"), report=str(page_file), n_samples=5, seed=1)
    page = page_file.read_text()
    assert page.count("<article") == 5 and page.count("Tweet, then reply") == page.count("Reply, then tweet") == 5
    for promised in ("[MASK]", "Calibration", "Confusion", "By position", "By how often", "% sure", "Perplexity"):
        assert promised in page, promised
    assert page.count(" ◂</bdi>") >= 10  # the truth among the predictions of every masked word
    parsed(page)  # well-formed, no script, nothing to fetch
    assert "The run" not in page  # this model lies in no run


def test_the_report_shows_the_runs_curves(world, tmp_path, capsys):
    folder, _, _ = world
    run = tmp_path / "run"
    for model in (run / "model", run / "checkpoint-000002" / "model"):
        model.parent.mkdir(parents=True, exist_ok=True)
        model.symlink_to(folder / "random")
    rows = [{"step": 1, "train/mlm_loss": 5.0}, {"step": 2, "train/mlm_loss": 4.5}, {"step": 2, "valid/mlm_loss": 4.8}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "tra')
    for model in (run, run / "checkpoint-000002"):
        evaluate_pairs(str(model), str(folder / "corpus"), report=str(tmp_path / "page.html"), n_samples=1)
        assert "The run" in (tmp_path / "page.html").read_text()
    (run / "metrics.jsonl").write_text("no json\n")
    evaluate_pairs(str(run), str(folder / "corpus"), report=str(tmp_path / "page.html"), n_samples=1)
    assert "The run" not in (tmp_path / "page.html").read_text()
    assert "metrics.jsonl: line 1 damaged, skipped" in capsys.readouterr().err


def test_the_report_of_texts_shows_them_token_by_token(world, tmp_path):
    folder, _, _ = world
    (tmp_path / "texts.txt").write_text(f"{HOSTILE}\nsol y mar\n\n")
    page_file = tmp_path / "page.html"
    evaluate_texts(str(folder / "random"), str(tmp_path / "texts.txt"), report=str(page_file))
    page = page_file.read_text()
    assert page.count("<article") == 2 and "--shade" in page
    parsed(page)


def test_texts_and_tokens_are_shown_as_they_are():
    """Whatever a text, a token, a path or an order's row holds, in each of the three pages."""
    words = tuple(
        MaskedWord(i, 7, shown, ((7, 0.5), (8, 0.25)) if i % 2 else ((8, 0.5),), 0.01, 1 if i % 2 else 30)
        for i, shown in ((1, MASK), (2, 7), (3, 9))
    )
    samples = [SamplePredictions(i, (CLS, 7, 7, 7, 8, SEP), words, i % 2, 0.75) for i in (0, 1)]
    labels, shares = np.array([0, 1]), np.array([0.25, 0.75])
    arrays = SampleScores(*(np.array([0, 1]) for _ in range(4)), np.ones(2), labels, shares, np.ones(2))
    names = (
        "mlm_loss mlm_loss_at_mask mlm_perplexity mlm_perplexity_at_mask mlm_accuracy mlm_accuracy_at_mask rop_loss "
    )
    names += "rop_accuracy unigram_loss_at_mask context_free_loss log_likelihood_per_token log_likelihood_per_text "
    names += "pseudo_perplexity original_log_likelihood"
    counts = "pairs singles n_masked n_at_mask texts tokens empty rop_correct rows"
    numbers = dict.fromkeys(names.split(), 0.5) | dict.fromkeys(counts.split(), 2)

    def pairs(text: str) -> str:
        scores = numbers | {"model": text, "data": text, "frequencies": text}
        evaluation = page.PairEvaluation(scores, PairScores(10, 8), arrays, np.ones(10, np.int64), samples, [])
        return page.of_pairs(evaluation, lambda token: text)

    def texts(text: str) -> str:
        line = {"row": 1, "per_token": -2.0, "pieces": [f"▁{text}", text], "log_likelihoods": [-1.0, -30.0]}
        return page.of_texts(numbers | {"model": text, "data": text}, np.array([-4.0]), np.array([2]), [line], [])

    def orders(text: str) -> str:
        lines = [{"first": text, "second": text, "label": 1, "reply_second": 0.25}]
        return page.of_orders(numbers | {"model": text, "data": text}, labels, shares, lines, [])

    shows_texts_as_they_are(pairs, 35)
    shows_texts_as_they_are(texts, 4)
    shows_texts_as_they_are(orders, 4)
