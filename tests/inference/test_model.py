"""A loaded model: the same numbers as its parts give, in the order and form of the texts, whatever shares a batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pytest
import torch

import twilbert
from tests.make_models import CONFIG, make_classifier, make_pretrained
from twilbert.data.tables import texts
from twilbert.errors import TwilbertError, UsageError
from twilbert.hub.folder import ModelFolder
from twilbert.inference import batch
from twilbert.inference.model import Prediction
from twilbert.model.calibration import Calibration, ConfidenceCut
from twilbert.model.classifier import HeadConfig
from twilbert.model.problems import MULTI, REGRESSION

TEXTS = [
    "hola",
    "que tal no si w1 w2 w3",
    "w1",
    "@ana RT hola https://t.co/x",
    "!",
    "w5 w6 !",
    "hola hola hola hola si",
]


@pytest.fixture
def pretrained(tmp_path) -> str:
    return make_pretrained(tmp_path)


@pytest.fixture
def classifier(tmp_path) -> str:
    return make_classifier(tmp_path, HeadConfig(("N", "NEU", "P")))


def alone(folder: str, ids: list[int]) -> list[float]:
    """A text's probabilities, computed without batches or cleaning."""
    model = ModelFolder.open(folder).load()
    with torch.no_grad():
        row = torch.tensor([[3, *ids, 4]])
        return model.eval().probabilities(model(row, torch.zeros_like(row)))[0].tolist()


def test_probabilities_are_those_of_each_text_alone(classifier):
    model = twilbert.load(classifier, "cpu", "fp32")
    encoded = {
        "hola": [7],
        "que tal no si w1 w2 w3": [9, 10, 11, 12, 15, 16, 17],
        "@ana RT hola https://t.co/x": [5, 7, 6],
    }
    got = model.predict(TEXTS)
    for text, ids in encoded.items():
        one = got[TEXTS.index(text)]
        assert list(one.probabilities.values()) == pytest.approx(alone(classifier, ids), abs=1e-6)
        assert one.label == max(one.probabilities, key=lambda label: one.probabilities[label])


def test_a_str_a_list_and_a_series_give_the_same(classifier):
    model = twilbert.load(classifier, "cpu", "fp32")
    listed = model.predict(TEXTS)
    one = model.predict(TEXTS[1])
    assert one.label == listed[1].label
    assert list(one.probabilities.values()) == pytest.approx(list(listed[1].probabilities.values()), abs=1e-6)
    frame = model.predict(pandas.Series(TEXTS, index=range(10, 17)))
    assert frame.index.tolist() == list(range(10, 17))
    assert frame["predicted"].tolist() == [p.label for p in listed]
    assert frame["p_P"].tolist() == pytest.approx([p.probabilities["P"] for p in listed], abs=1e-6)
    assert model.predict([]) == []


@pytest.mark.parametrize("nothing", ["", "  ", "…", "&nbsp;", "RT", "\u200b\u200d"])
def test_a_text_of_which_nothing_is_left_has_no_label(nothing: str, tmp_path):
    model = twilbert.load(make_classifier(tmp_path, HeadConfig(("N", "NEU", "P"))), "cpu", "fp32")
    assert model.predict(nothing) == Prediction(None, {})
    assert [one.label is None for one in model.predict(["hola", nothing])] == [False, True]
    assert model.predict(pandas.Series([nothing, "hola"]))["p_N"].isna().tolist() == [True, False]
    for pooling in ("cls", "tokens"):
        first, second = model.embed(["hola", nothing], pooling)
        assert np.isfinite(first).all() and np.isnan(second).all()
    chunk = texts.checked(pyarrow.table({"text": ["hola", nothing]}), ["hola", nothing], None, {})
    table = batch.results(model, chunk, batch.Job("m", None, "fp32", None, ""))
    assert table["error"].to_pylist() == [None, "no text"] and table["predicted"].to_pylist()[1] is None
    pair = model.predict(["hola", "hola", nothing], ["hola", nothing, "hola"])
    assert [one.label is None for one in pair] == [False, True, True]


