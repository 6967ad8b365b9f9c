"""Bytes on disk, and of tensors on one device under every ZeRO stage of DeepSpeed 0.19 with this program's settings.

    start of a backward   states + gradients so far + activations
    end of the last one   states + gradients + DeepSpeed's buffers

The larger is the peak: activations are gone by the time the last gradient is there. P parameters, N devices:

    stage        weights   masters  moments  gradients                         buffers at the end
    0 fp32       4P                 8P       4P                                4P flattened for the all_reduce
    1 bf16       2P        4P/N     8P/N     2P, and 4P to accumulate in fp32  the largest in fp32
    1 fp32       4P        4P/N     8P/N     4P                                a bucket
    2 bf16       2P        4P/N     8P/N     4P/N                              a bucket, 6P
    2 fp32       4P        4P/N     8P/N     4P/N                              a bucket, 4P (where N > 1), 4P/N
    3            sP/N      4P/N     8P/N     4P/N                              a bucket, 4P, 4P/N; sP gathered weights

A bucket holds 5e8 numbers (pretraining/engine.py); a GPU reserves all of it, a CPU the pages that are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twilbert.data.encoded.format import EncodedCorpus
from twilbert.model.config import ModelConfig, count_parameters
from twilbert.planning.activations import Activations
from twilbert.recipe.pretraining import Recipe

TEXT_BYTES_TOKEN = 2.3
"""Text as zstd Parquet with message ids, measured on generated tweets; real ones may take 1.5 times that."""
ENCODED_BYTES_TOKEN = 2.0
"""Token ids as zstd Parquet, counts included."""
_PAIRS = 1_000_000


def disk(
    recipe: Recipe, parameters: float, number: int, tokens_a_sample: float, encoded: EncodedCorpus | None
) -> dict[str, Any]:
    """Return the bytes on disk by purpose; without an encoded corpus those of a million pairs."""
    training = recipe.training
    model = number * parameters
    checkpoint = 12 * parameters + model
    permanent = training.max_steps // training.save_keep_every if training.save_keep_every else 0
    checkpoints = min(training.save_total_limit + 2, -(-training.max_steps // training.save_steps)) + permanent
    if encoded is not None:
        pairs = sum(split.rows for split in encoded.splits.values())
        tokens = sum(split.tokens for split in encoded.splits.values())
        ids = float(sum(shard.size for split in encoded.splits.values() for shard in split.shards))
    else:
        pairs, tokens = _PAIRS, _PAIRS * (tokens_a_sample - 3)
        ids = ENCODED_BYTES_TOKEN * tokens
    text = TEXT_BYTES_TOKEN * tokens
    return {
        "corpus_rows": pairs,
        "corpus_text": text,
        "corpus_encoded": ids,
        "checkpoint": checkpoint,
        "checkpoints_kept": checkpoints,
        "checkpoints": checkpoints * checkpoint,
        "model": model,
        "total": text + ids + checkpoints * checkpoint + model,
    }


BUCKET = 500_000_000
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors on one device."""

    weights: float
    masters: float
    moments: float
    gradients: float
    """Of one step, at its end."""
    buffers: float
    """DeepSpeed's, at the end of the last backward."""
    activations: float
    """Saved by a forward pass of the largest micro-batch."""
    temporaries: float
    """Of its backward, and DeepSpeed's bucket where it is reserved."""
    gradients_before: float
    """Gradients at the start of the last backward."""
    accumulators: float
    """Gradients whose tensors outlive the step."""

    @property
    def states(self) -> float:
        """Tensors that are always allocated."""
        return self.weights + self.masters + self.moments

    @property
    def resting(self) -> float:
        """Tensors between two steps: the states, and accumulators of bf16 gradients under stage 1."""
        return self.states + self.accumulators

    @property
    def at_peak(self) -> dict[str, float]:
        """Bytes at the peak, by part."""
        backward = {
            "gradients": self.gradients_before,
            "activations": self.activations,
            "temporaries": self.temporaries,
        }
        end = {"gradients": self.gradients, "buffers": self.buffers}
        states = {"weights": self.weights, "masters": self.masters, "moments": self.moments}
        return states | max(backward, end, key=lambda phase: sum(phase.values()))

    @property
    def peak(self) -> float:
        """Bytes at the peak."""
        return sum(self.at_peak.values())


def memory(
    config: ModelConfig, saved: Activations, *, precision: str, stage: int, world: int, accumulation: int, gpu: bool
) -> Memory:
    """Return the bytes of one of `world` devices; stage 0 has no bf16, its figures are fp32's."""
    p, share = float(count_parameters(config)["total"]), 1 / world
    number = 2 if precision == "bf16" and stage else 4
    values = config.pkm_params.memory_size**2 * config.memory_value_size if config.memory_layers else 0
    largest = float(
        max(config.vocab_size * config.hidden_size, (config.vocab_size + 1) * config.embedding_size, values)
    )
    bucket = number * (BUCKET if gpu else min(BUCKET, p))
    if stage == 3:
        bucket *= 4 / number  # communicates in fp32
    gathered = number * p if stage == 3 and world > 1 else 0
    has_bucket = stage >= 2 or (stage == 1 and number == 4)
    temporaries = saved.peak - saved.total + gathered + (bucket if gpu and has_bucket else 0)
    if stage == 0:
        gradients, buffers = 4 * p, 4 * p
    elif stage == 1 and number == 2:
        gradients, buffers = 6 * p, max(4 * largest, 0 if gpu or world == 1 else 2 * p)
    elif stage == 1:
        gradients, buffers = 4 * p, bucket
    elif stage == 2 and number == 2:
        gradients, buffers = 4 * p * share, bucket + 6 * p
    elif stage == 2:
        gradients, buffers = 4 * p * share, bucket + (4 * p if world > 1 else 0) + 4 * p * share
    else:
        gradients, buffers = 4 * p * share, bucket + gathered + 4 * p + 4 * p * share
    before = gradients if accumulation > 1 or stage == 3 else (4 * p if number == 2 and stage == 1 else 0)
    return Memory(
        weights=number * p * (share if stage == 3 else 1),
        masters=4 * p * share if stage else 0,
        moments=8 * p * (share if stage else 1),
        gradients=gradients,
        buffers=buffers,
        activations=saved.total,
        temporaries=temporaries,
        gradients_before=before,
        accumulators=4 * p if number == 2 and stage == 1 else 0,
    )


def checkpoint_host_bytes(config: ModelConfig, precision: str, stage: int, world: int) -> float:
    """Return the bytes of host memory that writing a checkpoint takes on rank 0, which writes the model as well.

    fp32 masters and moments are copied to buffers that stay; safetensors copies every tensor to bytes, and those to the
    bytes of the file. The weights are copied and made into a file's bytes too.
    """
    p = float(count_parameters(config)["total"])
    return 3 * 12 * p / world + 2 * (2 if precision == "bf16" and stage else 4) * p
