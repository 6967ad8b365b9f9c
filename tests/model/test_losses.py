"""Cross-entropy in pieces equals the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

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
