"""Sums of a micro-batch: the same however it is cut, and defined on nothing at all."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.model.small import SWITCHES, batch, config
from twilbert.model.heads import NO_LABEL, PretrainingModel

NOTHING = {
    "no samples": batch([]),
    "nothing masked": batch([9, 7], masked=0),
    "no replies": batch([9, 7]) | {"rop_labels": torch.tensor([NO_LABEL, NO_LABEL])},
    "nothing masked, no replies": batch([9, 7], masked=0) | {"rop_labels": torch.tensor([NO_LABEL, NO_LABEL])},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("switch", SWITCHES)
def test_every_parameter_gets_a_gradient_on_nothing_too(switch: str, case: str, dtype: torch.dtype):
    model = PretrainingModel(config(switch, input_dropout=0.1, output_dropout=0.1)).to(dtype).train()
    out = model(**NOTHING[case])
    (out.mlm_loss_sum + out.rop_loss_sum).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if case in ("no samples", "nothing masked, no replies"):
            assert (parameter.grad == 0).all(), name
    if case == "no samples":
        assert all(value == 0 for value in out)


@pytest.mark.parametrize("switch", ["plain", "all"])
def test_sums_and_gradients_do_not_depend_on_the_cut(switch: str):
    torch.manual_seed(0)
    memory = config(switch).pkm_params
    model = PretrainingModel(config(switch, pkm_params=dataclasses.replace(memory, batch_norm=False)))
    whole = batch([17, 16, 12, 12, 9])
    t = whole["input_ids"].shape[1]
    parts = []
    for start, stop in ((0, 2), (2, 5)):
        width = int(whole["lengths"][start:stop].max())
        here = (whole["masked_index"] >= start * t) & (whole["masked_index"] < stop * t)
        row, column = whole["masked_index"][here] // t - start, whole["masked_index"][here] % t
        part = {name: value[start:stop] for name, value in whole.items() if not name.startswith("masked")}
        part |= {name: part[name][:, :width] for name in ("input_ids", "segment_ids")}
        part |= {"masked_index": row * width + column, "masked_labels": whole["masked_labels"][here]}
        parts.append(part)
    sums, gradients = [], []
    for cut in ([whole], parts):
        outs = [model(**part) for part in cut]
        sums.append(torch.stack([torch.stack(out) for out in outs]).sum(0))
        loss = sums[-1][0] + sums[-1][1]
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*sums, rtol=1e-5, atol=1e-5)
    assert sums[0][4] == 15 and sums[0][5] == 3
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_sums_at_mask_tokens_leave_out_random_and_kept_ones():
    torch.manual_seed(0)
    model, data = PretrainingModel(config("plain")).eval(), batch([14, 12, 9])
    out = model(**data)
    scores = model.score(*(data[name] for name in list(data)[:5]))
    at_mask = data["input_ids"].reshape(-1)[data["masked_index"]] == 2
    assert out.n_at_mask == at_mask.sum() == 5 and out.n_masked == 9
    assert torch.equal(scores.at_mask_K, at_mask)
    torch.testing.assert_close(out.mlm_loss_sum_at_mask, scores.mlm_nll_K[at_mask].sum())
    correct = scores.mlm_prediction_K == data["masked_labels"]
    assert (out.mlm_correct, out.mlm_correct_at_mask) == (correct.sum(), correct[at_mask].sum())
    assert not out.mlm_loss_sum_at_mask.requires_grad


def test_an_untrained_model_is_near_chance():
    torch.manual_seed(0)
    out = PretrainingModel(config("plain")).eval()(**batch([15] * 40))
    assert (out.mlm_loss_sum / out.n_masked).item() == pytest.approx(torch.tensor(50.0).log().item(), rel=0.02)
    assert (out.rop_loss_sum / out.n_rop).item() == pytest.approx(torch.tensor(2.0).log().item(), rel=0.05)


@pytest.mark.parametrize("switch", ["plain", "all"])
def test_a_small_model_learns_a_batch_by_heart(switch: str):
    torch.manual_seed(0)
    model, data = PretrainingModel(config(switch)), batch([14, 14, 12, 12, 9])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        out = model(**data)
        loss = out.mlm_loss_sum / out.n_masked + out.rop_loss_sum / out.n_rop
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert out.mlm_correct == out.n_masked and out.rop_correct == out.n_rop
