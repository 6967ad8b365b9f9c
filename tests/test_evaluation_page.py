"""The pages of twilbert-evaluate: what they promise to show, and that texts of others stay texts."""

from __future__ import annotations

import json

import pytest

from tests.evaluation_world import WORDS, make_world
from tests.test_report import parsed
from twilbert.errors import TwilbertError
from twilbert.evaluation.scores import evaluate_pairs, evaluate_texts


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


def test_the_report_shows_the_runs_curves(world, tmp_path):
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
    with pytest.raises(TwilbertError, match=r"metrics\.jsonl: a line is no JSON"):
        evaluate_pairs(str(run), str(folder / "corpus"), report=str(tmp_path / "page.html"))


def test_the_report_of_texts_shows_them_token_by_token(world, tmp_path):
    folder, _, _ = world
    (tmp_path / "texts.txt").write_text(f"{HOSTILE}\nsol y mar\n\n")
    page_file = tmp_path / "page.html"
    evaluate_texts(str(folder / "random"), str(tmp_path / "texts.txt"), report=str(page_file))
    page = page_file.read_text()
    assert page.count("<article") == 2 and "--shade" in page
    parsed(page)
