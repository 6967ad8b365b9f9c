"""Muon: hidden matrices move by their orthogonalised momentum, all other tensors by AdamW; exact under ZeRO.

Jordan et al. 2024 (Newton–Schulz iteration, Nesterov momentum); Liu et al. 2025 (scale of the update, weight decay):

    m ← μ·m + (1 - μ)·g;  O = orthogonalise((1 - μ)·g + μ·m);  w ← w - lr·(0.2·√max(rows, columns)·O + decay·w)

The iteration needs whole matrices, which ZeRO cuts into fragments. Each belongs to one rank, the work dealt level:

    fragments of the momentum ─ all-to-all ─▶ whole matrices of this rank ─ orthogonalise ─ all-to-all ─▶ fragments

in buckets, so that only a few matrices are whole at a time. At stage 0 every rank has all gradients: owners broadcast.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from twilbert.optim.adam import AdamW
from twilbert.optim.fragments import Fragment, flat_view, logical_names, numel, square_sum

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al.: steepest at 0, singular values end in about 0.7 … 1.2
_ITERATIONS = 5


def orthogonalise(matrices_BMN: torch.Tensor) -> torch.Tensor:
    """Return U·S'·Vᵀ [B, M, N] of each matrix U·S·Vᵀ, S' near 1, by five Newton–Schulz iterations in the input's type.

    A matrix of zeros stays zero.
    """
    tall = matrices_BMN.shape[1] > matrices_BMN.shape[2]
    x_BMN = matrices_BMN.transpose(1, 2) if tall else matrices_BMN
    wide = torch.promote_types(x_BMN.dtype, torch.float32)
    norms = torch.linalg.vector_norm(x_BMN, dim=(1, 2), keepdim=True, dtype=wide)
    x_BMN = x_BMN / norms.clamp_min(1e-30).to(x_BMN.dtype)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram_BMM = torch.bmm(x_BMN, x_BMN.transpose(1, 2))
        poly_BMM = torch.baddbmm(gram_BMM, gram_BMM, gram_BMM, beta=b, alpha=c)
        x_BMN = torch.baddbmm(x_BMN, poly_BMM, x_BMN, beta=a)
    return x_BMN.transpose(1, 2) if tall else x_BMN


def is_hidden_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether Muon moves a parameter: the matrices of attention and feed-forward parts."""
    return len(shape) == 2 and (".attention." in name or ".feed_forward." in name)


def iteration_flops(rows: int, columns: int) -> float:
    """Return the floating-point operations that orthogonalise one matrix."""
    small, large = sorted((rows, columns))
    return _ITERATIONS * (4.0 * small * small * large + 2.0 * small**3)


@dataclass(frozen=True)
class _Run:
    """Elements start … start + length - 1 of the flattened logical matrix `tensor`, at `offset` of `flat`."""

    tensor: int
    start: int
    length: int
    flat: torch.Tensor
    offset: int

    def of(self, like_flat: torch.Tensor) -> torch.Tensor:
        return flat_view(like_flat).narrow(0, self.offset, self.length)

    @property
    def gradient(self) -> torch.Tensor:
        assert self.flat.grad is not None
        return self.of(self.flat.grad)


