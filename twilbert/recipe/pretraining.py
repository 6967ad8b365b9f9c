"""The recipe: every setting of a pre-training run, its unit and its limits.

Field names of `model` and `objective` are the original TWilBERT's; those of `training` are the field's. A recipe is
frozen once checked. `twilbert.recipe.loading` reads it from YAML and reports every fault at once.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)  # fmt: skip

from twilbert.model import config

ENDING = ("linear", "cosine", "wsd")
"""Schedules that reach 0 at schedule_steps."""

_WHOLE = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
Index = Annotated[int, _WHOLE, Field(ge=0, le=2**53)]
"""A whole number from 0."""
Count = Annotated[int, _WHOLE, Field(ge=1, le=2**31 - 1)]
"""A whole number from 1."""
Width = Annotated[int, _WHOLE, Field(ge=1, le=2**16)]
"""Channels, keys or tokens: what one side of a tensor has."""
Workers = Annotated[int, _WHOLE, Field(ge=1, le=2**16)]
"""Training processes."""


class Section(BaseModel):
    """Base of all sections: unknown keys are faults, values never change, field docstrings are the reference.

    A value has its field's type: no text or truth value serves as a number, and numbers are finite.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: Any) -> Any:
        """YAML and JSON have lists alone."""
        return tuple(value) if isinstance(value, list) else value


class Run(Section):
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder name of the run; null = the recipe's name and a short hash of the run identity."""
    storage_path: str = "runs"
    """Folder or URI (s3://, gs://) that holds runs; on a cluster every node must see it."""


class Corpus(Section):
    path: str = "corpus"
    """Folder made by twilbert-prepare."""
    tokenizer: str = "tokenizer"
    """Folder made by twilbert-vocab; absent or null with model.init_from = the model's own."""
    max_len: Width = 128
    """Longest tweet or reply, in tokens; longer ones are cut. A sample is at most 2 * max_len + 3 tokens."""
    lanes: Width = 1
    """Reader groups that share out the row groups, for many workers; 1 = every worker reads everything."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        """Treat a tokenizer of null as absent, so that an override can remove a recipe's."""
        if isinstance(values, dict) and values.get("tokenizer", "") is None:
            return {key: value for key, value in values.items() if key != "tokenizer"}
        return values


