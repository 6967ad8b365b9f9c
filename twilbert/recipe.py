"""The recipe: every setting of a pre-training run, its unit and its limits.

Field names of `model` and `objective` are the original TWilBERT's; those of `training` are the field's. A recipe is
frozen once checked. `twilbert.recipe_file` reads it from YAML and reports every fault at once.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

ENDING = ("linear", "cosine", "wsd")
"""Schedules that reach 0 at schedule_steps."""


class Section(BaseModel):
    """Base of all sections: unknown keys are faults, values never change, field docstrings are the reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=False)


class Run(Section):
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder name of the run; null = the recipe's name and a short hash of what changes the science."""
    storage_path: str = "runs"
    """Folder or URI (s3://, gs://) that holds runs; on a cluster every node must see it."""


class Corpus(Section):
    path: str = "corpus"
    """Folder made by twilbert-prepare."""
    tokenizer: str = "tokenizer"
    """Folder made by twilbert-vocab; absent or null with model.init_from = the model's own."""
    max_len: PositiveInt = 128
    """Longest tweet or reply, in tokens; longer ones are cut. A sample is at most 2 * max_len + 3 tokens."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        """A tokenizer of null is none named, so that an override can take back a recipe's."""
        if isinstance(values, dict) and values.get("tokenizer", "") is None:
            return {key: value for key, value in values.items() if key != "tokenizer"}
        return values


class PkmParams(Section):
    factorize_embeddings: bool = False
    """Store the values with embedding_size columns and project them to hidden_size."""
    k_dim: PositiveInt = 512
    """Width of queries and keys, in dimensions; even, since each half has its own keys."""
    memory_size: PositiveInt = 256
    """Keys per half; the memory holds memory_size squared values."""
    n_heads: PositiveInt = 4
    """Memory heads; their outputs are summed."""
    knn: PositiveInt = 32
    """Nearest keys read per head."""
    in_layers: tuple[int, ...] = (10,)
    """Encoder layers, counted from 0, whose feed-forward part the memory replaces."""
    input_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of input channels dropped before the queries."""
    output_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the memory's output dropped."""
    batch_norm: bool = True
    """Normalise queries over the real tokens of the batch (Lample et al. 2019, section 3.2)."""


class Model(Section):
    init_from: str | None = None
    """Model folder to start from, whose sizes and vocabulary are taken over; null = random weights."""
    max_len: PositiveInt | None = None
    """Longest tweet that the 2 * max_len + 4 learned positions allow, in tokens; null = corpus.max_len."""
    hidden_size: PositiveInt = 768
    """Width H of the encoder."""
    embedding_size: PositiveInt = 768
    """Width E of the embeddings; differs from hidden_size only with factorize_embeddings."""
    factorize_embeddings: bool = False
    """Embed in embedding_size dimensions and project to hidden_size (Lan et al. 2020)."""
    n_encoders: PositiveInt = 6
    """Encoder layers L."""
    n_heads: PositiveInt = 6
    """Attention heads N."""
    attention_size: PositiveInt | None = None
    """Dimensions of one head; null = hidden_size / n_heads."""
    cross_sharing: bool = False
    """All layers share one block's weights (Lan et al. 2020); memory layers are never shared."""
    input_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of embedding channels dropped (whole channels of a sample)."""
    output_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of attention and feed-forward outputs dropped."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the truncated normal that weights start from."""
    pkm: bool = False
    """Use product-key memory layers (Lample et al. 2019)."""
    pkm_params: PkmParams = PkmParams()


class MaskProbs(Section):
    mask: float = Field(default=0.8, ge=0, le=1)
    """Share of chosen tokens replaced by [MASK]."""
    random: float = Field(default=0.1, ge=0, le=1)
    """Share replaced by a random token, never a special one."""
    keep: float = Field(default=0.1, ge=0, le=1)
    """Share left as they are."""


