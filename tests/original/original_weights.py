"""What the original computed for seeded random weights: read by `convert`, as users read its files."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.original.keras_files import original_json
from tests.places import GOLDEN
from twilbert.convert import convert
from twilbert.hub.folder import ModelFolder
from twilbert.model.config import ModelConfig
from twilbert.original.weights import assemble


@dataclass
class Golden:
    """What the original computed for seeded random weights and inputs."""

    config: ModelConfig
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    arrays: dict[str, Tensor]  # tokens, positions, segments, hidden, mlm, rop, y_mlm, y_rop, eval


@functools.lru_cache
def golden(name: str) -> Golden:
    """The case `name` of golden/models: its weight file converted, its gradients under our names, its outputs."""
    source = GOLDEN / "models"
    original = json.loads((source / f"{name}.json").read_text())["config"]
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch) / "config.json"
        settings.write_text(json.dumps(original_json(config_of(original))))
        convert(str(source / f"{name}.hdf5"), str(settings), str(Path(scratch) / "model"))
        folder = ModelFolder.open(str(Path(scratch) / "model"))
        config, state = folder.config, folder.load_pretrained().state_dict()
    with np.load(source / f"{name}.grads.npz") as file:
        readers = [lambda array=file[key]: torch.from_numpy(array) for key in sorted(file.files)]
    with np.load(source / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    return Golden(config, state, assemble(config, readers), arrays)


def config_of(original: dict[str, Any]) -> ModelConfig:
    """The sizes of a golden case, as its JSON gives them."""
    fields = dict(original)
    fields["hidden_size"] = fields.pop("hidden")
    return ModelConfig(**fields)
