"""The optimisers by name, and the one of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from twilbert.optim.adam import Adam, AdamW
from twilbert.optim.fragments import FragmentOptimizer
from twilbert.optim.lamb import Lamb
from twilbert.optim.muon import Muon
from twilbert.recipe.pretraining import Recipe

OPTIMIZERS: dict[str, type[FragmentOptimizer]] = {"adam": Adam, "adamw": AdamW, "lamb": Lamb, "muon": Muon}


def make_optimizer(recipe: Recipe, parameters: Iterable[torch.Tensor], precision: str) -> FragmentOptimizer:
    """Return the recipe's optimiser, not yet bound; `precision`: fp32 or bf16, in which Muon iterates."""
    training = recipe.training
    settings: dict[str, Any] = {}
    if training.optimizer == "lamb":
        settings = {"trust_clip": training.trust_clip}
    elif training.optimizer == "muon":
        settings = {
            "momentum": training.muon_momentum,
            "adamw_ratio": (training.adamw_learning_rate or recipe.peak_learning_rate) / recipe.peak_learning_rate,
            "iterate_in": torch.bfloat16 if precision == "bf16" else torch.float32,
        }
    return OPTIMIZERS[training.optimizer](
        parameters,
        beta1=training.beta1,
        beta2=recipe.beta2,
        epsilon=training.epsilon,
        weight_decay=training.weight_decay,
        exclude_1d=training.exclude_1d,
        **settings,
    )
