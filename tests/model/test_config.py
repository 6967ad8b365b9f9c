"""Parameter counts are those of the original, and configurations survive being written."""

from __future__ import annotations

import pytest
import torch

from tests.model.small import SWITCHES, config
from twilbert.errors import TwilbertError
from twilbert.model.config import ModelConfig, PkmParams, count_parameters, layer_blocks
from twilbert.model.heads import PretrainingModel

BASE = ModelConfig(vocab_size=30002)
LARGE = ModelConfig(vocab_size=30002, n_encoders=12, n_heads=12)
XLARGE = ModelConfig(
    vocab_size=30002,
    max_len=64,
    embedding_size=128,
    factorize_embeddings=True,
    n_encoders=12,
    n_heads=12,
    cross_sharing=True,
    pkm=True,
    pkm_params=PkmParams(in_layers=(10,)),
    rop_n_hidden=1,
    rop_hidden_size=512,
)


def _built(model_config: ModelConfig) -> PretrainingModel:
    with torch.device("meta"):
        return PretrainingModel(model_config)


def _size(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("model_config", "encoder", "total"),
    [
        (BASE, 58_674_432, 81_747_508),
        (LARGE, 108_261_120, 131_334_196),
        (ModelConfig(vocab_size=30002, n_encoders=12, n_heads=12, use_rop=False), 108_261_120, 131_332_658),
    ],
    ids=["base", "large", "large without reply order"],
)
def test_counts_of_the_released_sizes(model_config: ModelConfig, encoder: int, total: int):
    counts = count_parameters(model_config)
    assert (counts["encoder"], counts["total"]) == (encoder, total)
    assert _size(_built(model_config)) == total


def test_count_of_xlarge_by_hand():
    embeddings = 30003 * 128 + 132 * 128 + 2 * 128 + (128 * 768 + 768)
    attention = 4 * 768 * 768
    norms = 4 * 768
    shared_block = attention + norms + (768 * 3072 + 3072) + (3072 * 768 + 768)
    queries = 768 * 2048 + 2048 + 2 * 2048  # kernel, bias, the norm's scale and shift
    keys = 4 * 2 * 256 * 256
    memory_block = attention + norms + queries + keys + 65536 * 768
    reply_order = (768 * 512 + 512) + 2 * 512 + (512 * 2 + 2)
    masked_lm = 768 * 30002 + 30002
    total = embeddings + shared_block + memory_block + reply_order + masked_lm
    assert total == count_parameters(XLARGE)["total"] == _size(_built(XLARGE)) == 89_306_036


@pytest.mark.parametrize("switch", SWITCHES)
def test_counts_by_part_equal_the_model(switch: str):
    model_config = config(switch)
    model, counts = _built(model_config), count_parameters(model_config)
    parts = {
        "token_embeddings": _size(model.encoder.embeddings.token),
        "position_embeddings": _size(model.encoder.embeddings.position),
        "segment_embeddings": _size(model.encoder.embeddings.segment),
        "embedding_projection": _size(model.encoder.embeddings.projection),
        "blocks": sum(_size(block) for block in model.encoder.blocks.values() if block.memory is None),
        "memory_blocks": sum(_size(block) for block in model.encoder.blocks.values() if block.memory is not None),
        "encoder": _size(model.encoder),
        "reply_order": _size(model.reply_order),
        "masked_lm": _size(model.masked_lm),
        "total": _size(model),
    }
    assert counts == parts


def test_sharing_joins_all_layers_but_those_with_memory():
    assert layer_blocks(config("plain")) == [0, 1, 2]
    assert layer_blocks(config("shared")) == [0, 0, 0]
    assert layer_blocks(config("all")) == [0, 1, 0]
    assert layer_blocks(config("all", pkm_params={"in_layers": [0]})) == [0, 1, 1]
    assert layer_blocks(config("all", pkm_params={"in_layers": [0, 1, 2]})) == [0, 1, 2]


@pytest.mark.parametrize("switch", SWITCHES)
def test_fields_survive_a_dictionary(switch: str):
    assert ModelConfig.from_dict(config(switch).to_dict()) == config(switch)


def test_attention_size_follows_from_the_heads_when_not_given():
    assert ModelConfig(hidden_size=768, n_heads=12, attention_size=None).attention_size == 64


def test_unknown_and_contradicting_fields_are_named():
    with pytest.raises(TwilbertError, match="'n_layers'"):
        ModelConfig.from_dict({"n_layers": 3})
    with pytest.raises(TwilbertError, match="factorize_embeddings"):
        ModelConfig.from_dict({"embedding_size": 128})
    with pytest.raises(TwilbertError, match="in_layers"):
        ModelConfig.from_dict({"pkm": True, "pkm_params": {"in_layers": [6]}})
