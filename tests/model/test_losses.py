"""Cross-entropy in pieces equals the plain one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests import places
from twilbert.model.losses import token_cross_entropy


@pytest.mark.parametrize("rows", [0, 1, 32, 33, 100])
def test_value_and_gradient_equal_the_plain_one(rows: int):
    torch.manual_seed(0)
    logits = (3 * torch.randn(rows, 70)).requires_grad_()
    labels, upstream = torch.randint(0, 70, (rows,)), torch.rand(rows)
    expected = F.cross_entropy(logits, labels, reduction="none")
    (theirs,) = torch.autograd.grad((expected * upstream).sum(), logits)
    nll = token_cross_entropy(logits * 1.0, labels)
    torch.testing.assert_close(nll, expected)
    (ours,) = torch.autograd.grad((nll * upstream).sum(), logits)
    torch.testing.assert_close(ours, theirs)


def test_bf16_logits_lose_nothing_but_the_rounding_of_their_gradient():
    torch.manual_seed(0)
    logits = (3 * torch.randn(40, 3000)).bfloat16().requires_grad_()
    labels = torch.randint(0, 3000, (40,))
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, labels, reduction="none")
    nll = token_cross_entropy(logits * 1.0, labels)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll.double(), expected, rtol=1e-6, atol=0)
    nll.sum().backward()
    expected.sum().backward()
    assert logits.grad is not None and exact.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2**-8, atol=1e-12)


def test_gradient_survives_where_the_label_is_nearly_certain():
    logits = torch.zeros(1, 4, dtype=torch.bfloat16)
    logits[0, 1] = 8.0
    logits.requires_grad_()
    token_cross_entropy(logits * 1.0, torch.tensor([1])).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 1].item() == pytest.approx(-1.0053e-3, rel=0.01)


def test_a_second_backward_is_refused():
    logits = torch.randn(5, 9, requires_grad=True)
    loss = token_cross_entropy(logits * 1.0, torch.arange(5)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- the original's pre-training losses ------------------------------------------------------------------------------


@pytest.fixture
def original() -> dict[str, torch.Tensor]:
    with np.load(places.GOLDEN / "losses_pretraining.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def _masked_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As a model's step computes it: mean over the masked positions, those whose label is not 0.

    Keras clips the probabilities it is given; ours come from logits and need it not.
    """
    masked, probabilities = labels != 0, probabilities.clamp(1e-7, 1 - 1e-7)
    return token_cross_entropy(probabilities[masked].log(), labels[masked]).sum() / masked.sum().clamp_min(1)


@pytest.mark.parametrize("name", ["masked_loss", "sparse_masked_mlm_loss"])
def test_value_and_gradient_are_the_originals(original: dict[str, torch.Tensor], name: str):
    probabilities = original["y_pred"].clone().requires_grad_()
    loss = _masked_loss(probabilities, original["y_true"][..., 0].long())
    assert abs(loss.item() - original[name].item()) <= 1e-5
    loss.backward()
    expected = original[f"{name}|grad"]
    assert probabilities.grad is not None
    assert (probabilities.grad - expected).norm() <= 1e-5 * expected.norm()


def test_nothing_masked_and_accuracies_are_the_originals(original: dict[str, torch.Tensor]):
    labels = original["y_true"][..., 0].long()
    assert _masked_loss(original["y_pred"], torch.zeros_like(labels)) == original["masked_loss|nothing_masked"] == 0
    masked = labels != 0
    right = original["y_pred"][masked].argmax(-1) == labels[masked]
    assert right.double().mean() == original["acc_m"]
    rop = (original["rop_pred"].argmax(-1) == original["rop_true"]).float()
    assert torch.equal(rop, original["acc_r_1d"]) and torch.equal(rop, original["acc_r_2d"])
