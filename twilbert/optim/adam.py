"""Adam of the original and AdamW on the pieces of flat shards (fragments.py)."""

from __future__ import annotations

import torch

from twilbert.optim.fragments import FragmentOptimizer, square_sum


class Adam(FragmentOptimizer):
    """The original's Adam: epsilon is added to the root of the second moment before bias correction.

    w -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon), after w -= lr * weight_decay * w.
    """

    @property
    def _adam_rate(self) -> float:
        return self.learning_rate

    def _constants(self) -> tuple[float, float]:
        """Return (rate of m / (sqrt(v) + e), e)."""
        t = self.update
        return self._adam_rate * (1 - self.beta2**t) ** 0.5 / (1 - self.beta1**t), self.epsilon

    def _apply(self, shards: list[torch.Tensor]) -> bool:
        rate, epsilon = self._constants()
        decay = self._adam_rate * self.weight_decay
        squares = []
        for _, weights, update in self._directions(shards, epsilon, decay / rate):
            weights.add_(update, alpha=-rate)
            squares.append(square_sum(update))
        if squares:
            self.update_square = rate * rate * torch.stack(squares).double().sum()
        return True


class AdamW(Adam):
    """Loshchilov & Hutter 2019, Algorithm 2: epsilon after bias correction, decoupled decay."""

    def _constants(self) -> tuple[float, float]:
        rate, epsilon = super()._constants()
        # m̂ / (sqrt(v̂) + epsilon) in terms of m and v: the correction of v multiplies epsilon.
        return rate, epsilon * (1 - self.beta2**self.update) ** 0.5
