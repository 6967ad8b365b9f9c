"""Cross-entropy over a large vocabulary with little memory.

Letters: K masked positions, V vocabulary, R of the K rows at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS_CPU = 32  # rows in fp32 at a time: they stay in the cache (32 · 30,002 · 4 bytes = 3.8 MB)
_ROWS_GPU = 512


class _TokenCrossEntropy(torch.autograd.Function):
    """-log softmax(logits)[label] of each row; the backward overwrites the logits with their gradient.

    Softmax and its sums are fp32 for logits of any type, a few rows at a time, so that no full fp32 copy exists.
    """

    @staticmethod
    def forward(ctx, logits_KV: Tensor, labels_K: Tensor) -> Tensor:
        rows = _ROWS_GPU if logits_KV.is_cuda else _ROWS_CPU
        logsum_K = torch.empty(logits_KV.shape[0], dtype=torch.float32, device=logits_KV.device)
        for logits_RV, logsum_R in zip(logits_KV.split(rows), logsum_K.split(rows), strict=True):
            logsum_R.copy_(torch.logsumexp(logits_RV.float(), -1))
        label_logit_K = logits_KV.gather(1, labels_K[:, None])[:, 0].float()
        ctx.save_for_backward(logits_KV, labels_K, logsum_K, label_logit_K)
        ctx.rows = rows
        return logsum_K - label_logit_K

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (gradient_K,) = gradients
        logits_KV, labels_K, logsum_K, label_logit_K = ctx.saved_tensors
        pieces = (x.split(ctx.rows) for x in (logits_KV, logsum_K, gradient_K))
        for logits_RV, logsum_R, gradient_R in zip(*pieces, strict=True):
            p_RV = logits_RV.float()  # a view where the logits are fp32
            p_RV.sub_(logsum_R[:, None]).exp_().mul_(gradient_R[:, None])
            if p_RV.dtype != logits_RV.dtype:
                logits_RV.copy_(p_RV)
        # p - 1 at the label in fp32: from a rounded p it would vanish where the model is nearly sure.
        at_label_K = torch.expm1(label_logit_K - logsum_K) * gradient_K
        logits_KV.scatter_(1, labels_K[:, None], at_label_K[:, None].to(logits_KV.dtype))
        return logits_KV, None


def token_cross_entropy(logits_KV: Tensor, labels_K: Tensor) -> Tensor:
    """Return the negative log-likelihood of each row's label in nats, fp32 [K]; K may be 0.

    `backward` overwrites `logits_KV` (a second one raises): pass the output of a linear map that nothing else needs.
    """
    return _TokenCrossEntropy.apply(logits_KV, labels_K)
