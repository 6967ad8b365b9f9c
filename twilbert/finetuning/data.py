"""A task's train and dev splits, encoded once for any number of trainings; the test file is not opened here.

Letters: N samples, B of a batch, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from twilbert.data.batches import LENGTH_STEP, Batch, Sequences, padded
from twilbert.data.cleaning import chosen
from twilbert.errors import UsageError
from twilbert.finetuning.encoders import Base
from twilbert.model import task_losses
from twilbert.plugins import is_import_path
from twilbert.recipe.finetuning import FinetuneRecipe
from twilbert.tasks.rows import read_split
from twilbert.tasks.task import Task

_WINDOW = 32  # batches among which samples are sorted by length


@dataclass(frozen=True)
class Split:
    """N encoded samples and their labels as in `Rows`: int64 [N], float32 [N, C], or float32 [N]."""

    sequences: Sequences
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TaskData:
    """Train and dev, encoded for one model."""

    train: Split
    dev: Split
    text: Mapping[str, Any]
    """How texts are cleaned and cut, by the keys of `hub.folder.TEXT_SETTINGS`."""


def encode_task(base: Base, task: Task, recipe: FinetuneRecipe) -> TaskData:
    """Encode train and dev of a checked task; UsageError where the model has no positions for the recipe's max_len."""
    max_len = recipe.text.max_len or base.usual_text
    cleaning = chosen(recipe.text.cleaning or base.cleaning).name
    text = {"remove_rt": task.remove_rt, "max_len": max_len, "cleaning": cleaning}
    if max_len > base.longest_text:
        raise UsageError(f"text.max_len: {max_len} tokens, {base.name} takes {base.longest_text}; lower it")

    def split(name: Literal["train", "dev"]) -> Split:
        rows = read_split(task, name)
        assert rows.labels is not None
        return Split(base.encode(rows.texts, rows.texts_b, text), rows.labels)

    return TaskData(split("train"), split("dev"), text)


def task_faults(recipe: FinetuneRecipe, task: Task, n_layers: int) -> list[str]:
    """Return the faults of a recipe that only task and model together show, each with the remedy."""
    loss, faults = recipe.loss, []
    if loss.name is None or not is_import_path(loss.name):
        name = loss.name or task_losses.default_loss(task.problem)
        of_loss = task_losses.loss_faults(
            name, task.problem, loss.class_weights is not None, loss.label_smoothing, loss.beta
        )
        faults += ["loss.name" + fault[4:] if fault.startswith("loss:") else f"loss.{fault}" for fault in of_loss]
    elif loss.class_weights is not None or loss.label_smoothing or loss.beta != 1:
        faults.append("loss: class_weights, label_smoothing and beta are for named losses; leave them out")
    weights = loss.class_weights
    if weights is not None and weights != "auto" and len(weights) != len(task.labels):
        faults.append(f"loss.class_weights: {len(weights)} for the labels {', '.join(task.labels)}; give one for each")
    layers = recipe.encoder.trainable_layers
    wrong = [layer for layer in layers if not 0 <= layer < n_layers] if not isinstance(layers, str) else []
    if wrong:
        faults.append(f"encoder.trainable_layers: {wrong[0]} is none of the model's layers 0 to {n_layers - 1}")
    return faults


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the row numbers of all samples in shuffled batches of similar lengths, a function of seed and epoch.

    A shuffled order is cut into windows of 32 batches, each sorted by length and cut: little padding, and another
    composition of batches every epoch.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), batch_size * _WINDOW):
        window = order[start : start + batch_size * _WINDOW]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches += [window[at : at + batch_size] for at in range(0, len(window), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def padded_batch(sequences: Sequences, rows: np.ndarray) -> Batch:
    """Return the samples numbered `rows`, [B, T]; T is a multiple of 8, so that few shapes occur."""
    lengths = sequences.lengths
    longest = int(lengths[rows].max())
    return padded(sequences, rows, min(-(-longest // LENGTH_STEP) * LENGTH_STEP, int(lengths.max())))


def inputs(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ids and segments [B, T] on the device, lengths [B] on the CPU (None where nothing is padded)."""
    no_padding = int(batch.lengths.min()) == batch.input_ids.shape[1]
    ids, segments = (
        torch.from_numpy(array).to(device, non_blocking=True) for array in (batch.input_ids, batch.segment_ids)
    )
    return ids, segments, None if no_padding else torch.from_numpy(batch.lengths)
