"""The reference Muon: float64 on whole tensors; and a Muon wrong on shards.

Written from Jordan et al. 2024 and Liu et al. 2025 (arXiv 2502.16982), with AdamW for all but hidden matrices.
"""

from __future__ import annotations

import torch

from tests.optim.reference import Tensors, logical
from twilbert.optim.muon import Muon


def newton_schulz(x: torch.Tensor) -> torch.Tensor:
    """Five iterations of the quintic of Jordan et al. on one matrix [M, N]."""
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T).T
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


class ReferenceMuon:
    """m ← μm + (1-μ)g; W ← W - η(0.2 √max(A, B) · NS((1-μ)g + μm) + λW); AdamW with its own rate elsewhere."""

    def __init__(self, weights: Tensors, *, beta1: float, beta2: float, epsilon: float, weight_decay: float) -> None:
        self.weights = {name: x.clone() for name, x in logical(weights).items()}
        self.beta1, self.beta2, self.epsilon, self.weight_decay = beta1, beta2, epsilon, weight_decay
        self.adamw_ratio, self.momentum = 1.0, 0.95
        self.m = {name: torch.zeros_like(x) for name, x in self.weights.items()}
        self.v = {name: torch.zeros_like(x) for name, x in self.weights.items()}
        self.t, self.moved = 0, 0.0

    def step(self, gradients: Tensors, rate: float) -> dict[str, float]:
        """Take one step; no trust ratios."""
        self.t += 1
        squares = 0.0
        for name, g in logical(gradients).items():
            x = self.weights[name]
            if x.dim() == 2 and (".attention." in name or ".feed_forward." in name):
                self.m[name] = self.momentum * self.m[name] + (1 - self.momentum) * g
                update = newton_schulz((1 - self.momentum) * g + self.momentum * self.m[name])
                change = rate * (0.2 * max(x.shape) ** 0.5 * update + self.weight_decay * x)
            else:
                self.m[name] = self.beta1 * self.m[name] + (1 - self.beta1) * g
                self.v[name] = self.beta2 * self.v[name] + (1 - self.beta2) * g**2
                m_hat = self.m[name] / (1 - self.beta1**self.t)
                v_hat = self.v[name] / (1 - self.beta2**self.t)
                decay = self.weight_decay * x if x.dim() > 1 else 0.0
                change = rate * self.adamw_ratio * (m_hat / (v_hat.sqrt() + self.epsilon) + decay)
            squares += float(change.square().sum())
            self.weights[name] = x - change
        self.moved = squares**0.5
        return {}


class NaiveMuon(Muon):
    """A wrong Muon: each rank orthogonalises the part of a matrix that it holds, the rest taken as zero."""

    def _gather(self, owners: list[list[int]]) -> dict[int, torch.Tensor]:
        whole = {}
        for tensor in (tensor for tensors in owners for tensor in tensors if tensor in self._own):
            run = self._own[tensor]
            rows, columns = self._shapes[tensor]
            whole[tensor] = torch.zeros(rows * columns)
            whole[tensor].narrow(0, run.start, run.length).copy_(run.gradient)
        return whole

    def _scatter(self, owners: list[list[int]], whole: dict[int, torch.Tensor]) -> None:
        for tensor, update in whole.items():
            run = self._own[tensor]
            run.gradient.copy_(update.narrow(0, run.start, run.length))


class SmallBuckets(Muon):
    """Several exchanges a step, also for a tiny model."""

    bucket_size = 500
