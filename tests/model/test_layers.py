"""Tables: what they read, and a gradient that bf16 does not spoil."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from twilbert.model.layers import Table, WeightedTable


def test_a_table_reads_and_learns_like_an_embedding():
    torch.manual_seed(0)
    table = Table(11, 8, 0.02)
    indices, upstream = torch.randint(0, 11, (4, 7)), torch.randn(4, 7, 8)
    read = table(indices)
    expected = F.embedding(indices, table.weight)
    assert torch.equal(read, expected)
    ours, theirs = (torch.autograd.grad((out * upstream).sum(), table.weight)[0] for out in (read, expected))
    torch.testing.assert_close(ours, theirs)


def test_a_weighted_table_reads_and_learns_like_an_embedding_bag():
    torch.manual_seed(0)
    table = WeightedTable(11, 8, 0.02)
    indices, weights = torch.randint(0, 11, (9, 5)), torch.rand(9, 5, requires_grad=True)
    upstream = torch.randn(9, 8)
    expected = (table.weight[indices] * weights[..., None]).sum(1)
    read = table(indices, weights)
    torch.testing.assert_close(read, expected)
    for ours, theirs in zip(
        *(torch.autograd.grad((out * upstream).sum(), (table.weight, weights)) for out in (read, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_of_a_row_read_4096_times_is_exact_in_bf16(weighted: bool):
    indices = torch.zeros(4096, 1, dtype=torch.long)
    if weighted:
        table = WeightedTable(3, 8, 0.02).bfloat16()
        read = table(indices, torch.ones(4096, 1, dtype=torch.bfloat16))
    else:
        table = Table(3, 8, 0.02).bfloat16()
        read = table(indices)
    read.sum().backward()
    assert table.weight.grad is not None
    assert (table.weight.grad[0] == 4096).all()  # torch's own kernel stops at 256
    assert (table.weight.grad[1:] == 0).all()


def test_nothing_read_gives_a_gradient_of_zeros():
    table, weighted = Table(3, 8, 0.02), WeightedTable(3, 8, 0.02)
    none = torch.zeros(0, 5, dtype=torch.long)
    (table(none).sum() + weighted(none, torch.zeros(0, 5)).sum()).backward()
    for parameter in (table.weight, weighted.weight):
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()