class MaskedLm(Section):
    type: Literal["span", "token"] = "span"
    """span: runs of tokens up to max_span; token: single tokens (the original's "word")."""
    max_span: PositiveInt = 3
    """Longest span in tokens; lengths n are drawn with probability proportional to 1/n."""
    budget: float = Field(default=0.15, gt=0, lt=1)
    """Share of a sample's ordinary tokens that is masked."""
    probs: MaskProbs = MaskProbs()


class Rop(Section):
    use_rop: bool = True
    """Learn Reply Order Prediction beside the masked language model."""
    n_hidden: int = Field(default=0, ge=0)
    """Hidden layers of the ROP head."""
    hidden_size: PositiveInt = 512
    """Width of those layers."""


class Objective(Section):
    masked_lm: MaskedLm = MaskedLm()
    rop: Rop = Rop()


class Training(Section):
    optimizer: Literal["adam", "adamw", "lamb"] = "adam"
    """adam: as the original (epsilon before bias correction); adamw: Loshchilov & Hutter; lamb: You et al. 2020."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; null under noam = the original's hidden_size^-0.5 * warmup_steps^-0.5."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the second moment; null = 0.98 for adam, 0.999 for adamw and lamb."""
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
    warmup_steps: PositiveInt = 8000
    """Optimiser steps until the peak learning rate."""
    schedule_steps: PositiveInt | None = None
    """Step at which linear, cosine and wsd schedules reach 0; null = max_steps."""
    max_steps: PositiveInt = 110_000
    """Optimiser steps of the whole run."""
    max_time: float | None = Field(default=None, gt=0)
    """Minutes of training after which the run stops with a checkpoint; it resumes when started again."""
    global_batch_size: PositiveInt = 2048
    """Samples per optimiser step over all workers; one pair gives two samples."""
    micro_batch_tokens: PositiveInt = 8192
    """Padded tokens that one forward pass of one worker aims at; sets the number of accumulations."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto = bf16 where the device computes it, else fp32. bf16 keeps fp32 masters, accumulation and reduction."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards over the workers: 1 moments, 2 also gradients, 3 also weights; 0 nothing."""
    eval_steps: PositiveInt = 1000
    """Steps between held-out evaluations."""
    save_steps: PositiveInt = 1000
    """Steps between checkpoints."""
    save_total_limit: PositiveInt = 3
    """Newest checkpoints kept, beside the best."""
    logging_steps: PositiveInt = 10
    """Steps between rows of metrics."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, order, masks and dropout."""


class Cluster(Section):
    num_workers: PositiveInt = 1
    """Training processes; on GPUs one each."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    address: str | None = None
    """Ray cluster to join ("auto" or host:port); null = the surrounding Ray job's, else a local Ray."""
    threads_per_worker: PositiveInt | None = None
    """CPU threads of one worker; null = this machine's cores shared among its workers."""


class Tracking(Section):
    project: str = "twilbert"
    """Weights & Biases project."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto = online where WANDB_API_KEY is set, else offline; metrics.jsonl is always written."""


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
        return 0.98 if self.training.optimizer == "adam" else 0.999

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


# What may change between starts of one run: where it runs and how often it reports, never what it computes.
_FREE = {
    "run": {"name", "storage_path"},
    "corpus": {"path", "tokenizer"},  # their contents count, through their fingerprints
    "training": {
        "max_steps", "max_time", "schedule_steps", "micro_batch_tokens", "zero_stage",
        "eval_steps", "save_steps", "save_total_limit", "logging_steps",
    },
    "cluster": set(Cluster.model_fields),
    "tracking": set(Tracking.model_fields),
}  # fmt: skip