class Sizes(Section):
    """Base of sections whose fields a dataclass of model/config.py declares, with their bounds and descriptions."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        declared = next(base for base in cls.__mro__ if "__dataclass_fields__" in base.__dict__)
        descriptions = _descriptions(declared)
        for size in dataclasses.fields(declared):
            field = cls.model_fields.get(size.name)
            limits: dict[str, Any] = dict(config.limits(size))
            if field is not None and size.name not in cls.__annotations__:
                field.description = descriptions[size.name]
                field.metadata += [_WHOLE, *Field(**limits).metadata] if "ge" in limits else Field(**limits).metadata
        cls.model_rebuild(force=True)


def _descriptions(declared: type) -> dict[str, str]:
    """Return the docstrings under the fields of a dataclass, which pydantic reads of its own classes alone."""
    body = cast(ast.ClassDef, ast.parse(inspect.getsource(declared)).body[0]).body
    return {
        ast.unparse(field.target): inspect.cleandoc(ast.literal_eval(text.value))
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


class PkmParams(Sizes, config.PkmParams):  # pyright: ignore[reportGeneralTypeIssues]  (frozen by model_config)
    """Product-key memory (Lample et al. 2019)."""


class Model(Sizes, config.EncoderConfig):  # pyright: ignore[reportGeneralTypeIssues]  (frozen by model_config)
    vocab_size: ClassVar[None] = None  # pyright: ignore[reportIncompatibleVariableOverride]  the tokenizer's
    init_from: str | None = None
    """Model folder to start from, whose sizes and vocabulary apply; null = random weights."""
    max_len: Width | None = None
    """Longest tweet that the 2 * max_len + 4 learned positions allow, in tokens; null = corpus.max_len."""
    attention_size: Width | None = None
    """Dimensions of one head; null = hidden_size / n_heads."""
    pkm_params: PkmParams = PkmParams()
    """Sizes of the memory; without meaning where pkm is off."""


class MaskProbs(Section):
    mask: float = Field(default=0.8, ge=0, le=1)
    """Share of chosen tokens replaced by [MASK]."""
    random: float = Field(default=0.1, ge=0, le=1)
    """Share replaced by a random token, never a special one."""
    keep: float = Field(default=0.1, ge=0, le=1)
    """Share left unchanged."""


class MaskedLm(Section):
    type: Literal["span", "token"] = "span"
    """span: runs of tokens up to max_span; token: single tokens (the original's "word")."""
    max_span: Width = 3
    """Longest span in tokens; lengths n are drawn with probability proportional to 1/n."""
    budget: float = Field(default=0.15, gt=0, lt=1)
    """Share of a sample's ordinary tokens that is masked."""
    probs: MaskProbs = MaskProbs()


class Rop(Section):
    use_rop: bool = True
    """Learn Reply Order Prediction beside the masked language model."""
    n_hidden: Annotated[Index, Field(le=1000)] = 0
    """Hidden layers of the ROP head."""
    hidden_size: Width = 512
    """Width of those layers."""


class Objective(Section):
    masked_lm: MaskedLm = MaskedLm()
    rop: Rop = Rop()


class Training(Section):
    optimizer: Literal["adam", "adamw", "lamb", "muon"] = "adam"
    """adam: as the original (epsilon before bias correction); adamw: Loshchilov & Hutter; lamb: You et al. 2020;
    muon: Jordan et al. 2024 and Liu et al. 2025 for hidden matrices, adamw for all else."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; null under noam = the original's hidden_size^-0.5 * warmup_steps^-0.5."""
    adamw_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of what muon leaves to adamw (embeddings, heads, norms, biases); null = learning_rate."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    """Nesterov momentum of muon."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the second moment; null = 0.98 for adam, 0.999 for adamw and lamb, 0.95 for muon."""
    epsilon: float = Field(default=1e-6, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of the weights, a share of them per unit of learning rate."""
    exclude_1d: bool = True
    """Leave tensors of one dimension (biases, LayerNorm) undecayed, and unadapted by lamb."""
    trust_clip: float = Field(default=0.0, ge=0)
    """Largest trust ratio of lamb; 0 = no limit."""
    max_grad_norm: float = Field(default=0.0, ge=0)
    """Largest global gradient norm; larger ones are scaled down to it; 0 = no clipping."""
    schedule: Literal["noam", "linear", "cosine", "wsd", "constant"] = "noam"
    """After a linear warm-up: noam (Vaswani et al. 2017, equation 3), linear or cosine down to 0 at schedule_steps, wsd
    (warm-up, stable, decay: constant, then linear to 0 over the last decay_share of schedule_steps), constant."""
    decay_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of schedule_steps that the decay of wsd takes."""
    warmup_steps: Count = 8000
    """Optimiser steps until the peak learning rate."""
    schedule_steps: Count | None = None
    """Step at which linear, cosine and wsd schedules reach 0; null = max_steps."""
    max_steps: Count = 110_000
    """Optimiser steps of the whole run."""
    max_time: float | None = Field(default=None, gt=0)
    """Minutes after the start of the command, encoding and restarts included, at which the run stops with a checkpoint;
    it resumes when started again."""
    global_batch_size: Annotated[Count, Field(le=2**20)] = 2048
    """Samples per optimiser step over all workers; one pair gives two samples."""
    micro_batch_tokens: Count = 8192
    """Padded tokens that one forward pass of one worker aims at; sets the number of accumulations."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto = bf16 where the device computes it, else fp32. bf16 keeps fp32 masters, accumulation and reduction."""
    tf32: bool = False
    """Compute the fp32 matrix products of a GPU in TF32: several times faster, with three decimal digits."""
    zero_stage: Annotated[Index, Field(le=3)] = 1
    """What DeepSpeed shards over the workers: 1 moments, 2 also gradients, 3 also weights; 0 nothing."""
    eval_steps: Count = 1000
    """Steps between held-out evaluations."""
    save_steps: Count = 1000
    """Steps between checkpoints."""
    save_total_limit: Count = 3
    """Newest checkpoints to keep, beside the best."""
    save_keep_every: Count | None = None
    """Keep checkpoints whose step is a multiple of this for good; null = none."""
    max_skipped_steps: Count = 10
    """Steps in a row, skipped since their loss or gradient was not finite, after which the run stops."""
    hang_timeout: float = Field(default=10, gt=0, le=525_600)
    """Minutes without a step after which a worker dumps its stacks and is restarted."""
    logging_steps: Count = 10
    """Steps between rows of metrics."""
    seed: Index = 0
    """Seed of weights, order, masks and dropout."""


class Cluster(Section):
    num_workers: Workers | tuple[Workers, Workers] = 1
    """Training processes; on GPUs one each. [least, most]: as many as there is room for at any time."""
    max_restarts: Index = 3
    """Restarts in a row of workers that died, without a new checkpoint."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    address: str | None = None
    """Ray cluster to join ("auto" or host:port); null = the surrounding Ray job's, else a local Ray."""
    threads_per_worker: Count | None = None
    """CPU threads of one worker; null = this machine's cores shared among its workers."""

    @property
    def least_workers(self) -> int:
        """The fewest workers to train with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The most workers to train with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class Tracking(Section):
    project: str = "twilbert"
    """Weights & Biases project."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto = online where WANDB_API_KEY is set, else offline; metrics.jsonl is always written."""
    trace_samples: bool = False
    """Write the sample ids of every step to trace.jsonl."""


class Recipe(Section):
    """One pre-training run."""

    run: Run = Run()
    corpus: Corpus = Corpus()
    model: Model = Model()
    objective: Objective = Objective()
    training: Training = Training()
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()

    @property
    def beta2(self) -> float:
        """Decay of the second moment, the optimiser's own default when the recipe leaves it open."""
        if self.training.beta2 is not None:
            return self.training.beta2
        return {"adam": 0.98, "muon": 0.95}.get(self.training.optimizer, 0.999)

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate at the end of warm-up."""
        if self.training.learning_rate is not None:
            return self.training.learning_rate
        return (self.model.hidden_size * self.training.warmup_steps) ** -0.5

    @property
    def schedule_steps(self) -> int:
        """The step at which a schedule with an end reaches it."""
        return self.training.schedule_steps or self.training.max_steps

    @property
    def decay_start(self) -> int:
        """The last step at the peak learning rate of a wsd schedule."""
        return self.schedule_steps - round(self.training.decay_share * self.schedule_steps)

    def architecture(self, vocab_size: int) -> dict[str, Any]:
        """The arguments of `twilbert.model.config.ModelConfig` for a vocabulary of `vocab_size` entries."""
        model, rop = self.model, self.objective.rop
        sizes = model.model_dump(exclude={"init_from", "max_len", "attention_size"})
        return sizes | {
            "vocab_size": vocab_size,
            "max_len": model.max_len or self.corpus.max_len,
            "attention_size": model.attention_size or model.hidden_size // model.n_heads,
            "use_rop": rop.use_rop,
            "rop_n_hidden": rop.n_hidden,
            "rop_hidden_size": rop.hidden_size,
        }


# May change between starts of one run: where it runs and how often it reports, never what it computes.
_FREE = {
    "run": {"name", "storage_path"},
    "corpus": {"path", "tokenizer"},  # their contents count, through their fingerprints
    "training": {
        "max_steps", "max_time", "schedule_steps", "micro_batch_tokens", "zero_stage",
        "eval_steps", "save_steps", "save_total_limit", "save_keep_every", "logging_steps",
        "max_skipped_steps", "hang_timeout",
    },
    "cluster": set(Cluster.model_fields),
    "tracking": set(Tracking.model_fields),
}  # fmt: skip


def run_identity(recipe: Recipe, data: dict[str, str]) -> dict[str, Any]:
    """Return dotted path -> value of everything that changes a run's results; `data`: fingerprints of what it reads."""
    dump = recipe.model_dump(mode="json")
    for section, free in _FREE.items():
        dump[section] = {key: value for key, value in dump[section].items() if key not in free}
    identity = flattened(dump) | data
    if recipe.training.schedule in ENDING:
        identity["training.schedule_steps"] = recipe.schedule_steps
    unused = [
        *([] if recipe.training.tf32 else ["training.tf32"]),
        *(["corpus.lanes"] if recipe.corpus.lanes == 1 else []),  # identities of older runs do not have it
        *(["training.trust_clip"] if recipe.training.optimizer != "lamb" else []),
        *(["training.adamw_learning_rate", "training.muon_momentum"] if recipe.training.optimizer != "muon" else []),
        *(["training.decay_share"] if recipe.training.schedule != "wsd" else []),
        *([key for key in identity if key.startswith("model.pkm_params.")] if not recipe.model.pkm else []),
    ]
    return {key: value for key, value in identity.items() if key not in unused}


def flattened(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested settings as dotted path -> value."""
    settings: dict[str, Any] = {}
    for key, value in values.items():
        settings |= flattened(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return settings
