"""The reference LAMB: the paper's, in float64 on whole tensors, with its own gradients; and a LAMB wrong on shards.

Written from You et al. 2020 (arXiv 1904.00962), Algorithm 2, independently of twilbert's optimiser.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twilbert.data.stream.micro_batch import MicroBatch
from twilbert.optim.fragments import Fragment
from twilbert.optim.optimizers import Lamb

Tensors = dict[str, Tensor]


def logical(tensors: Tensors) -> Tensors:
    """The tensors that LAMB adapts separately, in float64: of a fused QKV matrix queries, keys and values."""
    parts: Tensors = {}
    for name, tensor in ((name, tensor.detach()) for name, tensor in tensors.items()):
        if name.endswith("qkv.weight"):
            thirds = tensor.double().view(3, tensor.shape[0] // 3, tensor.shape[1])
            parts |= {f"{name}[{part}]": third for part, third in zip("qkv", thirds, strict=True)}
        else:
            parts[name] = tensor.double()
    return parts


class ReferenceLamb:
    """Algorithm 2 with bias correction: m̂ = m / (1 - β1^t), v̂ = v / (1 - β2^t), r = m̂ / (√v̂ + ε).

    x ← x - η · φ(‖x‖)/‖r + λx‖ · (r + λx), φ the identity; a ratio of 1 where a norm is zero. With `exclude_1d` vectors
    move by η·r. `trust_clip` is the largest ratio, 0 for none. `weights` are by logical name, float64.
    """

    def __init__(
        self,
        weights: Tensors,
        *,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        trust_clip: float = 0.0,
        exclude_1d: bool = True,
    ) -> None:
        self.weights = {name: x.double().clone() for name, x in logical(weights).items()}
        self.beta1, self.beta2, self.epsilon, self.weight_decay = beta1, beta2, epsilon, weight_decay
        self.trust_clip, self.exclude_1d = trust_clip, exclude_1d
        self.m = {name: torch.zeros_like(x) for name, x in self.weights.items()}
        self.v = {name: torch.zeros_like(x) for name, x in self.weights.items()}
        self.t = 0
        self.moved = 0.0
        """‖x_t - x_(t-1)‖ over all tensors of the last step."""

    def step(self, gradients: Tensors, rate: float) -> dict[str, float]:
        """Take one step; the trust ratio of every tensor."""
        self.t += 1
        given = logical(gradients)
        assert given.keys() == self.weights.keys()
        ratios, squares = {}, 0.0
        for name, x in self.weights.items():
            g = given[name]
            self.m[name] = self.beta1 * self.m[name] + (1 - self.beta1) * g
            self.v[name] = self.beta2 * self.v[name] + (1 - self.beta2) * g**2
            m_hat = self.m[name] / (1 - self.beta1**self.t)
            v_hat = self.v[name] / (1 - self.beta2**self.t)
            r = m_hat / (v_hat.sqrt() + self.epsilon)
            plain = self.exclude_1d and x.dim() == 1
            u = r if plain else r + self.weight_decay * x
            ratios[name] = 1.0 if plain else self._ratio(float(x.norm()), float(u.norm()))
            change = rate * ratios[name] * u
            squares += float(change.square().sum())
            self.weights[name] = x - change
        self.moved = squares**0.5
        return ratios

    def _ratio(self, weight_norm: float, update_norm: float) -> float:
        ratio = weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0
        return min(ratio, self.trust_clip) if self.trust_clip else ratio


def relative_errors(got: Tensors, reference: Tensors) -> dict[str, float]:
    """‖p - p_ref‖ / ‖p_ref‖ of each logical tensor; ‖p‖ itself where the reference is zero."""
    parts = logical(got)
    assert parts.keys() == reference.keys()
    errors = {}
    for name, expected in reference.items():
        norm = float(expected.norm())
        errors[name] = float((parts[name] - expected).norm()) / (norm or 1.0)
    return errors


# ---- gradients of its own ------------------------------------------------------------------------------------------


@contextmanager
def float64_model() -> Iterator[None]:
    """Inside, what the model computes in fp32 on purpose is float64: losses and the statistics of query norms."""

    def cross_entropy(logits_KV: Tensor, labels_K: Tensor) -> Tensor:
        return F.cross_entropy(logits_KV, labels_K, reduction="none")

    with (
        patch.object(torch.Tensor, "float", torch.Tensor.double),
        patch("twilbert.model.heads.token_cross_entropy", cross_entropy),
    ):
        yield


def gradients_of(model: nn.Module, parts: Sequence[Sequence[MicroBatch]], max_norm: float) -> tuple[Tensors, float]:
    """(gradients clipped to `max_norm`, their norm before) of a float64 model on one global batch.

    `parts` are forwarded one by one, the micro-batches of a part together: a memory's queries are normalised by them.
    """
    model.zero_grad(set_to_none=True)
    for part in parts:
        with float64_model():
            out = model(*joined(part))
            (out.mlm_loss_sum / part[0].n_masked + out.rop_loss_sum / part[0].n_rop).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = float(torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt())
    if max_norm and norm > max_norm:
        gradients = {name: g * (max_norm / norm) for name, g in gradients.items()}
    return gradients, norm


def joined(batches: Sequence[MicroBatch]) -> tuple[Tensor, ...]:
    """Micro-batches as the model's arguments for one forward of all of them, padded to the longest."""
    longest = max(batch.input_ids.shape[1] for batch in batches)

    def padded(ids_BT: np.ndarray) -> np.ndarray:
        return np.pad(ids_BT, ((0, 0), (0, longest - ids_BT.shape[1])))

    index, samples = [], 0
    for batch in batches:
        row, column = np.divmod(batch.masked_index.astype(np.int64), batch.input_ids.shape[1])
        index.append((samples + row) * longest + column)
        samples += batch.input_ids.shape[0]
    arrays = [
        np.concatenate([padded(batch.input_ids) for batch in batches]),
        np.concatenate([padded(batch.segment_ids) for batch in batches]),
        np.concatenate([batch.lengths for batch in batches]),
        np.concatenate(index),
        np.concatenate([batch.masked_labels for batch in batches]),
        np.concatenate([batch.rop_labels for batch in batches]),
    ]
    return tuple(torch.from_numpy(array.astype(np.int64)) for array in arrays)


def put_weights(model: nn.Module, weights: Tensors) -> None:
    """Set the model's parameters to the logical tensors `weights`."""
    with torch.no_grad():
        for name, part in logical(dict(model.named_parameters())).items():
            part.copy_(weights[name])


# ---- negative control ----------------------------------------------------------------------------------------------


class NaiveLamb(Lamb):
    """A wrong LAMB: one ratio for each piece of a parameter on this rank, without the other ranks' pieces.

    Right only where nothing is cut. `fragments` are to be set after construction. Padding is left out.
    """

    fragments: Sequence[Fragment] = ()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        moments = {id(flat): self.moments(flat) for flat in self.param_groups[0]["params"]}
        if self.update == 0:  # DeepSpeed's step on zeros while it sets itself up
            return
        for f in self.fragments:
            w, g, m, v = (f.of(buffer) for buffer in (f.flat, f.flat.grad, *moments[id(f.flat)]))
            m.lerp_(g, 1 - self.beta1)
            v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
            u = m / (1 - self.beta1**self.update) / ((v / (1 - self.beta2**self.update)).sqrt() + self.epsilon)
            plain = len(f.shape) == 1
            u = u if plain else u + self.weight_decay * w
            ratio = 1.0 if plain or not w.any() or not u.any() else float(w.norm() / u.norm())
            w -= self.learning_rate * ratio * u
