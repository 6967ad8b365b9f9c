"""Product-key memory: a very wide layer of which each token reads a few rows (Lample et al. 2019, sections 3.1, 3.2).

    y ─ query ─▶ [norm] ─▶ halves ─ scores against each half's keys ─▶ knn best of each ─▶ knn best sums
      ─ softmax ─▶ weighted sum of those values, summed over the heads ─▶ [projection] ─▶ out

Letters: M tokens, H hidden, N query heads, C channels of half a query, S keys of one half (memory_size), K = knn,
U = S² values, Q = N·2·C query channels, E channels of a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from twilbert.model.config import ModelConfig
from twilbert.model.layers import Linear, WeightedTable

_MOMENTUM, _EPSILON = 0.1, 1e-5


class _SumOverWorkers(torch.autograd.Function):
    """The sum of a tensor over all workers; its gradient is summed too, as every worker's loss uses the sum."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class QueryNorm(nn.Module):
    """Batch normalisation of queries with statistics over all tokens of all workers (Ioffe and Szegedy 2015).

    In training each micro-batch is normalised by its own statistics, summed over the workers when torch.distributed is
    initialised: all workers must then call it equally often, on no tokens too. The running statistics, which `eval`
    uses, change once a step, by `update_running_statistics`. They stay fp32 when the model is cast.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self._pending: Tensor | None = None  # the step's [Σ(x - running_mean), Σ(x - running_mean)², count]

    def forward(self, x_MQ: Tensor) -> Tensor:
        # Relative to the running mean, alike on all workers, so that E[x²] - E[x]² cancels little.
        centred_MQ = x_MQ.float() - self.running_mean
        if self.training:
            mean_Q, var_Q = self._batch_statistics(centred_MQ)
        else:
            mean_Q, var_Q = torch.zeros_like(self.running_mean), self.running_var
        scale_Q = torch.rsqrt(var_Q + _EPSILON) * self.weight
        return ((centred_MQ - mean_Q) * scale_Q + self.bias).to(x_MQ.dtype)

    def _batch_statistics(self, centred_MQ: Tensor) -> tuple[Tensor, Tensor]:
        sums_Q = (centred_MQ.sum(0), centred_MQ.square().sum(0))
        sums = torch.cat([*sums_Q, centred_MQ.new_tensor([centred_MQ.shape[0]])])
        if dist.is_available() and dist.is_initialized():
            sums = _SumOverWorkers.apply(sums)
        total = sums.detach().double()
        self._pending = total if self._pending is None else self._pending + total
        return _mean_and_variance(sums)

    def commit(self) -> None:
        """Move the running statistics towards those of the micro-batches since the last commit."""
        if self._pending is not None and self._pending[-1] > 0:
            mean_Q, var_Q = _mean_and_variance(self._pending)
            self.running_var.lerp_(var_Q.float(), _MOMENTUM)
            self.running_mean.add_(mean_Q.float(), alpha=_MOMENTUM)  # mean_Q is relative to running_mean
        self._pending = None

    def discard(self) -> None:
        """Forget the micro-batches since the last commit."""
        self._pending = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QueryNorm:
        before = {name: buffer for name, buffer in self.named_buffers(recurse=False)}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = getattr(self, name)
            if moved.dtype.itemsize < 4:  # model.bfloat16() and its like: a running mean would stop moving
                setattr(self, name, buffer.to(moved.device, torch.float32))
        return self


def _mean_and_variance(sums: Tensor) -> tuple[Tensor, Tensor]:
    total_Q, squares_Q = sums[:-1].chunk(2)
    count = sums[-1].clamp_min(1)
    mean_Q = total_Q / count
    return mean_Q, (squares_Q / count - mean_Q.square()).clamp_min(0)


def candidate_pairs(knn: int) -> tuple[Tensor, Tensor]:
    """Return the index pairs (i, j) into two descending lists that can be among the knn largest sums.

    These are (i+1)(j+1) ≤ knn: any other pair has at least knn pairs that are no smaller. 119 for knn = 32.
    """
    pairs = torch.tensor([(i, j) for i in range(knn) for j in range(knn // (i + 1))])
    return pairs[:, 0], pairs[:, 1]


class ProductKeyMemory(nn.Module):
    """Tokens read `knn` of memory_size² values per head; the heads share the values and add up."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        pkm, hidden, std = config.pkm_params, config.hidden_size, config.initializer_range
        self.params = pkm
        queries = pkm.n_heads * pkm.k_dim
        self.query = Linear(hidden, queries, std)
        self.query_norm = QueryNorm(queries) if pkm.batch_norm else None
        self.keys = nn.Parameter(torch.empty(pkm.n_heads, 2, pkm.memory_size, pkm.k_dim // 2))
        width = config.memory_value_size
        # Values and keys as in the authors' program: of norm about 1, whatever their width.
        self.values = WeightedTable(pkm.memory_size**2, width, width**-0.5)
        self.value_projection = Linear(width, hidden, std, bias=False) if pkm.factorize_embeddings else None
        self.usage_U: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the keys anew."""
        bound = 1 / math.sqrt(self.params.k_dim // 2)
        nn.init.uniform_(self.keys, -bound, bound)

    def forward(self, y_MH: Tensor) -> Tensor:
        """[M, H] → [M, H]; M may be 0. Only real tokens belong here: they are what query_norm averages over."""
        pkm = self.params
        query_MQ = self.query(F.dropout(y_MH, pkm.input_dropout, self.training))
        if self.query_norm is not None:
            query_MQ = self.query_norm(query_MQ)
        index_MNK, score_MNK = self._best(query_MQ)
        weight_MNK = score_MNK.softmax(-1)
        if self.usage_U is not None:
            self.usage_U.index_add_(0, index_MNK.reshape(-1), weight_MNK.detach().reshape(-1))
        out_ME = self.values(index_MNK.flatten(1), weight_MNK.flatten(1).to(y_MH.dtype))
        out_MH = out_ME if self.value_projection is None else self.value_projection(out_ME)
        return F.dropout(out_MH, pkm.output_dropout, self.training)

    def _best(self, query_MQ: Tensor) -> tuple[Tensor, Tensor]:
        """The knn values of largest score for each head: indices i1·S + i2 and fp32 scores, both [M, N, K]."""
        pkm = self.params
        query_XMC = query_MQ.view(-1, pkm.n_heads * 2, pkm.k_dim // 2).transpose(0, 1)  # X = N·2
        score_XMS = torch.bmm(query_XMC, self.keys.flatten(0, 1).transpose(1, 2))
        half_XMK, key_XMK = score_XMS.topk(pkm.knn, dim=-1)
        half_N2MK = half_XMK.float().unflatten(0, (pkm.n_heads, 2))
        key_N2MK = key_XMK.unflatten(0, (pkm.n_heads, 2))
        first, second = (pair.to(query_MQ.device) for pair in candidate_pairs(pkm.knn))
        sum_NMP = half_N2MK[:, 0].index_select(-1, first) + half_N2MK[:, 1].index_select(-1, second)
        score_NMK, best_NMK = sum_NMP.topk(pkm.knn, dim=-1)
        key1_NMK = key_N2MK[:, 0].gather(-1, first[best_NMK])
        key2_NMK = key_N2MK[:, 1].gather(-1, second[best_NMK])
        return (key1_NMK * pkm.memory_size + key2_NMK).transpose(0, 1), score_NMK.transpose(0, 1)

    def start_usage(self) -> None:
        """Start to add up the weight each value is read with, over this worker's tokens, in `usage_U` [S²]."""
        self.usage_U = torch.zeros(self.params.memory_size**2, device=self.keys.device)

    def stop_usage(self) -> Tensor:
        """Return the weights added up since `start_usage`; sum them over the workers before `usage_statistics`."""
        assert self.usage_U is not None, "start_usage was not called"
        usage_U, self.usage_U = self.usage_U, None
        return usage_U


def usage_statistics(usage_U: Tensor) -> dict[str, float]:
    """Return how evenly a memory is read (Lample et al. 2019, section 4.5), from the weight of each value.

    "used": fraction of the values read at all; "kl": Kullback-Leibler divergence in nats of the reading from an even
    one, 0 to log U; "entropy": that of the reading in nats, log U minus "kl".
    """
    total = usage_U.sum()
    if total == 0:
        return {"used": 0.0, "entropy": 0.0, "kl": math.log(usage_U.numel())}
    share_U = (usage_U / total).double()
    entropy = -torch.special.xlogy(share_U, share_U).sum().item()
    used = (usage_U > 0).float().mean().item()
    return {"used": used, "entropy": entropy, "kl": math.log(usage_U.numel()) - entropy}


def memories(model: nn.Module) -> list[ProductKeyMemory]:
    """Return the product-key memories of a model, in order of layers."""
    return [module for module in model.modules() if isinstance(module, ProductKeyMemory)]


def update_running_statistics(model: nn.Module) -> None:
    """Add the statistics of a step's micro-batches to every query norm's, after the step, on all workers."""
    for memory in memories(model):
        if memory.query_norm is not None:
            memory.query_norm.commit()


def discard_running_statistics(model: nn.Module) -> None:
    """Forget the statistics of the micro-batches of a skipped step, on all workers."""
    for memory in memories(model):
        if memory.query_norm is not None:
            memory.query_norm.discard()
