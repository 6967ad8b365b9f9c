"""Fine-tuning losses: the original's values and gradients, and what it got wrong put right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests import places
from twilbert.errors import UsageError
from twilbert.model import task_losses
from twilbert.model.problems import MULTI, REGRESSION, SINGLE
from twilbert.model.task_losses import APPROXIMATING, LOSSES, auto_weights, build

GOLDEN = np.load(places.GOLDEN / "task_losses.npz")
OURS = {"jaccard_acc": "jaccard", "root_mean_squared_error": "rmse"}
CASES = [key.removesuffix("|value") for key in GOLDEN.files if key.endswith("|value")]


def _golden(case: str) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray | None]:
    """Our value and gradient (of the sum) for a golden case, and the original's."""
    data, name = case.split("|")
    beta = {"beta": 2.0} if name.endswith("_beta2") else {}
    name = name.removesuffix("_beta2")
    y = torch.from_numpy(GOLDEN[f"{data}|y_true"])
    p = torch.from_numpy(GOLDEN[f"{data}|y_pred"]).requires_grad_()
    value = APPROXIMATING[OURS.get(name, name)](y, p, **beta)
    value.sum().backward()
    assert p.grad is not None
    grad = f"{case}|grad"
    return value.detach(), p.grad, GOLDEN[f"{case}|value"], GOLDEN[grad] if grad in GOLDEN.files else None


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_the_originals(case: str):
    value, grad, golden_value, golden_grad = _golden(case)
    if "jaccard" in case:  # the original divides by a constant 16: ours, by the samples, times B / 16 is the same
        samples = len(GOLDEN[f"{case.split('|')[0]}|y_true"])
        value, grad = value * samples / 16, grad * samples / 16
    np.testing.assert_allclose(value.numpy(), golden_value, atol=1e-5, rtol=1e-5)
    if golden_grad is not None:
        known = ~np.isnan(golden_grad)  # where the original's is nan: next test
        np.testing.assert_allclose(grad.numpy()[known], golden_grad[known], atol=1e-5, rtol=1e-5)


def test_the_golden_cases_cover_every_loss_and_there_is_a_gradient_for_most():
    names = {OURS.get(name, name) for name in (case.split("|")[1] for case in CASES)}
    assert set(APPROXIMATING) - {"mse"} <= names
    assert len(CASES) == 83 and sum(f"{case}|grad" in GOLDEN.files for case in CASES) == 78


def test_where_the_original_is_wrong():
    # Its only undefined gradient: the root of an error of exactly 0. Ours is 0 there.
    undefined = [case for case in CASES if f"{case}|grad" in GOLDEN.files and np.isnan(GOLDEN[f"{case}|grad"]).any()]
    assert undefined == ["hard_preds12x3|root_mean_squared_error"]
    _, grad, _, golden = _golden(undefined[0])
    assert (grad.numpy()[np.isnan(golden)] == 0).all()
    # Its Jaccard loss depends on the batch size; ours is the same for a batch and for the batch twice.
    y, p = (torch.from_numpy(GOLDEN[f"multilabel10x11|{name}"]) for name in ("y_true", "y_pred"))
    once, twice = task_losses.jaccard(y, p), task_losses.jaccard(torch.cat([y, y]), torch.cat([p, p]))
    assert once.item() == pytest.approx(twice.item(), abs=1e-6)
    # 0 / 0 where neither labels nor probabilities are there.
    assert task_losses.binary_f1(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0


@pytest.mark.parametrize("problem", [SINGLE, MULTI, REGRESSION])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_can_be_learned_with_or_says_what_to_use(name: str, problem: str):
    torch.manual_seed(0)
    width = 1 if problem == REGRESSION else 3
    targets = {
        SINGLE: torch.tensor([0, 1, 2, 1, 0, 2, 1, 1]),
        MULTI: torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]] * 2),
        REGRESSION: torch.linspace(-1, 1, 8),
    }[problem]
    if task_losses.loss_faults(name, problem, False, 0.0):
        with pytest.raises(UsageError, match=f"{name} does not fit {problem}; use "):
            build(name, problem)
        return
    loss = build(name, problem)
    logits = (0.1 * torch.randn(8, width)).requires_grad_()
    first = loss(logits, targets)
    assert first.shape == () and first.dtype == torch.float32
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        loss(logits, targets).backward()
        assert torch.isfinite(logits.grad).all()
        optimizer.step()
    assert loss(logits, targets).item() < first.item() - 0.1


