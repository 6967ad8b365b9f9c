"""The base of Adam, AdamW and LAMB as client optimisers of DeepSpeed: exact per tensor on flat shards.

DeepSpeed hands over flat tensors that it cut without regard to parameters; `bind` describes the fragments in them. Work
goes in pieces that fit the processor's cache; the gradient buffer holds the update.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fragment:
    """Elements start … start + length - 1 of the flattened parameter `name`, at `offset` of `flat` (fp32, 1-D)."""

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    flat: torch.Tensor
    """The tensor that the client optimiser updates, the key of the optimiser's state."""
    offset: int

    @property
    def values(self) -> torch.Tensor:
        """A view [length] of the fp32 weights."""
        return self.of(self.flat)

    def of(self, like_flat: torch.Tensor) -> torch.Tensor:
        """Return a view [length] of the same elements in a tensor shaped like `flat` (a gradient or a moment)."""
        return flat_view(like_flat).narrow(0, self.offset, self.length)


def flat_view(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` as a 1-D view."""
    return tensor.detach().view(-1)


def numel(shape: tuple[int, ...]) -> int:
    """Return the elements of a tensor of that shape."""
    return math.prod(shape)


_CPU_CHUNK = 65_536  # fp32 elements: four such buffers stay in a core's second-level cache


@dataclass(frozen=True)
class Piece:
    """A run of one logical tensor's elements inside a flat tensor."""

    tensor: int  # index of the logical tensor: LAMB's unit of adaptation
    offset: int
    length: int
    decayed: bool


class FragmentOptimizer(torch.optim.Optimizer):
    """Moments, decay and bookkeeping of Adam, AdamW and LAMB.

    Set `learning_rate` and `update` (the number of the coming update, from 1) before each step; the state of a flat
    tensor is exp_avg and exp_avg_sq of its shape, fp32. A step that changes the weights sets `taken`, on every rank
    alike; one with `skip` set does nothing. `update_square` is the sum of squares that the latest step subtracted from
    this rank's weights.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float = 0.0,
        exclude_1d: bool = True,
    ) -> None:
        """`exclude_1d`: tensors of one dimension (biases, LayerNorm) are neither decayed nor adapted."""
        super().__init__(params, {"lr": 0.0})
        self.beta1, self.beta2, self.epsilon, self.weight_decay = beta1, beta2, epsilon, weight_decay
        self.exclude_1d = exclude_1d
        self.learning_rate = 0.0
        self.update = 0
        self.taken = False
        self.skip = False
        self.gradient_norm = 0.0  # of the latest step, where nothing is sharded
        self.update_square = torch.zeros((), dtype=torch.float64)
        self.tensor_names: list[str] = []
        self.sharded = False
        self._pieces: dict[int, list[Piece]] = {}

    def bind(self, fragments: list[Fragment], parameters: dict[str, tuple[int, ...]], *, sharded: bool = False) -> None:
        """Describe the flat tensors. `parameters`: name -> shape of every parameter, the same on all ranks.

        A matrix whose name ends in "qkv.weight" is three logical tensors: queries, keys and values stacked in rows.
        `sharded`: the fragments are this rank's share of the parameters (ZeRO).
        """
        self._pieces.clear()
        self.sharded = sharded
        self.tensor_names = [part for name in parameters for part in logical_names(name)]
        index = {name: i for i, name in enumerate(self.tensor_names)}
        self.adapted = torch.tensor(
            [self._is_adapted(parameters[name]) for name in parameters for _ in logical_names(name)]
        )
        for fragment in fragments:
            pieces = self._pieces.setdefault(id(fragment.flat), [])
            names = logical_names(fragment.name)
            size = numel(fragment.shape) // len(names)
            chunk = _CPU_CHUNK if fragment.flat.device.type == "cpu" else size
            begin, end = fragment.start, fragment.start + fragment.length
            while begin < end:
                part = begin // size
                stop = min(end, (part + 1) * size, begin + chunk)
                at = fragment.offset + begin - fragment.start
                pieces.append(Piece(index[names[part]], at, stop - begin, self._is_adapted(fragment.shape)))
                begin = stop
        for flat in {id(fragment.flat): fragment.flat for fragment in fragments}.values():
            self.moments(flat)

    def _is_adapted(self, shape: tuple[int, ...]) -> bool:
        return len(shape) > 1 or not self.exclude_1d

    def moments(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first and second moment of a flat tensor, of its shape, fp32; zeros at first."""
        state = self.state[flat]
        if not state:
            state["exp_avg"] = torch.zeros_like(flat, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(flat, dtype=torch.float32)
        return state["exp_avg"], state["exp_avg_sq"]

    @torch.no_grad()
    def step(self, closure=None):
        """Update every flat tensor that has a gradient; RuntimeError for one that `bind` did not describe.

        A gradient that is not finite leaves weights and moments unchanged. Under ZeRO DeepSpeed checks the global norm
        before this call; unsharded, every rank has all gradients and checks them here.
        """
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
                        f"a shard of {flat.numel()} elements holds unknown tensors, which bind() did not describe"
                    )
            self.update_square = self._zeros(shards)
            if shards and not self.sharded:
                self.gradient_norm = float(torch.stack([flat.grad.norm() for flat in shards]).norm())
            if self.skip or not (self.sharded or math.isfinite(self.gradient_norm)):
                continue
            self.taken = self._apply(shards)

    @abstractmethod
    def _apply(self, shards: list[torch.Tensor]) -> bool:
        """Update `shards`, which all have a gradient and are bound; return whether the weights changed."""

    def _views(self, flat: torch.Tensor):
        """Yield (piece, weights, gradient, first moment, second moment) of each piece, views of its elements."""
        assert flat.grad is not None
        buffers = [flat_view(t) for t in (flat, flat.grad, *self.moments(flat))]
        for piece in self._pieces[id(flat)]:
            yield piece, *(buffer.narrow(0, piece.offset, piece.length) for buffer in buffers)

    def _directions(self, shards: list[torch.Tensor], epsilon: float, decay: float):
        """Advance the moments; yield (piece, weights, update) of each piece, the update m / (sqrt(v) + epsilon).

        It is in the gradient's buffer, with `decay` times the weights where they are decayed.
        """
        for flat in shards:
            for piece, weights, gradient, exp_avg, exp_avg_sq in self._views(flat):
                exp_avg.lerp_(gradient, 1 - self.beta1)
                exp_avg_sq.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
                torch.sqrt(exp_avg_sq, out=gradient).add_(epsilon)
                torch.div(exp_avg, gradient, out=gradient)
                if piece.decayed and decay:
                    gradient.add_(weights, alpha=decay)
                yield piece, weights, gradient

    def _zeros(self, shards: list[torch.Tensor], *shape: int) -> torch.Tensor:
        device = shards[0].device if shards else torch.device("cpu")
        return torch.zeros(shape, dtype=torch.float64, device=device)


def square_sum(x: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares of an fp32 vector to about 1e-7: pieces on a CPU are short enough for fp32."""
    if x.device.type == "cpu":
        return torch.dot(x, x)
    return torch.linalg.vector_norm(x, dtype=torch.float64).square()


def logical_names(name: str) -> list[str]:
    """Return a parameter's logical tensors: three for fused queries, keys and values, else itself."""
    return [f"{name}[{part}]" for part in ("q", "k", "v")] if name.endswith("qkv.weight") else [name]
