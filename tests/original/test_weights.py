"""The original's files, met tensor by tensor with what a configuration asks for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.model.small import MEMORY, config
from tests.original.keras_files import random_arrays, write_finetuned, write_pretraining
from tests.places import GOLDEN
from twilbert.errors import UsageError
from twilbert.model.classifier import POOLINGS, ClassificationModel, HeadConfig
from twilbert.model.config import ModelConfig, count_parameters
from twilbert.model.heads import PretrainingModel
from twilbert.original.hdf5 import open_keras
from twilbert.original.weights import (
    UNTRAINED_NORM,
    check_pooling,
    expected_layers,
    is_finetuned,
    load_original,
    vocab_size,
)

NO_NORM = MEMORY | {"batch_norm": False}  # no file of the original has the norm's numbers
CONFIGS = {
    "plain": config("plain", rop_n_hidden=0),
    "inner width": config("plain", attention_size=6, rop_n_hidden=3),
    "factorised, shared": config("factorised", cross_sharing=True, rop_n_hidden=2),
    "memory": config("memory", pkm_params=NO_NORM),
    "memory in every layer": config("memory", pkm_params=NO_NORM | {"in_layers": [0, 1, 2]}),
    "shared, memory first": config("shared", pkm=True, pkm_params=NO_NORM | {"in_layers": [0]}),
    "shared, memory inside": config("shared", pkm=True, pkm_params=NO_NORM),
    "no ROP": config("no reply head"),
}
HEAD = HeadConfig(("no", "tal vez", "sí"))


def load(path: Path, sizes: ModelConfig, head: HeadConfig | None = None, **options) -> dict[str, torch.Tensor]:
    with open_keras(str(path)) as file:
        return load_original(file, sizes, head, **options)


def as_original(state: dict[str, torch.Tensor], sizes: ModelConfig, head: HeadConfig | None = None) -> list[np.ndarray]:
    """Our tensors back in the original's order and shapes."""
    out = []
    for layer in expected_layers(sizes, head):
        for part in layer.parts:
            tensor = state[part.target]
            if part.row is not None:
                tensor = tensor[part.row : part.row + part.shape[-1]]
            out.append((tensor.T if part.turned else tensor).numpy())
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_is_read_whole_and_in_order(name: str, tmp_path: Path):
    sizes = CONFIGS[name]
    path = write_pretraining(tmp_path / "weights.hdf5", sizes)
    with open_keras(str(path)) as file:
        assert not is_finetuned(file)
        assert vocab_size(file) == sizes.vocab_size
        state = load_original(file, sizes)
    PretrainingModel(sizes).load_state_dict(state)
    assert sum(tensor.numel() for tensor in state.values()) == count_parameters(sizes)["total"]
    for ours, theirs in zip(as_original(state, sizes), random_arrays(sizes), strict=True):
        assert np.array_equal(ours, theirs)


def layout_config(name: str) -> ModelConfig:
    base = ModelConfig(vocab_size=300, max_len=16, hidden_size=32, embedding_size=32, n_encoders=3, n_heads=4)
    base = dataclasses.replace(base, attention_size=8, rop_hidden_size=24)
    factorised = {"factorize_embeddings": True, "embedding_size": 16, "cross_sharing": True}
    memory = {"k_dim": 16, "memory_size": 8, "n_heads": 2, "knn": 4, "batch_norm": False}
    changes = {
        "a_plain": {},
        "b_fact_shared": factorised | {"rop_n_hidden": 2},
        "c_pkm": {"pkm": True, "pkm_params": memory | {"in_layers": [1]}, "rop_n_hidden": 1},
        "d_fact_shared_norop": factorised | {"use_rop": False},
        "e_inner24": {"n_heads": 3},
        "f_fact_shared_pkm": factorised
        | {"pkm": True, "pkm_params": memory | {"in_layers": [1, 2]}, "rop_n_hidden": 2},
    }
    return dataclasses.replace(base, **changes[name])


@pytest.mark.parametrize(
    "name", ["a_plain", "b_fact_shared", "c_pkm", "d_fact_shared_norop", "e_inner24", "f_fact_shared_pkm"]
)
def test_layouts_are_those_of_the_originals_files(name: str):
    layout = json.loads((GOLDEN / "models/hdf5_layout.json").read_text())[name]
    theirs = [(path.split("/")[-1].removesuffix(":0"), tuple(shape)) for _, path, shape, *_ in layout["weights"]]
    ours = [(part.role, part.shape) for layer in expected_layers(layout_config(name)) for part in layer.parts]
    assert ours == theirs


# ---- fine-tuned files ----------------------------------------------------------------------------------------------


GOLDEN_HEAD = HeadConfig(("a", "b", "c"))


def probabilities(state: dict[str, torch.Tensor], head: HeadConfig, inputs: dict[str, np.ndarray]) -> np.ndarray:
    model = ClassificationModel(layout_config("a_plain"), head).eval()
    model.load_state_dict(state)
    tokens, segments, positions = (torch.from_numpy(inputs[name]) for name in ("tokens", "segments", "positions"))
    with torch.no_grad():
        return model.probabilities(model(tokens, segments, None, positions)).numpy()


@pytest.mark.parametrize("trainable", [(0, 3), (2, 4), (5,), ()])
def test_frozen_layers_change_the_order_in_the_file_and_nothing_else(trainable: tuple[int, ...], tmp_path: Path):
    head, inputs = GOLDEN_HEAD, dict(np.load(GOLDEN / "finetune/cls.npz"))
    sizes = layout_config("a_plain")
    arrays = as_original(load(GOLDEN / "finetune/cls.h5", sizes, head), sizes, head)
    path = write_finetuned(tmp_path / "frozen.hdf5", sizes, head, arrays, lambda n: n in trainable, inside=None)
    assert np.abs(probabilities(load(path, sizes, head), head, inputs) - inputs["probs"]).max() <= 1e-6


