"""The recipe of fine-tuning: every setting of one run, its unit and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from twilbert.plugins import is_import_path
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Count, Index, Section, Width

SHIPPED = "finetune.yaml"


class Text(Section):
    max_len: Width | None = None
    """Longest text in tokens, each of two; longer ones are cut. null = what the model was trained with."""
    cleaning: str | None = None
    """Rules by which texts are cleaned: twilbert, robertuito, cardiff, bertweet or none; null = the model's own."""


class Encoder(Section):
    random: bool = False
    """Start from random weights of the model's sizes: the baseline without pre-training."""
    trainable_layers: Literal["all", "none"] | tuple[Index, ...] = "all"
    """all, none (the head alone learns), or layers from 0; with none or a list the embeddings are frozen."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """A layer's learning rate as a share of that of the layer above it (the head's for the last); 1 = all alike."""
    input_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Share of embedding channels dropped (whole channels of a sample); null = the model's configuration."""
    output_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Share of attention and feed-forward outputs dropped; null = the model's configuration."""


class Head(Section):
    pooling: Literal["cls", "avg", "max", "concat"] = "cls"
    """Hidden states to classify: the first token's, the mean, the maximum, or all three concatenated."""
    special_tokens: bool = True
    """Whether mean and maximum include [CLS] and [SEP]."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the pooled vector's channels dropped."""
    own: str | None = None
    """A user's own head, package.module:name; called with (hidden_size, HeadConfig), it returns a module whose
    forward(hidden_BTH, lengths_B or None, input_ids_BT) gives logits [B, C]. pooling and dropout are then its own."""

    @field_validator("own")
    @classmethod
    def _import_path(cls, value: str | None) -> str | None:
        if value is not None and not is_import_path(value):
            raise ValueError("expected an import path package.module:name, e.g. my_heads:attentive")
        return value


class Loss(Section):
    name: str | None = None
    """One of twilbert.model.task_losses.LOSSES, or a user's own package.module:function of (logits_BC, targets);
    null = cross_entropy, binary_cross_entropy or mse, by the task's problem."""
    class_weights: Literal["auto"] | tuple[float, ...] | None = None
    """A weight for each label in the task's order, or auto: rarer labels weigh more; null = none."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a target's weight spread over all labels."""
    beta: float = Field(default=1.0, gt=0)
    """Weight of recall against precision in the F losses."""


class Training(Section):
    optimizer: Literal["adam", "adamw", "lamb"] = "adamw"
    """adam: as the original (epsilon before bias correction); adamw: Loshchilov & Hutter; lamb: You et al. 2020."""
    learning_rate: float | None = Field(default=5e-5, gt=0)
    """Peak learning rate; null under noam = hidden_size^-0.5 * warm-up steps^-0.5."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = Field(default=1e-6, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled decay of the weights, a share of them per unit of learning rate; never of biases and norms."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Largest gradient norm over all weights; larger ones are scaled down to it; 0 = no clipping."""
    schedule: Literal["linear", "noam", "cosine", "wsd", "constant"] = "linear"
    """After the warm-up: down to 0 at the last step (linear, cosine; wsd: over the last tenth), noam, or constant."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps until the peak learning rate; at least one step."""
    epochs: Count = 5
    """Passes over train, at most."""
    batch_size: Count = 32
    """Samples of one forward pass."""
    accumulation: Count = 1
    """Forward passes of one optimiser step."""
    evals_per_epoch: Count = 1
    """Evaluations on dev in each epoch, the last at its end."""
    patience: Count | None = None
    """Evaluations without a better dev score after which training stops; null = all epochs."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto = bf16 where the device computes it, else fp32. bf16 keeps fp32 masters, accumulation and moments."""
    device: str | None = None
    """cpu, cuda, cuda:1, …; null = a GPU when there is one."""
    seed: Index = 0
    """Seed of the head, the order and dropout; further seeds count up from it."""


class Tracking(Section):
    project: str = "twilbert"
    """Weights & Biases project."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto = online where WANDB_API_KEY is set, else offline; metrics.jsonl is always written."""


class FinetuneRecipe(Section):
    """Fine-tuning of one model on one task."""

    task: str | None = None
    """Registered task or a task file's path; --task replaces it."""
    model: str | None = None
    """Model folder, checkpoint, run name, transformers folder or hub id; null = the newest finished run. Or --model."""
    data_dir: str | None = None
    """Where the folders of registered tasks lie; null = `tasks` under the working directory."""
    runs: str = "runs"
    """Folder in which run names are looked up."""
    seeds: Count = 1
    """Trainings with different seeds; the result is their mean and standard deviation, the model the best on dev."""
    calibrate: bool = True
    """Fit a temperature, thresholds and the precision by confidence on dev; the model applies them when it predicts."""
    text: Text = Text()
    encoder: Encoder = Encoder()
    head: Head = Head()
    loss: Loss = Loss()
    training: Training = Training()
    tracking: Tracking = Tracking()


def load(path: str = SHIPPED, overrides: Sequence[str] = ()) -> FinetuneRecipe:
    """The checked recipe of a YAML file with `a.b=c` overrides; UsageError that lists every fault."""
    return loading.validated(loading.read_values(path), overrides, path, FinetuneRecipe, cross_faults)


def cross_faults(recipe: FinetuneRecipe) -> list[str]:
    """Return the faults of combined fields that need neither task nor model."""
    training, faults = recipe.training, []
    if training.learning_rate is None and (training.schedule != "noam" or training.optimizer == "lamb"):
        faults.append(
            f"training.learning_rate: {training.optimizer} under a {training.schedule} schedule needs a peak learning "
            "rate, e.g. 5e-5"
        )
    if training.schedule == "wsd" and training.warmup >= 0.9:
        faults.append(f"training.warmup: {training.warmup} leaves nothing before wsd's decay of a tenth; lower it")
    layers = recipe.encoder.trainable_layers
    if not isinstance(layers, str) and (len(set(layers)) < len(layers) or not layers):
        faults.append(f"encoder.trainable_layers: {list(layers)} must name different layers; or say all or none")
    return faults
