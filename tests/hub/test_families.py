"""Our encoder beside transformers' own on random weights of each family: the same hidden states and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from twilbert.errors import TwilbertError
from twilbert.hub import families

config_of: Any = transformers.AutoConfig.for_model
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 40, "initializer_range": 0.3,
}  # fmt: skip
ROBERTA = SIZES | {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
CONFIGS = {
    "bert": config_of("bert", **SIZES),
    "bert without types, tanh gelu": config_of("bert", **SIZES | {"type_vocab_size": 1, "hidden_act": "gelu_new"}),
    "distilbert": config_of(
        "distilbert",
        vocab_size=97,
        dim=24,
        n_layers=3,
        n_heads=4,
        hidden_dim=40,
        max_position_embeddings=40,
        initializer_range=0.3,
    ),
    "roberta": config_of("roberta", **ROBERTA),
    "xlm-roberta": config_of("xlm-roberta", **ROBERTA),
    "camembert": config_of("camembert", **ROBERTA),
    "modernbert": config_of(
        "modernbert", **SIZES, pad_token_id=0, local_attention=8, global_attn_every_n_layers=2, local_rope_theta=500.0
    ),
}
LENGTHS = torch.tensor([30, 7, 19, 30])


def both(config: Any) -> tuple[Any, Any]:
    """Transformers' model with drawn biases and norms too, and our encoder with its weights."""
    torch.manual_seed(0)
    theirs: Any = transformers.AutoModel.from_config(config, attn_implementation="eager").double()
    with torch.no_grad():
        for tensor in theirs.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    ours = families.FamilyEncoder(config).double()
    ours.load_state_dict(ours.read(theirs.state_dict()))
    return theirs, ours


def batch(config: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 97, (len(LENGTHS), 30), generator=generator)
    real = torch.arange(30) < LENGTHS[:, None]
    ids = torch.where(real, ids, config.pad_token_id or 0)
    types = torch.randint(0, 2, ids.shape, generator=generator)
    return ids, types if getattr(config, "type_vocab_size", 0) > 1 else torch.zeros_like(ids), real


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("packed", [False, True])
def test_hidden_states_and_gradients_are_transformers(name, packed):
    config = CONFIGS[name]
    theirs, ours = both(config)
    ids, types, real = batch(config)
    given = {"token_type_ids": types} if getattr(config, "type_vocab_size", 0) > 1 else {}
    for module in ours.modules():  # packing is of training; without its dropout the two are comparable
        for dropout in ("dropout", "output_dropout", "attention_output_dropout"):
            if isinstance(getattr(module, dropout, None), float):
                setattr(module, dropout, 0.0)
    theirs.eval(), ours.train(packed)
    alone = [  # transformers' padded rows of windowed attention are nan, which their gradients spread
        theirs(input_ids=ids[i : i + 1, :n], **{key: value[i : i + 1, :n] for key, value in given.items()})
        for i, n in enumerate(LENGTHS.tolist())
    ]
    expected = torch.cat([one.last_hidden_state[0] for one in alone])
    got = ours(ids, types, LENGTHS)[real]
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)  # their rotary angles are of fp32
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (expected * weights).sum().backward()
    (got * weights).sum().backward()
    given_gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in theirs.named_parameters()}
    gradients = ours.read(given_gradients)
    for parameter, tensor in ours.named_parameters():
        if tensor.requires_grad:
            error = float((tensor.grad - gradients[parameter]).norm() / gradients[parameter].norm())
            assert error < 1e-5, (parameter, error)


@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_come_out_as_they_went_in(name):
    config = CONFIGS[name]
    theirs, ours = both(config)
    tensors = theirs.state_dict()
    written = ours.write()
    assert written.keys() == tensors.keys()
    assert all(torch.equal(tensors[key], tensor) for key, tensor in written.items())


def test_missing_tensors_and_other_shapes_are_named():
    config = CONFIGS["bert"]
    theirs, ours = both(config)
    tensors = theirs.state_dict()
    key = "encoder.layer.1.attention.self.key.weight"
    with pytest.raises(TwilbertError, match=rf"{key} is missing, \[24, 24\]"):
        ours.read({name: tensor for name, tensor in tensors.items() if name != key})
    with pytest.raises(TwilbertError, match=r"word_embeddings.weight has the shape \[90, 24\].*\[97, 24\]"):
        ours.read(tensors | {"embeddings.word_embeddings.weight": torch.zeros(90, 24)})


@pytest.mark.parametrize(
    "config",
    [
        config_of("bert", **SIZES | {"hidden_act": "tanh"}),
        config_of("bert", **SIZES, is_decoder=True),
        config_of("distilbert", sinusoidal_pos_embds=True),
        config_of("electra"),
    ],
)
def test_what_is_not_computed_here_is_left_to_transformers(config):
    assert families.architecture_of(config) is None