def test_the_originals_frozen_file_is_read_by_its_own_names():
    sizes, path = layout_config("a_plain"), GOLDEN / "finetune/frozen_0_3.hdf5"
    ours = as_original(load(path, sizes, GOLDEN_HEAD), sizes, GOLDEN_HEAD)
    layers = [f"embedding_{n}" for n in (1, 2, 3)] + [f"sentence_encoder_block_{n}" for n in (1, 2, 3)]
    with h5py.File(path) as file:
        names = [name.decode() for name in file["model_2"].attrs["weight_names"]]
        assert names[1].startswith("sentence_encoder_block_1"), "the file does not list trainable layers first"
        theirs = [file["model_2"][name][:] for layer in layers for name in names if name.startswith(f"{layer}/")]
        theirs += [file[f"dense_8/dense_8/{part}:0"][:] for part in ("kernel", "bias")]
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_configuration_fine_tuned_and_partly_frozen(name: str, pooling: str, tmp_path: Path):
    sizes, head = CONFIGS[name], dataclasses.replace(HEAD, pooling=pooling)
    path = write_finetuned(tmp_path / "model.h5", sizes, head, trainable=lambda number: number % 2 == 1)
    with open_keras(str(path)) as file:
        assert is_finetuned(file)
        check_pooling(file, pooling)
        state = load_original(file, sizes, head)
    for ours, theirs in zip(as_original(state, sizes, head), random_arrays(sizes, head), strict=True):
        assert np.array_equal(ours, theirs)


def test_more_than_nine_layers_are_ordered_by_number_not_by_letters(tmp_path: Path):
    sizes = config("plain", n_encoders=12)
    path = write_finetuned(tmp_path / "model.h5", sizes, HEAD, trainable=lambda number: number > 10)
    for ours, theirs in zip(as_original(load(path, sizes, HEAD), sizes, HEAD), random_arrays(sizes, HEAD), strict=True):
        assert np.array_equal(ours, theirs)


def test_another_pooling_than_the_files_is_refused(tmp_path: Path):
    path = write_finetuned(tmp_path / "model.h5", CONFIGS["plain"], HEAD)
    with open_keras(str(path)) as file, pytest.raises(UsageError, match="file pools by cls"):
        check_pooling(file, "max")


def test_an_untrained_query_norm_is_taken_into_the_queries(tmp_path: Path):
    path = write_pretraining(tmp_path / "weights.hdf5", CONFIGS["memory"])
    plain, normed = load(path, CONFIGS["memory"]), load(path, CONFIGS["memory"], untrained_norm=True)
    changed = {name for name in plain if not torch.equal(plain[name], normed[name])}
    assert changed == {f"encoder.blocks.1.memory.query.{part}" for part in ("weight", "bias")}
    for name in changed:
        torch.testing.assert_close(normed[name], plain[name] * UNTRAINED_NORM)


# ---- files and configurations that do not belong together ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 64, "embedding_size": 64}, r"embedding_9/embeddings:0 has shape \[51, 32\].*asks \[51, 64\]"),
        ({"max_len": 20}, r"\[36, 32\].*asks \[44, 32\] there \(embeddings of the position embeddings\)"),
        ({"n_encoders": 4}, r"dense_9/kernel:0 has shape \[32, 24\].*asks \[32, 128\] there \(kernel of encoder block"),
        ({"n_encoders": 2}, r"block_11/kernel:0 has shape \[32, 128\].*hidden layer 0 of ROP"),
        ({"n_heads": 5}, r"block_9/w:0 has shape \[24, 32\].*asks \[30, 32\] there \(w of encoder block 0\)"),
        ({"rop_hidden_size": 8}, r"dense_9/kernel:0 has shape \[32, 24\].*asks \[32, 8\]"),
        ({"rop_n_hidden": 0}, r"dense_9/kernel:0 has shape \[32, 24\].*asks \[32, 2\] there \(kernel of the ROP"),
        ({"use_rop": False}, r"dense_9/kernel:0 has shape \[32, 24\].*asks \[32, 50\] there \(kernel of the MLM"),
        ({"pkm": True, "pkm_params": NO_NORM}, r"block_10/kernel:0 .*\(w of encoder block 1\)"),
    ],
)  # fmt: skip
def test_the_first_tensor_that_differs_is_named_with_both_shapes(changes: dict, says: str, tmp_path: Path):
    path = write_pretraining(tmp_path / "weights.hdf5", config("plain"))
    with pytest.raises(UsageError, match=says):
        load(path, config("plain", **changes))


def test_layers_too_many_and_layers_missing_are_named(tmp_path: Path):
    path = write_finetuned(tmp_path / "model.h5", config("plain"), HEAD)
    with pytest.raises(UsageError, match="2 layers more than the configuration describes, the first is model_2/sent"):
        load(path, config("plain", n_encoders=1), HEAD)
    with pytest.raises(UsageError, match=r"encoder block 3 \(kernel \[32, 128\] and what follows\) is missing"):
        load(path, config("plain", n_encoders=4), HEAD)
    headless = write_pretraining(tmp_path / "weights.hdf5", config("no reply head"))
    with h5py.File(headless, "a") as file:
        file.attrs["layer_names"] = file.attrs["layer_names"][:-1]
    with pytest.raises(UsageError, match=r"the MLM head \(kernel \[32, 50\] and what follows\) is missing"):
        load(headless, config("no reply head"))
