"""The model computes what the original computed, for the same weights."""

from __future__ import annotations

import pytest
import torch

from tests.original.original_weights import Golden, golden
from twilbert.model.heads import PretrainingModel, PretrainingOutput

CASES = ["b_fact_shared", "c_pkm", "d_fact_shared_norop"]


def _model(case: Golden) -> PretrainingModel:
    model = PretrainingModel(case.config)
    model.load_state_dict(case.weights)
    return model.eval()


def _run(model: PretrainingModel, case: Golden) -> PretrainingOutput:
    # The original attends to [PAD] and marks a masked position by a label other than 0.
    a = case.arrays
    index = a["y_mlm"].reshape(-1).nonzero()[:, 0]
    labels = a["y_mlm"].reshape(-1)[index]
    return model(a["tokens"], a["segments"], None, index, labels, a["y_rop"], a["positions"])


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_and_probabilities(name: str):
    case = golden(name)
    model, a = _model(case), case.arrays
    with torch.no_grad():
        hidden = model.encoder(a["tokens"], a["segments"], None, a["positions"])
        mlm = model.masked_lm(hidden).softmax(-1)
        assert (hidden - a["hidden"]).abs().max() <= 1e-5
        assert (mlm - a["mlm"]).abs().max() <= 1e-6
        if model.reply_order is not None:
            assert (model.reply_order(hidden[:, 0]).softmax(-1) - a["rop"]).abs().max() <= 1e-6


@pytest.mark.parametrize("name", CASES)
def test_losses_and_accuracies(name: str):
    case = golden(name)
    out = _run(_model(case), case)
    mlm, mlm_accuracy = out.mlm_loss_sum / out.n_masked, out.mlm_correct / out.n_masked
    if case.config.use_rop:
        rop, rop_accuracy = out.rop_loss_sum / out.n_rop, out.rop_correct / out.n_rop
        ours = torch.stack([rop + mlm, rop, mlm, rop_accuracy, mlm_accuracy])
    else:
        assert out.rop_loss_sum == 0 and out.n_rop == 0
        ours = torch.stack([mlm, mlm_accuracy])
    assert (ours - case.arrays["eval"]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str):
    case = golden(name)
    model = _model(case)
    out = _run(model, case)
    loss = out.mlm_loss_sum / out.n_masked
    if case.config.use_rop:
        loss = loss + out.rop_loss_sum / out.n_rop
    loss.backward()
    gradients = dict(model.named_parameters())
    assert gradients.keys() == case.gradients.keys()
    for tensor, expected in case.gradients.items():
        ours = gradients[tensor].grad
        assert ours is not None
        assert (ours - expected).norm() <= 1e-5 * expected.norm(), tensor


@pytest.mark.parametrize("name", CASES)
def test_scores_one_by_one_add_up_to_the_sums(name: str):
    case = golden(name)
    model, a = _model(case), case.arrays
    index = a["y_mlm"].reshape(-1).nonzero()[:, 0]
    labels = a["y_mlm"].reshape(-1)[index]
    out = _run(model, case)
    scores = model.score(a["tokens"], a["segments"], None, index, labels, a["positions"])
    probability = a["mlm"].reshape(-1, a["mlm"].shape[-1])[index]
    torch.testing.assert_close(scores.mlm_nll_K, -probability.gather(1, labels[:, None].long())[:, 0].log())
    assert torch.equal(scores.mlm_prediction_K, probability.argmax(-1))
    assert torch.equal(scores.at_mask_K, a["tokens"].reshape(-1)[index] == 2)
    torch.testing.assert_close(scores.mlm_nll_K.sum(), out.mlm_loss_sum.detach())
    torch.testing.assert_close(scores.mlm_nll_K[scores.at_mask_K].sum(), out.mlm_loss_sum_at_mask)
    assert out.n_at_mask == scores.at_mask_K.sum()
    if scores.rop_log_probs_B2 is not None:
        torch.testing.assert_close(scores.rop_log_probs_B2.exp(), a["rop"], rtol=0, atol=1e-6)
