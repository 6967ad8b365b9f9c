"""What the driver hands to every training worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream.masking import MaskingSettings
from twilbert.data.stream.order import StreamPlan
from twilbert.recipe.pretraining import Recipe
from twilbert.tracking.run_folder import RunFolder


@dataclass(frozen=True)
class Job:
    """A pre-training run; picklable, all paths absolute."""

    recipe: Recipe
    run: RunFolder
    encoded: EncodedCorpus
    precision: str
    control: Any
    """Handle of the RunControl actor."""

    def stream_plan(self, world_size: int, accumulation: int) -> StreamPlan:
        """The samples of every step and their partition over workers."""
        recipe = self.recipe
        masked = recipe.objective.masked_lm
        masking = MaskingSettings(
            kind=masked.type, max_span=masked.max_span, budget=masked.budget, **masked.probs.model_dump()
        )
        return StreamPlan(
            encoded=self.encoded,
            seed=recipe.training.seed,
            global_batch_size=recipe.training.global_batch_size,
            world_size=world_size,
            accumulation=accumulation,
            masking=masking,
            reader_groups=recipe.corpus.lanes,
        )