def test_several_labels_and_a_regression(tmp_path):
    (tmp_path / "several").mkdir()
    several = twilbert.load(make_classifier(tmp_path / "several", HeadConfig(("a", "b", "c"), problem=MULTI)))
    for one in several.predict(TEXTS):
        assert one.label == tuple(name for name, p in one.probabilities.items() if p >= 0.5)
    (tmp_path / "value").mkdir()
    value = twilbert.load(
        make_classifier(tmp_path / "value", HeadConfig(("score",), problem=REGRESSION)), precision="fp32"
    )
    values = [one.label for one in value.predict(TEXTS)]
    assert len(set(values)) > 3 and all(isinstance(v, float) for v in values)


def test_pairs_change_the_answer_and_must_be_as_many(classifier):
    model = twilbert.load(classifier, precision="fp32")
    paired = model.predict(["hola"], ["que tal"])
    assert paired[0].probabilities != model.predict(["hola"])[0].probabilities
    with pytest.raises(UsageError, match="2 texts and 1 pairs"):
        model.predict(["hola", "si"], ["que"])


def test_embeddings_are_the_encoders_hidden_states(pretrained):
    network = ModelFolder.open(pretrained).load_pretrained()
    row = torch.tensor([[3, 9, 10, 4]])
    with torch.no_grad():
        hidden = network.eval().encoder(row, torch.zeros_like(row))[0].numpy()
    model = twilbert.load(pretrained, "cpu")
    texts = ["hola hola si no w1 w2 w3", "que tal", "w1"]
    assert np.abs(model.embed(texts, "tokens")[1] - hidden).max() < 1e-5
    parts = {"cls": hidden[0], "avg": hidden.mean(0), "max": hidden.max(0)}
    for pooling, expected in parts.items():
        assert np.abs(model.embed(texts, pooling)[1] - expected).max() < 1e-5
    assert np.abs(model.embed("que tal", "concat") - np.concatenate(list(parts.values()))).max() < 1e-5
    frame = model.embed(pandas.Series(texts, index=list("abc")), "avg")
    assert frame.shape == (3, CONFIG.hidden_size) and frame.index.tolist() == list("abc")


def test_fill_mask_names_the_most_probable_tokens(pretrained):
    model = twilbert.load(pretrained, "cpu")
    (first, second) = model.fill_mask("hola [MASK] que [MASK]!", top=3)
    assert len(first) == len(second) == 3
    network = ModelFolder.open(pretrained).load_pretrained()
    row = torch.tensor([[3, 7, 2, 9, 2, 13, 4]])
    with torch.no_grad():
        shares = network.eval().masked_lm(network.encoder(row, torch.zeros_like(row))[0, 2]).softmax(-1)
    assert first[0] == (model.tokenizer.token(int(shares.argmax())), pytest.approx(float(shares.max()), abs=1e-5))
    with pytest.raises(UsageError, match=r"no \[MASK\]"):
        model.fill_mask("hola")


def test_what_a_model_cannot_do_is_said(pretrained, tmp_path):
    with pytest.raises(UsageError, match="has no labels"):
        twilbert.load(pretrained).predict("hola")
    (tmp_path / "tuned").mkdir()
    with pytest.raises(UsageError, match="fills no masks"):
        twilbert.load(make_classifier(tmp_path / "tuned", HeadConfig(("a", "b")))).fill_mask("[MASK]")
    for wrong, message in (
        (None, "a NoneType"),
        ([1], "text 0 is 1, a int"),
        (["a", None], "text 1 is None.*leave missing"),
    ):
        with pytest.raises(UsageError, match=message):
            twilbert.load(pretrained).embed(wrong)
    with pytest.raises(UsageError, match="pooling 'mean'"):
        twilbert.load(pretrained).embed("hola", "mean")
    with pytest.raises(UsageError, match="device 'nonsense'"):
        twilbert.load(pretrained, "nonsense")
    with pytest.raises(UsageError, match="precision 'fp8'"):
        twilbert.load(pretrained, precision="fp8")
    with pytest.raises(UsageError, match="no model; looked for"):
        twilbert.load(str(tmp_path / "nowhere"))


