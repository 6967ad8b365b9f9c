"""Settings that a user can write: a recipe for each of pre-training, fine-tuning and sweeps."""

from twilbert.recipe.pretraining import Recipe

__all__ = ["Recipe"]
