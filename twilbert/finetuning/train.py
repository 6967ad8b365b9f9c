"""One training: a classifier learns a task's train split; its weights at the best dev evaluation are the outcome.

Read `train` from top to bottom. Letters: N samples, B of a batch, C labels.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from twilbert.data import batches as sequences_
from twilbert.devices import computes_bf16, find_device
from twilbert.errors import TwilbertError, UsageError
from twilbert.finetuning.data import Split, TaskData, epoch_batches, inputs, padded_batch
from twilbert.finetuning.encoders import Base
from twilbert.finetuning.optimization import Weights
from twilbert.inference.model import predicted_labels
from twilbert.model import task_losses
from twilbert.model.calibration import Calibration
from twilbert.model.classifier import HeadConfig, probabilities
from twilbert.model.memory import discard_running_statistics, update_running_statistics
from twilbert.model.problems import MULTI, REGRESSION
from twilbert.optim import schedules
from twilbert.plugins import is_import_path, load_object
from twilbert.recipe.finetuning import FinetuneRecipe
from twilbert.recipe.finetuning import Training as Settings
from twilbert.tasks import metrics
from twilbert.tasks.task import Task

_EVALUATION_TOKENS = {"cpu": 4096, "cuda": 65536}
_MOST_SKIPPED = 10  # updates in a row without a finite loss and gradient
Loss = Callable[[Tensor, Tensor], Tensor]
Report = Callable[[int, int, str], object]
"""Called after each batch with the batches of train so far, those of all epochs, and what is being done."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation on dev."""

    step: int
    """Updates so far."""
    epoch: float
    """Passes over train so far."""
    score: float
    """The task's metric."""
    dev_loss: float
    train_loss: float
    """Mean over the batches since the last evaluation."""
    learning_rate: float
    seconds: float
    """Since training began."""
    samples_per_second: float
    """Of training alone, since the last evaluation."""
    skipped: int

    def row(self) -> dict[str, float]:
        """Return the row of metrics.jsonl."""
        return {
            "train/loss": self.train_loss,
            "valid/loss": self.dev_loss,
            "valid/score": self.score,
            "optim/learning_rate": self.learning_rate,
            "optim/skipped_steps": self.skipped,
            "speed/samples_per_second": self.samples_per_second,
            "data/epoch": self.epoch,
        }


@dataclass(frozen=True)
class Outcome:
    """The result of a training."""

    seed: int
    best: Evaluation
    history: list[Evaluation]
    probabilities: np.ndarray
    """Of dev at the best evaluation, float32 [N, C]."""
    state: dict[str, Tensor]
    """Weights at the best evaluation, fp32, on the CPU."""
    stopped_early: bool


def head_config(recipe: FinetuneRecipe, task: Task) -> HeadConfig:
    """Return the classification head of a recipe for a task."""
    head = recipe.head
    return HeadConfig(task.labels, task.problem, head.pooling, head.special_tokens, head.dropout, head.own)


def new_network(base: Base, recipe: FinetuneRecipe, task: Task, seed: int) -> nn.Module:
    """Return the classifier before its first update; the seed draws what has no weights yet."""
    torch.manual_seed(seed)
    return base.network(head_config(recipe, task), recipe.encoder)


def build_loss(recipe: FinetuneRecipe, task: Task, labels: np.ndarray) -> Loss:
    """Return the recipe's loss; class weights that are auto come from `labels`, those of train."""
    settings = recipe.loss
    if settings.name is not None and is_import_path(settings.name):
        own = load_object(settings.name, "loss.name")
        return lambda logits, targets: own(logits, targets).mean()
    weights = settings.class_weights
    if weights == "auto":
        weights = task_losses.auto_weights(torch.from_numpy(labels), len(task.labels), task.problem)
    name = settings.name or task_losses.default_loss(task.problem)
    return task_losses.build(name, task.problem, weights, settings.label_smoothing, settings.beta)


