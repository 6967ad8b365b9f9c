"""Useful operations: six for every weight that a token meets."""

from __future__ import annotations

import pytest
import torch

from twilbert.model.config import ModelConfig
from twilbert.model.flops import device_peak, useful_flops


def test_base_size_by_hand():
    config = ModelConfig()
    block = 3 * 768 * 384 + 384 * 768 + 2 * 768 * 3072
    expected = 6 * (6 * block * 1000 + 768 * 30002 * 150)
    assert useful_flops(config, 1000, 150) == pytest.approx(expected)


def test_shared_layers_count_every_time_they_run():
    alone, shared = (ModelConfig(n_encoders=4, cross_sharing=sharing) for sharing in (False, True))
    assert useful_flops(alone, 10, 1) == useful_flops(shared, 10, 1)


def test_a_memory_layer_takes_the_place_of_a_feed_forward_part():
    config = ModelConfig(pkm=True, pkm_params={"in_layers": [1], "k_dim": 8, "memory_size": 4, "n_heads": 2, "knn": 3})
    memory = 2 * 8 * 768 + 2 * 8 * 4 + 2 * 3 * 768
    plain = useful_flops(ModelConfig(), 1, 0) / 6
    assert useful_flops(config, 1, 0) / 6 == pytest.approx(plain - 8 * 768**2 + memory)


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12), ("NVIDIA H100 PCIe", 756e12), ("GeForce", None)]
)
def test_a_peak_is_that_of_the_device_of_exactly_this_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert device_peak(torch.device("cuda")) == peak
