"""twilbert-convert: from the original's files to a folder that loads, and messages for files that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model.small import config
from tests.original.keras_files import finetuning_json, original_json, write_finetuned, write_pretraining
from tests.places import GOLDEN
from twilbert.convert import main
from twilbert.data.cleaning import FIRST
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.hub.folder import ModelFolder
from twilbert.model.classifier import HeadConfig
from twilbert.model.config import ModelConfig
from twilbert.model.problems import MULTI
from twilbert.recipe import loading

SIZES = config("plain")
HEAD = HeadConfig(("no", "tal vez", "sí"), pooling="concat", dropout=0.1)
SPECIAL = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """weights.hdf5, model.h5 and their configurations, vocab: a model of 50 entries."""
    write_pretraining(tmp_path / "weights.hdf5", SIZES)
    write_finetuned(tmp_path / "model.h5", SIZES, HEAD)
    (tmp_path / "config.json").write_text(json.dumps(original_json(SIZES)))
    (tmp_path / "finetuning.json").write_text(json.dumps(finetuning_json(SIZES, HEAD)))
    (tmp_path / "vocab").write_text("\n".join([*SPECIAL, *(f"##p{i}" for i in range(20)), *map(str, range(25))]) + "\n")
    return tmp_path


def run(folder: Path, weights: str = "weights.hdf5", settings: str = "config.json", *more: str) -> int:
    return main([str(folder / weights), "--config", str(folder / settings), "--out", str(folder / "out"), *more])


def test_a_pre_training_file_becomes_a_model_folder_with_its_recipe(files: Path, capsys):
    assert run(files, "weights.hdf5", "config.json", "--vocab", str(files / "vocab")) == 0
    out = files / "out"
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"model in {out}; the recipe of ")
    folder = ModelFolder.open(str(out))
    sizes, model = folder.config, folder.load_pretrained()
    assert sizes == SIZES and model.reply_order is not None
    assert Tokenizer.load(str(out)).vocab_size == 50
    recipe = loading.load(str(out / "recipe.yaml"))
    assert ModelConfig.from_dict(recipe.architecture(50)) == SIZES


@pytest.mark.parametrize("problem", ["single_label_classification", MULTI])
def test_a_fine_tuned_file_becomes_a_classifiers_folder(files: Path, problem: str):
    head = HeadConfig(HEAD.labels, problem, HEAD.pooling, dropout=0.1)
    (files / "finetuning.json").write_text(json.dumps(finetuning_json(SIZES, head)))
    assert run(files, "model.h5", "finetuning.json", "--vocab", str(files / "vocab")) == 0
    folder = ModelFolder.open(str(files / "out"))
    sizes, held, text, model = folder.config, folder.head, folder.text, folder.load()
    assert (sizes, held) == (SIZES, head)
    assert text == {"remove_rt": True, "max_len": 16, "cleaning": FIRST}
    assert model.classifier.weight.shape == (3, 96)
    settings = json.loads((files / "out" / "config.json").read_text())
    assert settings["id2label"] == {"0": "no", "1": "tal vez", "2": "sí"}
    assert settings["problem_type"] == problem


@pytest.mark.parametrize("name", ["cls", "avg_multilabel"])
def test_the_originals_fine_tuned_files_give_its_probabilities_through_convert(name: str, tmp_path: Path):
    problem = {"problem": MULTI} if name == "avg_multilabel" else {}
    head = HeadConfig(("a", "b", "c"), pooling=name.split("_")[0], **problem)
    sizes = ModelConfig(300, 16, 32, 32, n_encoders=3, n_heads=4, attention_size=8)
    (tmp_path / "finetuning.json").write_text(json.dumps(finetuning_json(sizes, head)))
    weights = GOLDEN / f"finetune/{name}.h5"
    assert main([str(weights), "--config", str(tmp_path / "finetuning.json"), "--out", str(tmp_path / "out")]) == 0
    model = ModelFolder.open(str(tmp_path / "out")).load()
    with np.load(GOLDEN / f"finetune/{name}.npz") as golden:
        tokens, segments, positions = (torch.from_numpy(golden[key]) for key in ("tokens", "segments", "positions"))
        with torch.no_grad():
            ours = model.eval().probabilities(model(tokens, segments, None, positions)).numpy()
        assert np.abs(ours - golden["probs"]).max() <= 1e-6


def test_what_is_there_is_kept_unless_told(files: Path, capsys):
    assert run(files) == 0
    assert "no --vocab" in capsys.readouterr().err
    before = (files / "out" / "model.safetensors").read_bytes()
    assert run(files) == 2
    assert "already holds something" in capsys.readouterr().err
    assert run(files, "weights.hdf5", "config.json", "--overwrite") == 0
    assert (files / "out" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("weights", "settings", "says"),
    [
        ("weights.hdf5", "other.json", "the configuration asks"),
        ("model.h5", "config.json", "is no configuration of fine-tuning"),
        ("model.h5", "pooling.json", "finetuning.collapse_mode is 'cls'"),
        ("model.h5", "sum.json", "pooling is 'sum'"),
        ("model.h5", "labels.json", "the weight file has 3 outputs"),
        ("absent.hdf5", "config.json", "no such file"),
        ("vocab", "config.json", "not an HDF5 file"),
    ],
)
def test_files_that_do_not_belong_together(files: Path, weights: str, settings: str, says: str, capsys):
    content = {
        "other.json": original_json(config("plain", n_encoders=4)),
        "pooling.json": finetuning_json(SIZES, HeadConfig(HEAD.labels)),
        "labels.json": finetuning_json(SIZES, HeadConfig(("no", "sí"), pooling="concat")),
    }
    content["sum.json"] = content["pooling.json"] | {"finetuning": {"collapse_mode": "sum"}}
    for name, value in content.items():
        (files / name).write_text(json.dumps(value))
    assert run(files, weights, settings) == 2
    message = capsys.readouterr().err
    assert says in message and message.count("\n") == 1
    assert not (files / "out").exists()


def test_a_vocabulary_of_another_size_is_refused(files: Path, capsys):
    (files / "vocab").write_text("\n".join([*SPECIAL, "hola"]) + "\n")
    assert run(files, "weights.hdf5", "config.json", "--vocab", str(files / "vocab")) == 2
    assert "6 entries, but the token table" in capsys.readouterr().err
    assert not (files / "out").exists()
