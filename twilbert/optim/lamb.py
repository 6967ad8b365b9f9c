"""LAMB on the pieces of flat shards (fragments.py), exact under every ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from twilbert.optim.fragments import FragmentOptimizer, square_sum


class Lamb(FragmentOptimizer):
    """You et al. 2020, Algorithm 2, with bias correction and decoupled decay.

    u = m̂ / (sqrt(v̂) + epsilon) + weight_decay * w;  w -= lr * min(‖w‖/‖u‖, trust_clip) * u, the norms over each whole
    logical tensor: under ZeRO one all_reduce a step sums the shards' squares, in float64. Where a sum is not finite, on
    every rank alike, no rank changes its weights; the moments have changed then, but DeepSpeed checks the gradients
    before, so that only squares that overflow get here.

    After a step `trust_ratios` [tensors] (float64, CPU) are those of `tensor_names`; 1 where not adapted.
    """

    def __init__(self, params: Iterable[torch.Tensor], *, trust_clip: float = 0.0, **settings: Any) -> None:
        """Settings as in FragmentOptimizer, and `trust_clip`, the largest ratio (0: no limit)."""
        super().__init__(params, **settings)
        self.trust_clip = trust_clip
        self.trust_ratios = torch.ones(0, dtype=torch.float64)

    def _apply(self, shards: list[torch.Tensor]) -> bool:
        t = self.update
        # The gradient buffer holds u / scale: v stays uncorrected, so its correction multiplies epsilon.
        root = (1 - self.beta2**t) ** 0.5
        scale, epsilon, decay = root / (1 - self.beta1**t), self.epsilon * root, self.weight_decay
        tensors, of_weights, of_updates = [], [], []  # squares of w and of u / scale, a piece each
        for piece, weights, update in self._directions(shards, epsilon, decay / scale):
            tensors.append(piece.tensor)
            of_weights.append(square_sum(weights))
            of_updates.append(square_sum(update))
        squares = self._zeros(shards, 2, len(self.tensor_names))
        if tensors:
            of_pieces = torch.stack((torch.stack(of_weights), torch.stack(of_updates))).double()
            squares.index_add_(1, torch.tensor(tensors, device=squares.device), of_pieces)
        own = squares[1].clone()
        if self.sharded:
            dist.all_reduce(squares)
        squares = squares.cpu()
        if not squares.isfinite().all():
            return False
        self.trust_ratios = self._trust_ratios(squares[0].sqrt(), scale * squares[1].sqrt())
        rates = (self.learning_rate * scale * self.trust_ratios).tolist()
        self.update_square = (own * own.new_tensor(rates).square()).sum()
        for flat in shards:
            for piece, weights, gradient, _, _ in self._views(flat):
                weights.add_(gradient, alpha=-rates[piece.tensor])
        return True

    def _trust_ratios(self, weight_norm: torch.Tensor, update_norm: torch.Tensor) -> torch.Tensor:
        """‖w‖/‖u‖ [tensors]; 1 where a norm is zero or the tensor is not adapted."""
        usable = (weight_norm > 0) & (update_norm > 0) & self.adapted
        ratios = weight_norm / update_norm
        if self.trust_clip:
            ratios = ratios.clamp(max=self.trust_clip)
        return torch.where(usable, ratios, torch.ones_like(ratios))