def science(recipe: Recipe) -> dict[str, Any]:
    """Dotted path -> value of everything that changes what a run computes (its identity, with the data's)."""
    found: dict[str, Any] = {}

    def walk(value: dict[str, Any], path: str, free: set[str]) -> None:
        for key, item in value.items():
            if key in free:
                continue
            dotted = f"{path}.{key}" if path else key
            if isinstance(item, dict):
                walk(item, dotted, _FREE.get(dotted, set()))
            else:
                found[dotted] = item

    walk(recipe.model_dump(mode="json"), "", set())
    if recipe.training.schedule in ENDING:
        found["training.schedule_steps"] = recipe.schedule_steps
    idle = set() if recipe.training.optimizer == "lamb" else {"training.trust_clip"}
    if recipe.training.schedule != "wsd":
        idle.add("training.decay_share")
    found = {path: value for path, value in found.items() if path not in idle}
    if not recipe.model.pkm:
        found = {path: value for path, value in found.items() if not path.startswith("model.pkm_params.")}
    return found


def cross_faults(recipe: Recipe) -> list[str]:
    """Faults that take more than one field to see, each with its dotted paths and the remedy."""
    model, training, objective = recipe.model, recipe.training, recipe.objective
    faults: list[str] = []
    if model.attention_size is None and model.hidden_size % model.n_heads:
        faults.append(
            f"model.attention_size: hidden_size {model.hidden_size} does not divide by n_heads {model.n_heads}; "
            "give attention_size, or another n_heads"
        )
    if not model.factorize_embeddings and model.embedding_size != model.hidden_size:
        faults.append(
            f"model.embedding_size: {model.embedding_size} differs from hidden_size {model.hidden_size}; "
            "make them equal, or set model.factorize_embeddings=true"
        )
    if model.max_len is not None and recipe.corpus.max_len > model.max_len:
        faults.append(
            f"corpus.max_len: {recipe.corpus.max_len} tokens need {2 * recipe.corpus.max_len + 3} positions, "
            f"model.max_len={model.max_len} gives {2 * model.max_len + 4}; lower corpus.max_len or raise model.max_len"
        )
    if model.pkm:
        faults += _pkm_faults(model)
    probs = objective.masked_lm.probs
    if abs(probs.mask + probs.random + probs.keep - 1) > 1e-9:
        faults.append(
            f"objective.masked_lm.probs: mask {probs.mask} + random {probs.random} + keep {probs.keep} must make 1"
        )
    if training.precision == "bf16" and training.zero_stage == 0:
        faults.append("training.zero_stage: bf16 needs stage 1, 2 or 3 for its fp32 masters; raise it, or use fp32")
    if training.learning_rate is None and training.schedule != "noam":
        faults.append(f"training.learning_rate: a {training.schedule} schedule needs a peak learning rate, e.g. 1e-4")
    if training.learning_rate is None and training.optimizer == "lamb":
        faults.append(
            "training.learning_rate: lamb needs its own, e.g. 0.00125 at 2,048 samples a step (You et al. 2020)"
        )
    ends = recipe.decay_start if training.schedule == "wsd" else recipe.schedule_steps
    if training.schedule in ENDING and training.warmup_steps >= ends:
        faults.append(
            f"training.warmup_steps: {training.warmup_steps} leaves nothing of the {ends} steps before "
            f"{'the decay of wsd' if training.schedule == 'wsd' else 'the end of the schedule'}; "
            "lower warmup_steps, or raise max_steps"
        )
    return faults


def _pkm_faults(model: Model) -> list[str]:
    params, faults = model.pkm_params, []
    wrong = [layer for layer in params.in_layers if not 0 <= layer < model.n_encoders]
    if wrong or not params.in_layers or len(set(params.in_layers)) < len(params.in_layers):
        faults.append(
            f"model.pkm_params.in_layers: {list(params.in_layers)} must name different layers "
            f"from 0 to {model.n_encoders - 1}, at least one"
        )
    if params.knn > params.memory_size:
        faults.append(f"model.pkm_params.knn: {params.knn} is more than the {params.memory_size} keys of memory_size")
    if params.k_dim % 2:
        faults.append(f"model.pkm_params.k_dim: {params.k_dim} must be even, a half for each of the two key sets")
    return faults
