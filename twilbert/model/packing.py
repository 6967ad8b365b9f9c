"""Training without computing padding: the real tokens of a batch laid end to end, attended group by group.

    [B, T, H] ─ pack ─▶ [M, H] ─ linear maps, norms ─▶ [M, H] ─ unpack ─▶ [B, T, H]
                          └ group ─▶ [n, t] per group of like lengths ─ attention ─ ungroup ┘

Letters: B samples, T positions, M packed rows (the real tokens, and up to 63 empty rows), P rows of all groups,
n samples of a group, t its positions. Only attention computes padding, less than 8 positions a sample.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTH_STEP = 8  # a group holds lengths between two multiples of this
ROW_STEP = 64  # M is a multiple: matrix products of a new size are compiled by oneDNN, 3 ms each
LEAST_SHARE = 0.04  # of padding that is worth the copies


class _Rows(NamedTuple):
    """Row numbers to gather: `index[i]`, or an empty row where `i` is in `blank`."""

    index: Tensor
    blank: Tensor

    def of(self, x: Tensor) -> Tensor:
        """[rows, H] → [len(index), H]."""
        return x.index_select(0, self.index).index_fill_(0, self.blank, 0)


class _Rearrange(torch.autograd.Function):
    """A gather whose backward is a gather too: torch's own is a scatter, row by row on a CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, there: _Rows, back: _Rows) -> Tensor:
        ctx.back = back
        return there.of(x)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        return ctx.back.of(gradients[0]), None, None


class Group(NamedTuple):
    """Samples of like lengths: rows `start` to `start + n·t` of P are their positions."""

    start: int
    n: int
    t: int
    bias_n11t: Tensor | None
    """Added to attention's scores: the lowest number at padding; None where there is none."""


class Packing:
    """The positions of a padded batch's real tokens in the packed rows, computed once for all layers."""

    def __init__(self, lengths_B: Tensor, positions: int, dtype: torch.dtype) -> None:
        lengths = lengths_B.tolist()
        real_BT = torch.arange(positions) < lengths_B[:, None]
        self.n_real = sum(lengths)
        self.shape = (len(lengths), positions)
        self.groups: list[Group] = []
        starts = (lengths_B.cumsum(0) - lengths_B).tolist()
        rows_of_groups, at = [torch.empty(0, dtype=torch.int64)], 0
        numbered = ((-(-length // LENGTH_STEP), i) for i, length in enumerate(lengths) if length)
        for steps, members in groupby(numbered, key=lambda one: one[0]):
            samples = [i for _, i in members]
            t = min(steps * LENGTH_STEP, positions)
            first_n, length_n = torch.tensor([starts[i] for i in samples]), lengths_B[samples]
            real_nt = torch.arange(t) < length_n[:, None]
            rows_of_groups.append(torch.where(real_nt, first_n[:, None] + torch.arange(t), -1).reshape(-1))
            bias_n11t = None
            if not real_nt.all():
                lowest = torch.finfo(dtype).min
                bias_n11t = torch.zeros(real_nt.shape, dtype=dtype).masked_fill_(~real_nt, lowest)[:, None, None]
            self.groups.append(Group(at, len(samples), t, bias_n11t))
            at += len(samples) * t
        self._rows = self.n_real + -self.n_real % ROW_STEP
        real_X = real_BT.reshape(-1)  # X = B·T
        self._flat, self._packed = _both_ways(torch.where(real_X, real_X.cumsum(0) - 1, -1), self._rows)
        self._grouped, self._ungrouped = _both_ways(torch.cat(rows_of_groups), self._rows)

    def pack(self, x_BTH: Tensor) -> Tensor:
        """[B, T, H] → [M, H]; the empty rows are zero."""
        return _Rearrange.apply(x_BTH.reshape(-1, x_BTH.shape[-1]), self._packed, self._flat)

    def unpack(self, x_MH: Tensor) -> Tensor:
        """[M, H] → [B, T, H], zero at padding."""
        return _Rearrange.apply(x_MH, self._flat, self._packed).view(*self.shape, -1)

    def group(self, x_MH: Tensor) -> Tensor:
        """[M, H] → [P, H]."""
        return _Rearrange.apply(x_MH, self._grouped, self._ungrouped)

    def ungroup(self, x_PH: Tensor) -> Tensor:
        """[P, H] → [M, H]."""
        return _Rearrange.apply(x_PH, self._ungrouped, self._grouped)

    def fill(self, x_mH: Tensor) -> Tensor:
        """[real tokens, H] → [M, H]."""
        return F.pad(x_mH, (0, 0, 0, self._rows - self.n_real))


def _both_ways(row_of: Tensor, rows: int) -> tuple[_Rows, _Rows]:
    """The gather of row_of[i], an empty row at -1, and its inverse back to `rows` rows."""
    gathered = row_of >= 0
    inverse = torch.full((rows,), -1)
    inverse[row_of[gathered]] = gathered.nonzero()[:, 0]
    there = _Rows(row_of.clamp(min=0), (~gathered).nonzero()[:, 0])
    return there, _Rows(inverse.clamp(min=0), (inverse < 0).nonzero()[:, 0])


def find_packing(lengths_B: Tensor | None, x_BTH: Tensor) -> Packing | None:
    """Return the packing of a batch on a CPU; None without enough padding to be worth the copies."""
    if lengths_B is None or x_BTH.is_cuda:
        return None
    positions = x_BTH.shape[0] * x_BTH.shape[1]
    real = int(lengths_B.sum())
    if not real or positions - real < LEAST_SHARE * positions:
        return None
    return Packing(lengths_B.long().cpu(), x_BTH.shape[1], x_BTH.dtype)
