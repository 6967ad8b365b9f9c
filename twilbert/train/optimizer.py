"""Adam, AdamW and LAMB as client optimisers of DeepSpeed: exact per tensor on flat shards.

An optimiser sees flat tensors that DeepSpeed cut without regard to parameters. `bind` tells it which fragments they
hold. Work goes in pieces that stay in the processor's cache; the update is kept in the gradient buffer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from twilbert.train.shards import Fragment, flat_view, numel

_CPU_CHUNK = 65_536  # fp32 elements: four such buffers stay in a core's second-level cache


@dataclass(frozen=True)
class _Piece:
    """A run of one logical tensor's elements inside a flat tensor."""

    tensor: int  # index of the logical tensor: LAMB's unit of adaptation
    offset: int
    length: int
    decayed: bool


class FragmentOptimizer(torch.optim.Optimizer):
    """Moments, decay and bookkeeping that Adam, AdamW and LAMB share.

    Set `learning_rate` and `update` (the number of the coming update, from 1) before each step; the state of a flat
    tensor is exp_avg and exp_avg_sq of its shape, fp32.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": 0.0})
        self.beta1, self.beta2, self.epsilon, self.weight_decay = beta1, beta2, epsilon, weight_decay
        self.learning_rate = 0.0
        self.update = 0
        self.tensor_names: list[str] = []
        self._pieces: dict[int, list[_Piece]] = {}

    def bind(self, fragments: list[Fragment], parameters: dict[str, tuple[int, ...]]) -> None:
        """Say what the flat tensors hold. `parameters`: name -> shape of every parameter, the same on all ranks.

        A matrix whose name ends in "qkv.weight" is three logical tensors: queries, keys and values stacked in rows.
        """
        self._pieces.clear()
        self.tensor_names = [part for name in parameters for part in _logical_names(name)]
        index = {name: i for i, name in enumerate(self.tensor_names)}
        self.adapted = torch.tensor([len(parameters[_parameter(name)]) > 1 for name in self.tensor_names])
        for fragment in fragments:
            pieces = self._pieces.setdefault(id(fragment.flat), [])
            names = _logical_names(fragment.name)
            size = numel(fragment.shape) // len(names)
            chunk = _CPU_CHUNK if fragment.flat.device.type == "cpu" else size
            begin, end = fragment.start, fragment.start + fragment.length
            while begin < end:
                part = begin // size
                stop = min(end, (part + 1) * size, begin + chunk)
                at = fragment.offset + begin - fragment.start
                pieces.append(_Piece(index[names[part]], at, stop - begin, len(fragment.shape) > 1))
                begin = stop
        for flat in {id(fragment.flat): fragment.flat for fragment in fragments}.values():
            self.moments(flat)

    def moments(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first and second moment of a flat tensor, of its shape, fp32; zeros at first."""
        state = self.state[flat]
        if not state:
            state["exp_avg"] = torch.zeros_like(flat, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(flat, dtype=torch.float32)
        return state["exp_avg"], state["exp_avg_sq"]

    @torch.no_grad()
    def step(self, closure=None):
        """Update every flat tensor that has a gradient; RuntimeError for one that `bind` did not describe."""
        assert closure is None
        for group in self.param_groups:
            shards = [flat for flat in group["params"] if flat.grad is not None]
            if not self._pieces:  # DeepSpeed steps once on zeros while it builds its own state, before bind
                for flat in shards:
                    self.moments(flat)
                continue
            for flat in shards:
                if id(flat) not in self._pieces:
                    raise RuntimeError(
                        f"a shard of {flat.numel()} elements holds unknown tensors: bind() was not told of it"
                    )
            self._apply(shards)

    @abstractmethod
    def _apply(self, shards: list[torch.Tensor]) -> None:
        """Update `shards`, every one of which has a gradient and is known."""

    def _views(self, flat: torch.Tensor):
        """(piece, weights, gradient, first moment, second moment) of each piece, views of its elements."""
        assert flat.grad is not None
        buffers = [flat_view(t) for t in (flat, flat.grad, *self.moments(flat))]
        for piece in self._pieces[id(flat)]:
            yield piece, *(buffer.narrow(0, piece.offset, piece.length) for buffer in buffers)

    def _advance(self, gradient: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor) -> None:
        exp_avg.lerp_(gradient, 1 - self.beta1)
        exp_avg_sq.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)


