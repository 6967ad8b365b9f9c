"""Pooling, probabilities and the folder of a fine-tuned model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.model.small import config
from twilbert.errors import TwilbertError, UsageError
from twilbert.hub.folder import ModelFolder, save_model_folder
from twilbert.model.classifier import POOLINGS, ClassificationModel, HeadConfig, pool
from twilbert.model.heads import PretrainingModel
from twilbert.model.problems import MULTI, REGRESSION
from twilbert.model.special_tokens import CLS, SEP

TEXT = {"remove_rt": True, "max_len": 16, "cleaning": "twilbert-1"}
# A pair, a text, nothing but special tokens; padded with ids that would show if they were read.
IDS = torch.tensor([[CLS, 7, 8, SEP, 9, SEP], [CLS, 10, 11, SEP, 12, 13], [CLS, SEP, 14, 15, 16, 17]])
LENGTHS = torch.tensor([6, 4, 2])
POOLED = {True: [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3], [0, 1]], False: [[1, 2, 4], [1, 2], [0, 1]]}


@pytest.mark.parametrize("special_tokens", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_takes_the_tokens_it_says(pooling: str, special_tokens: bool):
    hidden = torch.randn(3, 6, 5) - 4  # negative: a maximum that let padding's zeros in would show
    pooled = pool(hidden, LENGTHS, pooling, special_tokens, IDS)
    for row, positions in enumerate(POOLED[special_tokens]):
        own = hidden[row, positions]
        parts = {"cls": hidden[row, 0], "avg": own.mean(0), "max": own.amax(0)}
        expected = torch.cat(list(parts.values())) if pooling == "concat" else parts[pooling]
        torch.testing.assert_close(pooled[row], expected)


def test_a_mean_in_bf16_is_summed_in_fp32():
    hidden = (torch.rand(1, 256, 8) + 10).bfloat16()
    mean = pool(hidden, None, "avg")
    assert mean.dtype == torch.bfloat16
    torch.testing.assert_close(mean.float(), hidden.float().mean(1), rtol=2**-8, atol=0)


def test_leaving_special_tokens_out_takes_the_ids():
    with pytest.raises(ValueError, match="input_ids_BT"):
        pool(torch.zeros(1, 3, 2), None, "avg", special_tokens=False)
    with pytest.raises(ValueError, match="none of cls"):
        pool(torch.zeros(1, 3, 2), None, "sum")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_logits_do_not_depend_on_padding(pooling: str):
    model = ClassificationModel(config("memory"), HeadConfig(("a", "b"), pooling=pooling)).eval()
    together = model(IDS, torch.zeros_like(IDS), LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model(IDS[row : row + 1, :length], torch.zeros(1, length))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-5)


def test_probabilities():
    logits = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.bfloat16)
    for problem, labels, expected in (
        ("single_label_classification", ("a", "b", "c"), logits.float().softmax(-1)),
        (MULTI, ("a", "b", "c"), logits.float().sigmoid()),
        (REGRESSION, ("score",), logits[:, :1].float()),
    ):
        model = ClassificationModel(config("plain"), HeadConfig(labels, problem))
        computed = model.probabilities(logits[:, : len(labels)])
        assert computed.dtype == torch.float32 and torch.equal(computed, expected)


def test_dropout_is_for_training_alone():
    model = ClassificationModel(config("plain"), HeadConfig(("a", "b"), dropout=0.5))
    segments = torch.zeros_like(IDS)
    assert not torch.equal(model(IDS, segments, LENGTHS), model(IDS, segments, LENGTHS))
    model.eval()
    assert torch.equal(model(IDS, segments, LENGTHS), model(IDS, segments, LENGTHS))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"labels": ("a",)}, r"labels is \('a',\); expected .* fits single_label"),
        ({"labels": ("a", "b"), "problem": REGRESSION}, "labels is .* fits regression"),
        ({"labels": ()}, r"labels is \(\)"),
        ({"labels": ("a", "a")}, "different names"),
        ({"labels": ("a", 3)}, "different names"),
        ({"labels": ("a", "b"), "problem": "ranking"}, "problem is 'ranking'; expected one of"),
        ({"labels": ("a", "b"), "pooling": "sum"}, "pooling is 'sum'; expected one of"),
        ({"labels": ("a", "b"), "dropout": 1.0}, "dropout is 1.0"),
        ({"labels": ("a", "b"), "size": 2}, "unexpected .* 'size'"),
        ({}, "labels"),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(fields: dict, says: str):
    with pytest.raises(TwilbertError, match=says):
        HeadConfig.from_dict(fields)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("labels", [("NEG", "POS"), ("a", "b", "c", "ñ")])
def test_a_folder_gives_the_model_back(pooling: str, labels: tuple[str, ...], tmp_path: Path):
    head = HeadConfig(labels, MULTI, pooling, special_tokens=False, dropout=0.1)
    model = ClassificationModel(config("all"), head).eval()
    save_model_folder(str(tmp_path / "m"), config("all"), model.state_dict(), head=head, text=TEXT)
    folder = ModelFolder.open(str(tmp_path / "m"))
    assert folder.is_fine_tuned and (folder.config, folder.head, folder.text) == (config("all"), head, TEXT)
    loaded = folder.load()
    segments = torch.zeros_like(IDS)
    assert torch.equal(loaded.eval()(IDS, segments, LENGTHS), model(IDS, segments, LENGTHS))
    with pytest.raises(UsageError, match="a fine-tuned model, without the heads of pre-training"):
        folder.load_pretrained()


def test_a_pre_trained_folder_is_no_classifier(tmp_path: Path):
    model = PretrainingModel(config("plain"))
    save_model_folder(str(tmp_path / "m"), config("plain"), model.state_dict())
    folder = ModelFolder.open(str(tmp_path / "m"))
    assert not folder.is_fine_tuned and folder.head is None
    with pytest.raises(UsageError, match="has no labels"):
        folder.require_labels()


@pytest.mark.parametrize("text", [{}, {"remove_rt": 1, "max_len": 3}, {"remove_rt": True, "max_len": True}])
def test_text_settings_are_checked(text: dict, tmp_path: Path):
    model = ClassificationModel(config("plain"), HeadConfig(("a", "b")))
    with pytest.raises(TwilbertError, match=r"text\."):
        save_model_folder(str(tmp_path / "m"), config("plain"), model.state_dict(), head=model.head, text=text)
