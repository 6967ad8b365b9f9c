"""Packed training against the same batch computed with its padding, in float64."""

from __future__ import annotations

import pytest
import torch

from tests.model.small import SWITCHES, config
from twilbert.model import encoder as encoder_module
from twilbert.model.encoder import Encoder
from twilbert.model.packing import find_packing

LENGTHS = (0, 3, 3, 5, 9, 9, 17, 19, 2)  # not sorted at the end, and one empty
POSITIONS = 19


def _run(network: Encoder, lengths_B: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The hidden states at real tokens, and the gradients of a weighted sum of them."""
    torch.manual_seed(1)
    shape = (len(lengths_B), POSITIONS)
    ids, segments = torch.randint(5, network.config.vocab_size, shape), torch.randint(0, 2, shape)
    real = (torch.arange(POSITIONS) < lengths_B[:, None])[..., None]
    weights = torch.randn(*shape, network.config.hidden_size, dtype=torch.float64)
    network.zero_grad()
    hidden = torch.where(real, network(ids, segments, lengths_B), 0.0)
    (hidden * weights).sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("lengths", [LENGTHS, (4, 4, 4, 19), (19, 1)])
def test_packed_is_what_is_computed_with_padding(
    switch: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    network = Encoder(config(switch)).double().train()
    lengths_B = torch.tensor(lengths)
    packed, packed_gradients = _run(network, lengths_B)
    monkeypatch.setattr(encoder_module, "find_packing", lambda *_: None)
    masked, masked_gradients = _run(network, lengths_B)
    torch.testing.assert_close(packed, masked, rtol=0, atol=1e-12)
    assert packed_gradients.keys() == masked_gradients.keys()
    for name, gradient in packed_gradients.items():
        torch.testing.assert_close(gradient, masked_gradients[name], rtol=0, atol=1e-11, msg=name)


def test_only_real_tokens_reach_the_linear_maps(monkeypatch: pytest.MonkeyPatch):
    network = Encoder(config("plain")).double().train()
    shapes = []
    block = next(iter(network.blocks.values()))
    block.attention.qkv.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    _run(network, torch.tensor(LENGTHS))
    network.eval()
    _run(network, torch.tensor(LENGTHS))
    width = network.config.hidden_size
    assert sum(LENGTHS) == 67
    assert shapes == [(128, width), (len(LENGTHS), POSITIONS, width)]  # 67 rounded up to 64s; with padding in eval mode


@pytest.mark.parametrize(("lengths", "packs"), [((18, 18, 18), True), ((19, 19, 19), False), ((0, 0), False)])
def test_batches_are_packed_where_that_saves_something(lengths: tuple[int, ...], packs: bool):
    x_BTH = torch.zeros(len(lengths), POSITIONS, 8)
    assert (find_packing(torch.tensor(lengths), x_BTH) is not None) == packs
    assert find_packing(None, x_BTH) is None


def test_packing_and_unpacking_keep_every_real_token():
    lengths_B = torch.tensor(LENGTHS)
    x_BTH = torch.randn(len(LENGTHS), POSITIONS, 4)
    packing = find_packing(lengths_B, x_BTH)
    assert packing is not None
    real = (torch.arange(POSITIONS) < lengths_B[:, None])[..., None]
    torch.testing.assert_close(packing.unpack(packing.pack(x_BTH)), torch.where(real, x_BTH, 0.0), rtol=0, atol=0)
    x_MH = packing.pack(x_BTH)
    torch.testing.assert_close(packing.ungroup(packing.group(x_MH)), x_MH, rtol=0, atol=0)
    assert sum(group.n for group in packing.groups) == sum(length > 0 for length in LENGTHS)