def test_metric_losses_of_sure_and_right_answers_are_minus_the_metric():
    targets = torch.tensor([0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 0, 1, 1, 1, 0])
    logits = 60.0 * F.one_hot(predicted, 3)
    # label 0: 2 right, 3 said, 3 true; label 1: 2 right, 3 said, 2 true; label 2: never said
    f1 = [2 / 3, 4 / 5, 0.0]
    for name, expected in {
        "macro_f1": sum(f1) / 3,
        "micro_f1": 4 / 6,
        "binary_f1": 4 / 6,
        "macro_precision": (2 / 3 + 2 / 3 + 0) / 3,
        "macro_recall": (2 / 3 + 1 + 0) / 3,
        "micro_precision": 4 / 6,
        "micro_recall": 4 / 6,
        "f1_per_class": (3 * f1[0] + 2 * f1[1] + f1[2]) / 6,
    }.items():
        assert build(name, SINGLE)(logits, targets).item() == pytest.approx(-expected, abs=1e-5), name
    # Sets of labels: 1 of 1, 1 of 2, none of 2, and both empty, which the metric too counts as 1.
    flags = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    predicted = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]])
    sure = 120.0 * predicted - 60.0
    assert build("jaccard", MULTI)(sure, flags).item() == pytest.approx(-(1 + 0.5 + 0 + 1) / 4, abs=1e-5)


def test_jaccard_is_for_sets_of_labels_since_of_one_label_it_ends_at_a_constant_answer():
    """Of one label: descending from no knowledge goes to a constant answer, where no gradient is left."""
    with pytest.raises(UsageError, match="jaccard does not fit single_label_classification; use cross_entropy, "):
        build("jaccard", SINGLE)
    targets = F.one_hot(torch.tensor([0, 1, 2, 3] * 4), 4).float()

    def of(logits_C: torch.Tensor) -> torch.Tensor:
        return task_losses.jaccard(targets, logits_C.softmax(-1).expand(16, 4))

    unknowing, constant = torch.zeros(4), torch.tensor([30.0, 0.0, 0.0, 0.0])
    assert of(unknowing).item() == pytest.approx(-1 / 7) and of(constant).item() == pytest.approx(-1 / 4)
    assert task_losses.micro_recall(targets, unknowing.softmax(-1).expand(16, 4)).item() == pytest.approx(-1 / 4)
    constant.requires_grad_()
    of(constant).backward()
    assert constant.grad is not None and constant.grad.abs().max() < 1e-6


def test_cross_entropy_with_weights_and_smoothing():
    torch.manual_seed(1)
    logits, targets = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    plain = F.cross_entropy(logits, targets, reduction="none")
    assert build("cross_entropy", SINGLE)(logits, targets).item() == pytest.approx(plain.mean().item())
    weights = [1.0, 2.0, 0.5]
    weighted = build("cross_entropy", SINGLE, weights)(logits, targets)  # not divided by the weights' sum
    assert weighted.item() == pytest.approx((plain * torch.tensor(weights)[targets]).mean().item())
    smooth = build("cross_entropy", SINGLE, label_smoothing=0.1)(logits, targets)
    assert smooth.item() == pytest.approx((0.9 * plain - 0.1 * logits.log_softmax(-1).mean(-1)).mean().item(), abs=1e-6)
    # In bfloat16 the loss is still computed in fp32.
    assert build("cross_entropy", SINGLE)(logits.bfloat16(), targets).dtype == torch.float32


def test_binary_cross_entropy_weighs_positive_flags():
    torch.manual_seed(2)
    logits, flags = torch.randn(4, 3), torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
    weights = torch.tensor([1.0, 3.0, 5.0])
    expected = F.binary_cross_entropy_with_logits(logits, flags.float(), pos_weight=weights)
    assert build("binary_cross_entropy", MULTI, weights)(logits, flags).item() == pytest.approx(
        expected.item(), abs=1e-6
    )
    smooth = F.binary_cross_entropy_with_logits(logits, flags * 0.8 + 0.1)
    got = build("binary_cross_entropy", MULTI, label_smoothing=0.2)(logits, flags)
    assert got.item() == pytest.approx(smooth.item(), abs=1e-6)


def test_auto_weights():
    assert auto_weights(torch.tensor([0, 0, 0, 0, 1, 1, 2]), 4, SINGLE).tolist() == [1, 2, 4, 1]
    flags = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 0]])
    assert auto_weights(flags, 3, MULTI).tolist() == [3, 1, 1]


def test_wrong_settings_are_all_told_at_once():
    with pytest.raises(UsageError) as error:
        build("macro_f1", REGRESSION, [1.0, 2.0], label_smoothing=1.5)
    message = str(error.value)
    for part in (
        "does not fit regression; use mse, rmse",
        "class_weights: macro_f1",
        "label_smoothing: macro_f1 has none",
        "1.5 is no share",
    ):
        assert part in message
    with pytest.raises(UsageError, match="'focal' is not known; use cross_entropy"):
        build("focal", SINGLE)
    with pytest.raises(UsageError, match="beta: cross_entropy has none"):
        build("cross_entropy", SINGLE, beta=2.0)
