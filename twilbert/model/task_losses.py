"""Losses of fine-tuning: cross-entropies, regression errors, and losses that approximate the metrics.

Letters: B samples, C labels. The approximating losses replace counts by sums of probabilities: tp_C = Σ_B y·p,
fp_C = Σ_B (1-y)·p, fn_C = Σ_B y·(1-p), so that precision, recall and F1 have a gradient (Pastor-Pellicer et al. 2013,
equation 6, for F1). They are the original's, over the samples of one batch, except that its Jaccard loss divided by a
constant 16 instead of B.

A user's own loss is a function (logits_BC, targets) -> scalar or [B], as those that `build` returns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from twilbert.errors import UsageError
from twilbert.model.problems import MULTI, REGRESSION, SINGLE

EPSILON = 1e-16  # the original's; below fp32's reach except where a sum is 0


def _counts(y_BC: Tensor, p_BC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Soft true positives, false positives and false negatives of each label, [C]."""
    return (y_BC * p_BC).sum(0), ((1 - y_BC) * p_BC).sum(0), (y_BC * (1 - p_BC)).sum(0)


def _ratio(tp: Tensor, wrong: Tensor) -> Tensor:
    return tp / (tp + wrong + EPSILON) + EPSILON


def _precision_C(y_BC: Tensor, p_BC: Tensor) -> Tensor:
    tp, fp, _ = _counts(y_BC, p_BC)
    return _ratio(tp, fp)


def _recall_C(y_BC: Tensor, p_BC: Tensor) -> Tensor:
    tp, _, fn = _counts(y_BC, p_BC)
    return _ratio(tp, fn)


def _f(precision: Tensor, recall: Tensor, beta: float) -> Tensor:
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def binary_f1(y_BC: Tensor, p_BC: Tensor, beta: float = 1.0) -> Tensor:
    """-F of all cells together."""
    return -(1 + beta**2) * (y_BC * p_BC).sum() / (p_BC + beta**2 * y_BC).sum().clamp_min(EPSILON)


def macro_f1(y_BC: Tensor, p_BC: Tensor, beta: float = 1.0) -> Tensor:
    """-mean over labels of F."""
    return -f_of_labels(y_BC, p_BC, beta).mean()


def f_of_labels(y_BC: Tensor, p_BC: Tensor, beta: float = 1.0) -> Tensor:
    """Soft F of each label, [C]."""
    return _f(_precision_C(y_BC, p_BC), _recall_C(y_BC, p_BC), beta)


def f1_per_class(y_BC: Tensor, p_BC: Tensor, beta: float = 1.0) -> Tensor:
    """-F of each sample's own labels, [B]: frequent labels weigh more."""
    return -(y_BC * f_of_labels(y_BC, p_BC, beta)).sum(1)


def f1_macro(y_BC: Tensor, p_BC: Tensor, beta: float = 1.0) -> Tensor:
    """-F of macro precision and macro recall."""
    return -_f(_precision_C(y_BC, p_BC).mean(), _recall_C(y_BC, p_BC).mean(), beta)


def micro_f1(y_BC: Tensor, p_BC: Tensor, beta: float = 1.0) -> Tensor:
    """-F of micro precision and micro recall."""
    tp, fp, fn = (count.sum() for count in _counts(y_BC, p_BC))
    return -_f(_ratio(tp, fp), _ratio(tp, fn), beta)


def macro_precision(y_BC: Tensor, p_BC: Tensor) -> Tensor:
    """-mean over labels of precision."""
    return -_precision_C(y_BC, p_BC).mean()


def macro_recall(y_BC: Tensor, p_BC: Tensor) -> Tensor:
    """-mean over labels of recall."""
    return -_recall_C(y_BC, p_BC).mean()


def micro_precision(y_BC: Tensor, p_BC: Tensor) -> Tensor:
    """-precision of all cells together."""
    tp, fp, _ = (count.sum() for count in _counts(y_BC, p_BC))
    return -_ratio(tp, fp)


