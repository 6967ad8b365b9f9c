"""What the original computed for seeded random weights: read by `convert`, as users read its files."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import places
from tests.original.keras_files import original_json, write_pretraining
from twilbert.convert import convert
from twilbert.hub.folder import load_model_folder
from twilbert.model.config import ModelConfig
from twilbert.original.weights import assemble

COPIES = places.GOLDEN
SHARED = places.SHARED / "golden"


@dataclass
class Golden:
    """What the original computed for seeded random weights and inputs."""

    config: ModelConfig
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    arrays: dict[str, Tensor]  # tokens, positions, segments, hidden, mlm, rop, y_mlm, y_rop, eval


def shared(path: str) -> Path:
    """A file of the original's golden data; skips where they are absent."""
    if not (SHARED / path).exists():
        pytest.skip(f"{SHARED / path} is not on this machine")
    return SHARED / path


@functools.lru_cache
def golden(case: str) -> Golden:
    """The case "copy/NAME" (kept beside the tests) or "shared/NAME" (the original's own files; skips where absent)."""
    place, name = case.split("/")
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "weights.hdf5"
        if place == "copy":
            with np.load(COPIES / f"{name}.npz") as file:
                stored = dict(file)
            original = json.loads(str(stored.pop("config")))
            arrays = [stored.pop(key) for key in sorted(k for k in stored if k.startswith("w|"))]
            gradients = [stored.pop(key) for key in sorted(k for k in stored if k.startswith("g|"))]
            write_pretraining(weights, config_of(original), arrays)
        else:
            original = json.loads(shared(f"models/{name}.json").read_text())["config"]
            weights = shared(f"models/{name}.hdf5")
            with np.load(shared(f"models/{name}.grads.npz")) as file:
                gradients = [file[key] for key in sorted(file.files)]
            with np.load(shared(f"models/{name}.npz")) as file:
                stored = dict(file)
        settings = Path(scratch) / "config.json"
        settings.write_text(json.dumps(original_json(config_of(original))))
        convert(str(weights), str(settings), str(Path(scratch) / "model"))
        config, model = load_model_folder(str(Path(scratch) / "model"))
    readers = [lambda array=array: torch.from_numpy(array) for array in gradients]
    held = {key: torch.from_numpy(value) for key, value in stored.items()}
    return Golden(config, model.state_dict(), assemble(config, readers), held)


def config_of(original: dict[str, Any]) -> ModelConfig:
    """The sizes of a golden case, as its JSON gives them."""
    fields = dict(original)
    fields["hidden_size"] = fields.pop("hidden")
    return ModelConfig(**fields)
