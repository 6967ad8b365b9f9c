"""Padding, sharing, dropout, initialisation and types of the encoder."""

from __future__ import annotations

import pytest
import torch

from tests.model.small import SMALL, SWITCHES, batch, config
from twilbert.errors import TwilbertError
from twilbert.model import encoder as encoder_module
from twilbert.model.architecture import Architecture
from twilbert.model.encoder import Embeddings, Encoder
from twilbert.model.heads import PretrainingModel
from twilbert.model.memory import ProductKeyMemory


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_sample_is_the_same_alone_and_padded_in_a_batch(switch: str):
    torch.manual_seed(0)
    encoder = Encoder(config(switch)).eval()
    data = batch([19, 12, 5])
    with torch.no_grad():
        together = encoder(data["input_ids"], data["segment_ids"], data["lengths"])
        for row, n in enumerate(data["lengths"].tolist()):
            alone = encoder(data["input_ids"][row : row + 1, :n], data["segment_ids"][row : row + 1, :n])
            torch.testing.assert_close(together[row, :n], alone[0], rtol=1e-5, atol=1e-5)


def test_what_stands_at_padding_changes_nothing_in_training_either():
    torch.manual_seed(0)
    model = PretrainingModel(config("all")).train()
    data = batch([19, 12, 5])
    gradients = []
    for filler in (0, 17):
        real = torch.arange(19) < data["lengths"][:, None]
        out = model(**data | {"input_ids": data["input_ids"].where(real, filler)})
        loss = out.mlm_loss_sum + out.rop_loss_sum
        gradients.append((loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))))
    for zero, other in zip(*gradients, strict=True):
        torch.testing.assert_close(zero, other, rtol=1e-5, atol=1e-6)


def test_no_mask_where_a_batch_has_no_padding(monkeypatch: pytest.MonkeyPatch):
    without_bias = []
    plain = encoder_module._attend_matmul
    monkeypatch.setattr(
        encoder_module, "_attend_matmul", lambda qkv, bias, _: (without_bias.append(bias is None), plain(qkv, bias))[1]
    )
    encoder = Encoder(SMALL)
    for lengths in ([7, 7], [7, 6]):
        data = batch(lengths)
        encoder(data["input_ids"], data["segment_ids"], data["lengths"])
    assert without_bias == [True] * 3 + [False] * 3


@pytest.mark.parametrize("padded", [False, True])
def test_both_attention_kernels_agree(padded: bool):
    torch.manual_seed(0)
    qkv = torch.randn(3, 11, 3, 4, 6, requires_grad=True)
    bias = None
    if padded:
        bias = torch.zeros(3, 1, 1, 11)
        bias[0, ..., 8:] = torch.finfo(torch.float32).min
    outputs = [f(qkv, bias) for f in (encoder_module._attend_matmul, encoder_module._attend_sdpa)]
    weight = torch.randn(3, 11, 4, 6)
    gradients = [torch.autograd.grad((out * weight).sum(), qkv)[0] for out in outputs]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_a_shared_block_is_one_module_called_for_every_layer():
    encoder = Encoder(config("shared"))
    calls = []
    encoder.blocks["0"].register_forward_hook(lambda *_: calls.append(1))
    data = batch([6, 6])
    encoder(data["input_ids"], data["segment_ids"])
    assert list(encoder.blocks) == ["0"]
    assert len(calls) == SMALL.n_encoders


def test_names_are_readable():
    names = set(PretrainingModel(config("all")).state_dict())
    assert {
        "encoder.embeddings.token.weight",
        "encoder.embeddings.projection.bias",
        "encoder.blocks.0.attention.qkv.weight",
        "encoder.blocks.0.attention_norm.weight",
        "encoder.blocks.0.feed_forward.up.weight",
        "encoder.blocks.1.memory.query_norm.running_mean",
        "encoder.blocks.1.memory.values.weight",
        "reply_order.hidden.1.norm.weight",
        "masked_lm.decoder.bias",
    } <= names


def test_input_dropout_drops_whole_channels_of_a_sample():
    torch.manual_seed(0)
    embeddings = Embeddings(config("plain", input_dropout=0.25), Architecture()).train()
    data = batch([20] * 200)
    with torch.no_grad():
        dropped = embeddings(data["input_ids"], data["segment_ids"])
        whole = embeddings.eval()(data["input_ids"], data["segment_ids"])
    gone_BH = (dropped == 0).all(1)
    assert torch.equal((dropped == 0).any(1), gone_BH)
    torch.testing.assert_close(dropped, (whole / 0.75).where(~gone_BH[:, None], 0.0))
    assert abs(gone_BH.float().mean() - 0.25) < 0.02
    assert not (gone_BH == gone_BH[0]).all()


def test_dropouts_act_in_training_alone():
    data = batch([9, 9])
    memory = {"input_dropout": 0.5, "output_dropout": 0.5, "in_layers": [1], "memory_size": 8, "knn": 4, "k_dim": 16}
    for change in ({"input_dropout": 0.5}, {"output_dropout": 0.5}, {"pkm": True, "pkm_params": memory}):
        encoder = Encoder(config("plain", **change))
        first, second = (encoder.train()(data["input_ids"], data["segment_ids"]) for _ in range(2))
        assert not torch.allclose(first, second)
        first, second = (encoder.eval()(data["input_ids"], data["segment_ids"]) for _ in range(2))
        assert torch.equal(first, second)


def test_initialisation_is_a_normal_cut_at_two_deviations():
    torch.manual_seed(0)
    big = config("all", vocab_size=2000, hidden_size=256, initializer_range=0.05)
    model = PretrainingModel(big)
    drawn_elsewhere = {f"encoder.blocks.1.memory.{name}" for name in ("keys", "values.weight", "query_norm.weight")}
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif name not in drawn_elsewhere:
            assert parameter.abs().max() <= 0.1, name
            # A normal cut at two deviations has 0.88 of its deviation.
            if parameter.numel() > 4000:
                assert abs(parameter.std() / 0.05 - 0.88) < 0.03, name
                assert abs(parameter.mean()) < 0.003, name
    memory = model.encoder.blocks["1"].memory
    assert isinstance(memory, ProductKeyMemory)
    assert memory.keys.abs().max() <= 8**-0.5
    assert abs(memory.values.weight.std() / 16**-0.5 - 0.88) < 0.05


def test_one_seed_gives_one_model():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(PretrainingModel(config("all")).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("switch", ["plain", "memory", "all"])
def test_bf16_stays_close_to_fp32(switch: str):
    torch.manual_seed(0)
    model = PretrainingModel(config(switch)).eval()
    data = batch([19, 12, 5])
    with torch.no_grad():
        exact = model(**data)
        rough = model.bfloat16()(**data)
    assert {value.dtype for value in rough} == {torch.float32}
    torch.testing.assert_close(rough.mlm_loss_sum, exact.mlm_loss_sum, rtol=0.01, atol=0)
    if model.reply_order is not None:
        torch.testing.assert_close(rough.rop_loss_sum, exact.rop_loss_sum, rtol=0.02, atol=0)


def test_longer_than_the_positions_is_refused():
    too_long = torch.ones(1, SMALL.n_positions + 1, dtype=torch.long)
    with pytest.raises(TwilbertError, match="37 tokens, but the model has 36 positions"):
        Encoder(SMALL)(too_long, torch.zeros_like(too_long))