class Muon(AdamW):
    """Muon for hidden matrices (queries, keys and values each on their own), AdamW for all else."""

    bucket_size = 2**24
    """Elements that one rank orthogonalises between two exchanges (64 MB in fp32), or one matrix where that is more."""

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        *,
        momentum: float = 0.95,
        adamw_ratio: float = 1.0,
        iterate_in: torch.dtype = torch.float32,
        **settings: Any,
    ) -> None:
        """Settings as in FragmentOptimizer; `adamw_ratio`: AdamW's learning rate as a multiple of Muon's.

        `iterate_in`: the type of the Newton–Schulz iteration and of what travels for it.
        """
        super().__init__(params, **settings)
        self.momentum, self.adamw_ratio, self.iterate_in = momentum, adamw_ratio, iterate_in
        self._shapes: dict[int, tuple[int, int]] = {}  # of every hidden matrix, by its index in tensor_names
        self._runs: list[dict[int, tuple[int, int]]] = []  # by rank: matrix -> (start, length) of what it holds
        self._own: dict[int, _Run] = {}
        self._buckets: list[list[list[int]]] = []  # bucket -> rank -> the matrices it orthogonalises

    def bind(self, fragments: list[Fragment], parameters: dict[str, tuple[int, ...]], *, sharded: bool = False) -> None:
        """As in FragmentOptimizer; a collective: ranks learn which elements of a matrix the others hold."""
        super().bind(fragments, parameters, sharded=sharded)
        index = {name: i for i, name in enumerate(self.tensor_names)}
        self._shapes = {
            index[part]: (shape[0] // len(logical_names(name)), shape[1])
            for name, shape in parameters.items()
            if is_hidden_matrix(name, shape)
            for part in logical_names(name)
        }
        self._own = {run.tensor: run for fragment in fragments for run in self._runs_of(fragment, index)}
        self._rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        held = {run.tensor: (run.start, run.length) for run in self._own.values()}
        self._runs = [held] * world
        if world > 1 and sharded:
            gathered: list[Any] = [None] * world
            dist.all_gather_object(gathered, held)
            self._runs = gathered
        self._buckets = _deal(self._shapes, world, self.bucket_size)

    def _runs_of(self, fragment: Fragment, index: dict[str, int]) -> list[_Run]:
        names = logical_names(fragment.name)
        size, runs = numel(fragment.shape) // len(names), []
        for number, name in enumerate(names):
            start = max(fragment.start, number * size)
            end = min(fragment.start + fragment.length, (number + 1) * size)
            if index[name] in self._shapes and start < end:
                offset = fragment.offset + start - fragment.start
                runs.append(_Run(index[name], start - number * size, end - start, fragment.flat, offset))
        return runs

    @property
    def _adam_rate(self) -> float:
        return self.learning_rate * self.adamw_ratio

    def _views(self, flat: torch.Tensor):
        """Views of the pieces that AdamW moves."""
        return (view for view in super()._views(flat) if view[0].tensor not in self._shapes)

    def _apply(self, shards: list[torch.Tensor]) -> bool:
        super()._apply(shards)
        for run in self._own.values():
            gradient, momentum = run.gradient, run.of(self.moments(run.flat)[0])
            momentum.lerp_(gradient, 1 - self.momentum)
            gradient.lerp_(momentum, self.momentum)  # Nesterov
        for owners in self._buckets:
            self._orthogonalise(owners)
        rate, decay, squares = self.learning_rate, self.weight_decay, []
        for flat in shards:
            for piece, weights, gradient, _, _ in super()._views(flat):
                if piece.tensor in self._shapes:
                    if piece.decayed and decay:
                        gradient.add_(weights, alpha=decay)
                    weights.add_(gradient, alpha=-rate)
                    squares.append(square_sum(gradient))
        if squares:
            self.update_square += rate * rate * torch.stack(squares).double().sum()
        return True

    def _orthogonalise(self, owners: list[list[int]]) -> None:
        """Replace the momentum in the gradient buffers of the matrices of `owners` [rank] by their updates."""
        whole = self._gather(owners)
        by_shape: dict[tuple[int, int], list[int]] = {}
        for tensor in whole:
            by_shape.setdefault(self._shapes[tensor], []).append(tensor)
        for shape, tensors in by_shape.items():
            stacked_BMN = torch.stack([whole[tensor].view(shape) for tensor in tensors])
            updates_BMN = orthogonalise(stacked_BMN) * (0.2 * max(shape) ** 0.5)
            whole |= {tensor: update.reshape(-1) for tensor, update in zip(tensors, updates_BMN, strict=True)}
        self._scatter(owners, whole)

    def _gather(self, owners: list[list[int]]) -> dict[int, torch.Tensor]:
        """This rank's matrices of a bucket, whole and flattened."""
        mine = owners[self._rank]
        if len(owners) == 1 or not self.sharded:
            return {tensor: self._own[tensor].gradient.to(self.iterate_in) for tensor in mine}
        sent = [self._cat(self._own[t].gradient for t in held if t in self._own) for held in owners]
        received = self._exchange(sent, [sum(runs[t][1] for t in mine if t in runs) for runs in self._runs])
        whole = {tensor: received[0].new_empty(numel(self._shapes[tensor])) for tensor in mine}
        for runs, parts in zip(self._runs, received, strict=True):
            held = [tensor for tensor in mine if tensor in runs]
            for tensor, part in zip(held, parts.split([runs[tensor][1] for tensor in held]), strict=True):
                start, length = runs[tensor]
                whole[tensor].narrow(0, start, length).copy_(part)
        return whole

    def _scatter(self, owners: list[list[int]], whole: dict[int, torch.Tensor]) -> None:
        """Write the updates to the gradient buffers of all ranks."""
        if len(owners) == 1:
            received = [torch.cat([whole[tensor] for tensor in owners[0]])]
        elif not self.sharded:
            received = [self._broadcast(rank, tensors, whole) for rank, tensors in enumerate(owners)]
        else:
            mine = owners[self._rank]
            sent = [self._cat(whole[t].narrow(0, *runs[t]) for t in mine if t in runs) for runs in self._runs]
            lengths = [sum(self._own[t].length for t in tensors if t in self._own) for tensors in owners]
            received = self._exchange(sent, lengths)
        for tensors, parts in zip(owners, received, strict=True):
            held = [self._own[tensor] for tensor in tensors if tensor in self._own]
            for run, part in zip(held, parts.split([run.length for run in held]), strict=True):
                run.gradient.copy_(part)

    def _broadcast(self, owner: int, tensors: list[int], whole: dict[int, torch.Tensor]) -> torch.Tensor:
        size = sum(numel(self._shapes[tensor]) for tensor in tensors)
        updates = self._cat(whole[tensor] for tensor in tensors if owner == self._rank)
        if owner != self._rank:
            updates = updates.new_empty(size)
        if size:
            dist.broadcast(updates, owner)
        return updates

    def _cat(self, parts: Iterable[torch.Tensor]) -> torch.Tensor:
        """`parts`, possibly none, one after the other in the type of the iteration."""
        return torch.cat([torch.empty(0, dtype=self.iterate_in, device=self._device), *parts]).to(self.iterate_in)

    def _exchange(self, sent: list[torch.Tensor], lengths: list[int]) -> list[torch.Tensor]:
        """All-to-all: `sent` [rank] to each rank; what each rank sent here, of `lengths` [rank]."""
        received = torch.empty(sum(lengths), dtype=self.iterate_in, device=self._device)
        dist.all_to_all_single(received, torch.cat(sent), lengths, [len(part) for part in sent])
        return list(received.split(lengths))

    @property
    def _device(self) -> torch.device:
        return self.param_groups[0]["params"][0].device


def _deal(shapes: dict[int, tuple[int, int]], world: int, bucket_size: int) -> list[list[list[int]]]:
    """Buckets of matrices by owner: the most expensive first, each to the rank with the least work so far."""
    work, owned = [0.0] * world, [[] for _ in range(world)]
    for tensor in sorted(shapes, key=lambda tensor: (-iteration_flops(*shapes[tensor]), tensor)):
        rank = work.index(min(work))
        work[rank] += iteration_flops(*shapes[tensor])
        owned[rank].append(tensor)
    by_rank = [_cut(tensors, shapes, bucket_size) for tensors in owned]
    return [[cuts[i] if i < len(cuts) else [] for cuts in by_rank] for i in range(max(map(len, by_rank), default=0))]


def _cut(tensors: list[int], shapes: dict[int, tuple[int, int]], bucket_size: int) -> list[list[int]]:
    buckets, filled = [], bucket_size
    for tensor in tensors:
        size = numel(shapes[tensor])
        if filled + size > bucket_size:
            buckets.append([])
            filled = 0
        buckets[-1].append(tensor)
        filled += size
    return buckets