def micro_recall(y_BC: Tensor, p_BC: Tensor) -> Tensor:
    """-recall of all cells together."""
    tp, _, fn = (count.sum() for count in _counts(y_BC, p_BC))
    return -_ratio(tp, fn)


def precision_per_class(y_BC: Tensor, p_BC: Tensor) -> Tensor:
    """-precision of each sample's own labels, [B]."""
    return -(y_BC * _precision_C(y_BC, p_BC)).sum(1)


def recall_per_class(y_BC: Tensor, p_BC: Tensor) -> Tensor:
    """-recall of each sample's own labels, [B]."""
    return -(y_BC * _recall_C(y_BC, p_BC)).sum(1)


def jaccard(y_BC: Tensor, p_BC: Tensor) -> Tensor:
    """-mean over samples of soft intersection over soft union of label sets.

    Not for single labels: there it is -p / (2 - p) of the true label's probability p; any constant answer (-1/C) is
    better than p = 1/C (-1/(2C - 1)) and has no gradient, so trainings end there.
    """
    both_B = (y_BC * p_BC).sum(1)
    either_B = torch.where(p_BC > y_BC, p_BC, y_BC).sum(1)  # at a tie the union does not pull on p, as in TensorFlow
    return -((both_B + EPSILON) / (either_B + EPSILON)).mean()


def rmse(y_BC: Tensor, p_BC: Tensor) -> Tensor:
    """Root of each sample's mean squared error, [B]; the gradient at an exact hit is 0 (the original's was nan)."""
    square_B = (p_BC - y_BC).square().mean(-1)
    hit_B = square_B == 0
    return torch.where(hit_B, 0.0, torch.where(hit_B, 1.0, square_B).sqrt())


def mse(y_BC: Tensor, p_BC: Tensor) -> Tensor:
    """Each sample's mean squared error, [B]."""
    return (p_BC - y_BC).square().mean(-1)


ENTROPIES = ("cross_entropy", "binary_cross_entropy")
# Losses of (targets, probabilities or scores) that give a scalar or [B].
APPROXIMATING: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        binary_f1, macro_f1, micro_f1, f1_macro, f1_per_class, macro_precision, macro_recall, micro_precision,
        micro_recall, precision_per_class, recall_per_class, jaccard, rmse, mse,
    )
}  # fmt: skip
LOSSES = (*ENTROPIES, *APPROXIMATING)
_OF_PROBLEM = {
    SINGLE: tuple(name for name in LOSSES if name not in ("binary_cross_entropy", "jaccard")),
    MULTI: tuple(name for name in LOSSES if name != "cross_entropy"),
    REGRESSION: ("mse", "rmse"),
}
_WEIGHTED = {  # losses with a part for each sample's label, which a weight can multiply
    SINGLE: ("cross_entropy", "f1_per_class", "precision_per_class", "recall_per_class", "rmse", "mse"),
    MULTI: ("binary_cross_entropy",),
    REGRESSION: (),
}


def default_loss(problem: str) -> str:
    """Return the default loss of a problem."""
    return {SINGLE: "cross_entropy", MULTI: "binary_cross_entropy", REGRESSION: "mse"}[problem]


def loss_faults(name: str, problem: str, weighted: bool, label_smoothing: float, beta: float = 1.0) -> list[str]:
    """List the faults of a loss and its settings, each with the remedy."""
    if name not in LOSSES:
        return [f"loss: {name!r} is not known; use {', '.join(LOSSES)}, or package.module:function"]
    faults = []
    if name not in _OF_PROBLEM[problem]:
        faults.append(f"loss: {name} does not fit {problem}; use {', '.join(_OF_PROBLEM[problem])}")
    if weighted and name not in _WEIGHTED[problem]:
        others = ", ".join(_WEIGHTED[problem])
        faults.append(f"class_weights: {name} of {problem} takes none; {f'use {others}' if others else 'remove them'}")
    if label_smoothing and name not in ENTROPIES:
        faults.append(f"label_smoothing: {name} has none; use one of {', '.join(ENTROPIES)}, or 0")
    if not 0 <= label_smoothing < 1:
        faults.append(f"label_smoothing: {label_smoothing} is no share; give one from 0 to below 1")
    if beta != 1 and (name not in APPROXIMATING or "beta" not in inspect.signature(APPROXIMATING[name]).parameters):
        faults.append(f"beta: {name} has none; leave it at 1")
    return faults


