"""Layers of the encoder and the heads: initialised linear maps, norms, and embedding tables.

Letters: n flat positions, V rows of a table, H channels, K bags.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill in place from a normal of mean 0, redrawn beyond two standard deviations (Devlin et al. 2018)."""
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def gelu(x: Tensor) -> Tensor:
    """Apply the tanh form of gelu (Hendrycks and Gimpel 2016), as the released weights were trained with."""
    return F.gelu(x, approximate="tanh")


class Linear(nn.Linear):
    """x·Wᵀ + b with a truncated-normal kernel and zero bias."""

    def __init__(self, in_features: int, out_features: int, std: float, *, bias: bool = True) -> None:
        self.std = std  # read by reset_parameters, which the parent's constructor calls
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        truncated_normal_(self.weight, self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation, ε inside the root. Torch keeps mean and variance in fp32 for bf16 input as well."""

    def __init__(self, width: int, *, eps: float = 1e-12, bias: bool = True) -> None:
        super().__init__(width, eps=eps, bias=bias)


class _TableGradient(torch.autograd.Function):
    """The identity on `read`, with the gradient of the look-up for `table`.

    Torch's own CPU kernels sum a dense table gradient in the table's type: in bf16 the sum of a row that was read over
    256 times stops growing. Here the forward kernel of embedding_bag, which keeps fp32 sums, adds up the rows that read
    one entry, and each sum is rounded once.
    """

    @staticmethod
    def forward(
        ctx, read: Tensor, table: Tensor, entries_n: Tensor, rows_n: Tensor, weights_n: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(entries_n, rows_n, *(() if weights_n is None else (weights_n,)))
        ctx.table_shape = table.shape
        return read.view_as(read)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (gradient,) = gradients
        if not ctx.needs_input_grad[1]:
            return gradient, None, None, None, None
        entries_n, rows_n, *weights = ctx.saved_tensors
        table_gradient = gradient.new_zeros(ctx.table_shape)
        if entries_n.numel():
            order_n = torch.argsort(entries_n, stable=True)  # stable: the sums have one order, whatever the threads
            entry_u, count_u = torch.unique_consecutive(entries_n[order_n], return_counts=True)
            table_gradient[entry_u] = F.embedding_bag(
                rows_n[order_n],
                gradient.contiguous(),
                count_u.cumsum(0) - count_u,
                mode="sum",
                per_sample_weights=weights[0][order_n] if weights else None,
            )
        return gradient, table_gradient, None, None, None


class Table(nn.Module):
    """An embedding table whose dense gradient is summed in fp32 on every device."""

    def __init__(self, rows: int, width: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the rows again."""
        truncated_normal_(self.weight, self.std)

    def forward(self, indices: Tensor) -> Tensor:
        """Indices of any shape [...] → rows [..., H]."""
        if self.weight.is_cuda:
            return F.embedding(indices, self.weight)
        flat_n = indices.reshape(-1)
        rows_nH = F.embedding(flat_n, self.weight.detach())
        source_n = torch.arange(flat_n.numel(), device=flat_n.device)
        rows_nH = _TableGradient.apply(rows_nH, self.weight, flat_n, source_n, None)
        return rows_nH.view(*indices.shape, rows_nH.shape[-1])


class WeightedTable(Table):
    """A table read by weighted sums of rows."""

    def forward(self, indices_MK: Tensor, weights_MK: Tensor) -> Tensor:
        """Row indices and their weights, both [M, K] → Σ weight · row, [M, H]."""
        if self.weight.is_cuda:
            return F.embedding_bag(indices_MK, self.weight, per_sample_weights=weights_MK, mode="sum")
        out_MH = F.embedding_bag(indices_MK, self.weight.detach(), per_sample_weights=weights_MK, mode="sum")
        m, k = indices_MK.shape
        source_n = torch.arange(m, device=indices_MK.device).repeat_interleave(k)
        indices_n, weights_n = indices_MK.reshape(-1), weights_MK.detach().reshape(-1)
        return _TableGradient.apply(out_MH, self.weight, indices_n, source_n, weights_n)