class Adam(FragmentOptimizer):
    """The original's Adam: epsilon is added to the root of the second moment before bias correction.

    w -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon), after w -= lr * weight_decay * w.
    """

    def _apply(self, shards: list[torch.Tensor]) -> None:
        t, lr = self.update, self.learning_rate
        rate = lr * (1 - self.beta2**t) ** 0.5 / (1 - self.beta1**t)
        for flat in shards:
            for piece, weights, gradient, exp_avg, exp_avg_sq in self._views(flat):
                self._advance(gradient, exp_avg, exp_avg_sq)
                if piece.decayed and self.weight_decay:
                    weights.mul_(1 - lr * self.weight_decay)
                torch.sqrt(exp_avg_sq, out=gradient).add_(self.epsilon)
                weights.addcdiv_(exp_avg, gradient, value=-rate)


class AdamW(FragmentOptimizer):
    """Loshchilov & Hutter 2019, Algorithm 2: epsilon after bias correction, decoupled decay."""

    def _apply(self, shards: list[torch.Tensor]) -> None:
        t, lr = self.update, self.learning_rate
        rate, root = lr / (1 - self.beta1**t), (1 - self.beta2**t) ** 0.5
        for flat in shards:
            for piece, weights, gradient, exp_avg, exp_avg_sq in self._views(flat):
                self._advance(gradient, exp_avg, exp_avg_sq)
                if piece.decayed and self.weight_decay:
                    weights.mul_(1 - lr * self.weight_decay)
                torch.sqrt(exp_avg_sq, out=gradient).div_(root).add_(self.epsilon)
                weights.addcdiv_(exp_avg, gradient, value=-rate)


class Lamb(FragmentOptimizer):
    """You et al. 2020, Algorithm 2, with bias correction and decoupled decay.

    u = m̂ / (sqrt(v̂) + epsilon) + weight_decay * w;  w -= lr * ‖w‖/‖u‖ * u, the norms over each logical tensor.
    One-dimensional tensors (biases, LayerNorm) are neither decayed nor adapted.
    """

    def _apply(self, shards: list[torch.Tensor]) -> None:
        t, lr = self.update, self.learning_rate
        first, root = 1 - self.beta1**t, (1 - self.beta2**t) ** 0.5
        device = shards[0].device if shards else torch.device("cpu")
        squares = torch.zeros(2, len(self.tensor_names), dtype=torch.float64, device=device)
        for flat in shards:
            for piece, weights, gradient, exp_avg, exp_avg_sq in self._views(flat):
                self._advance(gradient, exp_avg, exp_avg_sq)
                torch.sqrt(exp_avg_sq, out=gradient).div_(root).add_(self.epsilon)
                torch.div(exp_avg, gradient, out=gradient).div_(first)
                if piece.decayed and self.weight_decay:
                    gradient.add_(weights, alpha=self.weight_decay)
                squares[0, piece.tensor] += torch.dot(weights, weights)
                squares[1, piece.tensor] += torch.dot(gradient, gradient)
        ratios = self._trust_ratios(squares).tolist()
        for flat in shards:
            for piece, weights, gradient, _, _ in self._views(flat):
                weights.add_(gradient, alpha=-lr * ratios[piece.tensor])

    def _trust_ratios(self, squares: torch.Tensor) -> torch.Tensor:
        """‖w‖/‖u‖ [tensors] from sums of squares [2, tensors]; 1 where a norm is zero or the tensor is not adapted."""
        weight_norm, update_norm = squares.sqrt()
        usable = (weight_norm > 0) & (update_norm > 0) & self.adapted.to(squares.device)
        return torch.where(usable, weight_norm / update_norm, torch.ones_like(weight_norm))


def _logical_names(name: str) -> list[str]:
    return [f"{name}[{part}]" for part in ("q", "k", "v")] if name.endswith("qkv.weight") else [name]


def _parameter(logical: str) -> str:
    return logical.partition("[")[0]


OPTIMIZERS: dict[str, type[FragmentOptimizer]] = {"adam": Adam, "adamw": AdamW, "lamb": Lamb}