def build(
    name: str,
    problem: str,
    class_weights: Sequence[float] | Tensor | None = None,
    label_smoothing: float = 0.0,
    beta: float = 1.0,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function (logits_BC, targets) -> fp32 scalar, the mean over samples.

    Targets: label numbers [B] (single label), flags [B, C] (multi-label), numbers [B] or [B, 1] (regression). A weight
    multiplies the loss of its label's samples (in multi-label tasks, of its positive flags), without division by the
    sum of weights, as in Keras. UsageError that lists every fault of the settings.
    """
    faults = loss_faults(name, problem, class_weights is not None, label_smoothing, beta)
    if faults:
        raise UsageError("\n".join(faults))
    weights_C = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
    extra = {} if beta == 1 else {"beta": beta}

    def loss(logits_BC: Tensor, targets: Tensor) -> Tensor:
        logits_BC = logits_BC.float()
        weights = None if weights_C is None else weights_C.to(logits_BC.device)
        if name == "binary_cross_entropy":
            return _binary_cross_entropy(logits_BC, targets.float(), weights, label_smoothing)
        if name == "cross_entropy":
            value_B = F.cross_entropy(logits_BC, targets, reduction="none", label_smoothing=label_smoothing)
        else:
            value_B = APPROXIMATING[name](*_targets_and_values(logits_BC, targets, problem), **extra)
        return (value_B if weights is None else value_B * weights[targets]).mean()

    return loss


def _targets_and_values(logits_BC: Tensor, targets: Tensor, problem: str) -> tuple[Tensor, Tensor]:
    """Targets [B, C] and the probabilities or numbers [B, C] to compare with them."""
    if problem == SINGLE:
        return F.one_hot(targets, logits_BC.shape[1]).to(logits_BC.dtype), logits_BC.softmax(-1)
    y_BC = targets.reshape(logits_BC.shape).to(logits_BC.dtype)
    return y_BC, logits_BC.sigmoid() if problem == MULTI else logits_BC


def _binary_cross_entropy(logits_BC: Tensor, y_BC: Tensor, weights_C: Tensor | None, label_smoothing: float) -> Tensor:
    """Mean over samples and labels; weights multiply positive flags."""
    smooth_BC = y_BC * (1 - label_smoothing) + label_smoothing / 2
    value_BC = F.binary_cross_entropy_with_logits(logits_BC, smooth_BC, reduction="none")
    if weights_C is not None:
        value_BC = value_BC * torch.where(y_BC > 0, weights_C, 1.0)
    return value_BC.mean()


def auto_weights(targets: Tensor, n_labels: int, problem: str) -> Tensor:
    """Return class weights [C] from training targets: rarer labels weigh more.

    Single label: rows of the most frequent label over rows of this one (the original's `auto`). Multi-label: rows
    without over rows with the label, at least 1 (the original ignored `auto` there). A label without rows has weight 1.
    """
    if problem == MULTI:
        have_C = targets.float().sum(0)
        return torch.where(have_C > 0, (len(targets) - have_C) / have_C.clamp_min(1), 1.0).clamp_min(1.0)
    have_C = torch.bincount(targets, minlength=n_labels).float()
    return torch.where(have_C > 0, have_C.max() / have_C.clamp_min(1), 1.0)