def test_a_tokenizer_of_another_model_is_refused(pretrained, tmp_path):
    (tmp_path / "vocab2").write_text("\n".join(["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", "hola"]))
    from twilbert.data.tokenizer.wordpiece import save_wordpiece_folder

    save_wordpiece_folder(str(tmp_path / "vocab2"), str(tmp_path / "other"))
    for name in ("tokenizer.json", "twilbert_tokenizer.json"):
        (tmp_path / "model" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(TwilbertError, match="do not belong together"):
        twilbert.load(pretrained)


def test_bf16_labels_are_close_and_embeddings_stay_exact(classifier):
    exact, half = twilbert.load(classifier, precision="fp32"), twilbert.load(classifier, precision="bf16")
    difference = np.abs(exact.scores(TEXTS) - half.scores(TEXTS)).max()
    assert 0 < difference < 0.1
    assert np.array_equal(twilbert.load(classifier).embed(TEXTS), exact.embed(TEXTS))


def test_importing_the_package_stays_light():
    code = "import sys, twilbert; print([m for m in ('torch', 'numpy', 'pyarrow', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_calibration_travels_with_the_head_and_can_be_left_out(tmp_path):
    cuts = (ConfidenceCut(0.6, 0.95, 0.2), ConfidenceCut(0.4, 0.8, 0.7))
    head = HeadConfig(("N", "P"), calibration=Calibration(2.0, (0.8, 0.2), cuts))
    folder = make_classifier(tmp_path, head)
    model, plain = twilbert.load(folder, "cpu", "fp32"), twilbert.load(folder, "cpu", "fp32", calibrated=False)
    assert model.head == head
    scores, raw = model.scores(TEXTS), plain.scores(TEXTS)
    odds, raw_odds = (np.log(p[:, 1] / p[:, 0]) for p in (scores, raw))
    np.testing.assert_allclose(odds, raw_odds / 2, atol=1e-5)
    assert [one.label for one in model.predictions(scores)] == ["P" if p >= 0.2 else "N" for p in scores[:, 1]]
    assert [one.label for one in plain.predictions(raw)] == ["P" if p > 0.5 else "N" for p in raw[:, 1]]
    of_answers = np.where(scores[:, 1] >= 0.2, scores[:, 1], scores[:, 0])  # not the most probable label's
    assert model.answered(scores, 0.9).tolist() == (of_answers >= np.float32(0.6)).tolist()
    with pytest.raises(UsageError, match=r"a precision of 0\.99 was not reached on dev; the surest rows had 0\.950"):
        model.answered(scores, 0.99)
    with pytest.raises(UsageError, match="does not say how precise it was on dev"):
        plain.answered(raw, 0.9)


@pytest.mark.parametrize(
    "calibration", [3, {"temperature": 0}, {"thresholds": [0.5]}, {"cuts": [{"precision": 1}]}, {"other": 1}]
)
def test_a_calibration_of_another_shape_is_refused(tmp_path, calibration):
    folder = Path(make_classifier(tmp_path, HeadConfig(("N", "P"))))
    config = json.loads((folder / "config.json").read_text())
    config["head"]["calibration"] = calibration
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TwilbertError, match="classification head: calibration"):
        twilbert.load(str(folder), "cpu", "fp32")


def test_a_precision_is_refused_where_no_confidence_is_known(tmp_path):
    model = twilbert.load(make_classifier(tmp_path, HeadConfig(("score",), REGRESSION)), "cpu", "fp32")
    chunk = texts.checked(pyarrow.table({"text": ["hola"]}), ["hola"], None, {})
    job = batch.Job("m", None, "fp32", None, "", min_precision=0.9)
    with pytest.raises(UsageError, match="does not say how precise it was on dev"):
        batch.results(model, chunk, job)