def resolve_precision(settings: Settings, device: torch.device) -> str:
    """Return fp32 or bf16; auto means what the device computes best."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16" if computes_bf16(device) else "fp32"


def train(
    base: Base,
    data: TaskData,
    task: Task,
    recipe: FinetuneRecipe,
    seed: int,
    on_evaluation: Callable[[Evaluation], None],
    on_best: Callable[[Evaluation, np.ndarray, dict[str, Tensor]], None] | None = None,
    report: Report = lambda *_: None,
) -> Outcome:
    """Fine-tune a new network on one device; `on_evaluation` is called after each dev evaluation.

    `on_best` is called before it where the evaluation is the best so far, with dev's probabilities and the weights;
    `report` after each batch of train and dev.
    TwilbertError where loss or gradient stay without a finite value.
    """
    settings, device = recipe.training, find_device(recipe.training.device)
    network = new_network(base, recipe, task, seed).to(device)
    loss = build_loss(recipe, task, data.train.labels)
    weights = Weights(network, base, recipe, bf16=resolve_precision(settings, device) == "bf16")
    lengths = data.train.sequences.lengths
    n_batches = -(-len(data.train) // settings.batch_size)
    updates = -(-n_batches // settings.accumulation)  # of an epoch
    evaluated_updates = {-(-updates * (i + 1) // settings.evals_per_epoch) for i in range(settings.evals_per_epoch)}
    step = skipped = in_a_row = worse = batches_done = 0
    all_batches = n_batches * settings.epochs
    history: list[Evaluation] = []
    best: tuple[Evaluation, np.ndarray, dict[str, Tensor]] | None = None
    began, interval = time.monotonic(), _Interval()
    for epoch in range(settings.epochs):
        batches = epoch_batches(lengths, settings.batch_size, seed, epoch)
        for update in range(1, updates + 1):
            network.train()
            step_batches = batches[(update - 1) * settings.accumulation : update * settings.accumulation]
            samples = sum(map(len, step_batches))
            for rows in step_batches:
                value = _batch_loss(network, loss, data.train, rows, device)
                (value * (len(rows) / samples)).backward()
                weights.take_gradients()
                interval.add(value, len(rows))
                batches_done += 1
                report(batches_done, all_batches, f"epoch {epoch + 1}/{settings.epochs}")
            step += 1
            rate = learning_rate(settings, step, updates * settings.epochs, base.hidden_size)
            if weights.step(rate):
                update_running_statistics(network)
                in_a_row = 0
            else:
                discard_running_statistics(network)
                skipped, in_a_row = skipped + 1, in_a_row + 1
                if in_a_row == _MOST_SKIPPED:
                    raise TwilbertError(
                        f"{in_a_row} updates in a row without a finite loss and gradient, up to update {step}; lower "
                        "training.learning_rate, or give training.precision=fp32"
                    )
            if update not in evaluated_updates:
                continue
            train_loss, speed = interval.close()
            on_rows = functools.partial(_report_dev, report, batches_done, all_batches, len(data.dev))
            scores, dev_loss = evaluate(network, loss, data.dev, task.problem, device, on_rows)
            evaluation = Evaluation(
                step, epoch + update / updates, dev_score(task, data.dev.labels, scores), dev_loss, train_loss, rate,
                time.monotonic() - began, speed, skipped,
            )  # fmt: skip
            history.append(evaluation)
            if metrics.better(task.metric, evaluation.score, None if best is None else best[0].score):
                best, worse = (evaluation, scores, weights.state()), 0
                if on_best is not None:
                    on_best(*best)
            else:
                worse += 1
            on_evaluation(evaluation)
            interval = _Interval()
            if settings.patience is not None and worse >= settings.patience:
                assert best is not None
                return Outcome(seed, best[0], history, best[1], best[2], evaluation.epoch < settings.epochs)
    assert best is not None
    return Outcome(seed, best[0], history, best[1], best[2], False)


def _report_dev(report: Report, batches_done: int, all_batches: int, rows: int, rows_done: int) -> None:
    report(batches_done, all_batches, f"dev {rows_done:,}/{rows:,} rows")


def _batch_loss(network: nn.Module, loss: Loss, split: Split, rows: np.ndarray, device: torch.device) -> Tensor:
    ids, segments, lengths = inputs(padded_batch(split.sequences, rows), device)
    targets = torch.from_numpy(split.labels[rows]).to(device, non_blocking=True)
    value = loss(network(ids, segments, lengths), targets)
    if value.dim():
        raise UsageError(f"loss.name: gave a tensor {list(value.shape)}; a loss is one number, or one for each sample")
    return value


class _Interval:
    """Loss and time of training between two evaluations; the loss is fetched from the device once."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._losses: list[Tensor] = []
        self._samples = 0

    def add(self, value: Tensor, samples: int) -> None:
        """Count a batch's mean loss."""
        self._losses.append(value.detach() * samples)
        self._samples += samples

    def close(self) -> tuple[float, float]:
        """Return (mean loss, samples a second)."""
        total = float(torch.stack(self._losses).sum())
        return total / self._samples, self._samples / max(1e-9, time.monotonic() - self._began)


def learning_rate(settings: Settings, update: int, updates: int, hidden_size: int) -> float:
    """Return the learning rate of update 1 … `updates`, before a layer's own factor."""
    warmup_steps = max(1, round(settings.warmup * updates))
    peak = settings.learning_rate or (hidden_size * warmup_steps) ** -0.5
    decay_start = max(warmup_steps, updates - max(1, round(0.1 * updates)))
    return schedules.rate(
        settings.schedule, update, peak=peak, warmup_steps=warmup_steps, decay_start=decay_start, schedule_steps=updates
    )


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    loss: Loss | None,
    split: Split,
    problem: str,
    device: torch.device,
    on_rows: Callable[[int], object] = lambda _: None,
) -> tuple[np.ndarray, float]:
    """Return the probabilities (or values) of a split, float32 [N, C], and its loss over all samples at once."""
    logits_NC = logits(network, split.sequences, device, on_rows)
    value = math.nan if loss is None else float(loss(logits_NC, torch.from_numpy(split.labels)))
    return probabilities(problem, logits_NC).numpy(), value


@torch.inference_mode()
def logits(
    network: nn.Module,
    sequences: sequences_.Sequences,
    device: torch.device,
    on_rows: Callable[[int], object] = lambda _: None,
) -> Tensor:
    """Return the logits, fp32 [N, C] on the CPU, in the sequences' order; `on_rows` gets the rows done so far."""
    network.eval()
    logits_of: dict[int, Tensor] = {}
    for batch in sequences_.batches(sequences, _EVALUATION_TOKENS.get(device.type, _EVALUATION_TOKENS["cpu"])):
        logits_BC = network(*inputs(batch, device)).float().cpu()
        logits_of |= dict(zip(batch.rows.tolist(), logits_BC, strict=True))
        on_rows(len(logits_of))
    return torch.stack([logits_of[row] for row in range(len(logits_of))])


def predictions(task: Task, scores: np.ndarray, calibration: Calibration | None = None) -> np.ndarray:
    """Return what `metrics` scores: label numbers int64 [N], flags int64 [N, C], or values float [N]."""
    if task.problem == REGRESSION:
        return scores[:, 0].astype(np.float64)
    return predicted_labels(HeadConfig(task.labels, task.problem, calibration=calibration), scores)


def dev_score(task: Task, labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the task's metric."""
    truths, predicted = labels.astype(np.int64) if task.problem == MULTI else labels, predictions(task, scores)
    return metrics.score(truths, predicted, task.metric, average=task.averaging, labels=task.metric_labels)
