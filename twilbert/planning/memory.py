"""Bytes of tensors on one device under every ZeRO stage, as DeepSpeed 0.19 holds them with this program's settings.

    start of a backward   states + gradients so far + activations
    end of the last one   states + gradients + what DeepSpeed makes of them (buffers)

The larger is the peak: activations are gone by the time the last gradient is there. P parameters, N devices:

    stage        weights   masters  moments  gradients                         buffers at the end
    0 fp32       4P                 8P       4P                                4P flattened for the all_reduce
    1 bf16       2P        4P/N     8P/N     2P, and 4P to accumulate in fp32  the largest in fp32
    1 fp32       4P        4P/N     8P/N     4P                                a bucket
    2 bf16       2P        4P/N     8P/N     4P/N                              a bucket, 6P
    2 fp32       4P        4P/N     8P/N     4P/N                              a bucket, 4P (where N > 1), 4P/N
    3            sP/N      4P/N     8P/N     4P/N                              a bucket, 4P, 4P/N; sP gathered weights

A bucket holds 5e8 numbers (train/engine.py); a GPU reserves all of it, a CPU the pages that are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twilbert.data.encoded.format import EncodedCorpus
from twilbert.model.config import ModelConfig, count_parameters
from twilbert.planning.activations import Activations
from twilbert.recipe.pretraining import Recipe

TEXT_BYTES_TOKEN = 2.3
"""Of a corpus of generated tweets as zstd Parquet with its message ids; real text may take half as much again."""
ENCODED_BYTES_TOKEN = 2.0
"""Of token ids as zstd Parquet, counts included."""
_PAIRS = 1_000_000


def disk(
    recipe: Recipe, parameters: float, number: int, tokens_a_sample: float, encoded: EncodedCorpus | None
) -> dict[str, Any]:
    """Bytes by what they are for; without an encoded corpus those of a million pairs."""
    training = recipe.training
    model = number * parameters
    checkpoint = 12 * parameters + model
    every = training.save_keep_every
    kept = training.max_steps // every if every else 0
    counted = min(training.save_total_limit + 2, -(-training.max_steps // training.save_steps)) + kept
    if encoded is not None:
        pairs = sum(split.rows for split in encoded.splits)
        tokens = sum(split.tokens for split in encoded.splits)
        ids = float(sum(shard.size for split in encoded.splits for shard in split.shards))
    else:
        pairs, tokens = _PAIRS, _PAIRS * (tokens_a_sample - 3)
        ids = ENCODED_BYTES_TOKEN * tokens
    found = {
        "corpus_rows": pairs,
        "corpus_text": TEXT_BYTES_TOKEN * tokens,
        "corpus_encoded": ids,
        "checkpoint": checkpoint,
        "checkpoints_kept": counted,
        "checkpoints": counted * checkpoint,
        "model": model,
    }
    found["total"] = found["corpus_text"] + found["corpus_encoded"] + found["checkpoints"] + found["model"]
    return found


BUCKET = 500_000_000
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors on one device."""

    weights: float
    masters: float
    moments: float
    gradients: float
    """Of one step, when all of them are there."""
    buffers: float
    """DeepSpeed's at the end of the last backward."""
    activations: float
    """Kept by a forward pass of the largest micro-batch."""
    temporaries: float
    """Beside them in its backward, and DeepSpeed's bucket where it is reserved."""
    gradients_before: float
    """Those that are there when the last backward starts."""
    accumulators: float
    """Of the gradients, those whose tensors outlive the step."""

    @property
    def states(self) -> float:
        """What is there all the time."""
        return self.weights + self.masters + self.moments

    @property
    def resting(self) -> float:
        """What is there between two steps: accumulators of bf16 gradients under stage 1 stay too."""
        return self.states + self.accumulators

    @property
    def at_peak(self) -> dict[str, float]:
        """What is alive at the peak, by part."""
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
        """The most that is alive at once."""
        return sum(self.at_peak.values())


def memory(
    config: ModelConfig, kept: Activations, *, precision: str, stage: int, world: int, accumulation: int, gpu: bool
) -> Memory:
    """What one of `world` devices holds; at stage 0 bf16 is not possible: its figures are fp32's."""
    p, share = float(count_parameters(config)["total"]), 1 / world
    number = 2 if precision == "bf16" and stage else 4
    largest = float(max(_largest(config)))
    bucket = number * (BUCKET if gpu else min(BUCKET, p))
    if stage == 3:
        bucket *= 4 / number  # of the type of communication
    gathered = number * p if stage == 3 and world > 1 else 0
    temporaries = kept.peak - kept.kept + gathered + (bucket if gpu and _has_bucket(number, stage) else 0)
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
        activations=kept.kept,
        temporaries=temporaries,
        gradients_before=before,
        accumulators=4 * p if number == 2 and stage == 1 else 0,
    )


def checkpoint_host_bytes(config: ModelConfig, precision: str, stage: int, world: int) -> float:
    """Bytes of host memory that writing a checkpoint takes on rank 0, which writes the model as well.

    fp32 masters and moments are copied to buffers that stay; safetensors copies every tensor to bytes, and those to the
    bytes of the file. The weights are copied and made into a file's bytes too.
    """
    p = float(count_parameters(config)["total"])
    return 3 * 12 * p / world + 2 * (2 if precision == "bf16" and stage else 4) * p


def _has_bucket(number: int, stage: int) -> bool:
    return stage >= 2 or (stage == 1 and number == 4)


def _largest(config: ModelConfig) -> list[int]:
    """Numbers in the tensors that can be the largest."""
    values = config.pkm_params.memory_size**2 * config.memory_value_size if config.memory_layers else 0
    return [config.vocab_size * config.hidden_size, (config.vocab_size + 1) * config.embedding_size, values]
