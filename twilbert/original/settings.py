"""The equivalent of each setting of the original's JSON configurations: a recipe's field, a flag, or none and why.

Keys are dotted, as in the original's files for pre-training, continued pre-training, MLM only, evaluation,
embeddings, fine-tuning, grid search and labelling.
"""

from __future__ import annotations

from typing import NamedTuple


class Fate(NamedTuple):
    """The equivalent of a key: a recipe's field, a command's flag, a model's field, or none; and why."""

    recipe: str | None = None
    """Dotted path in the recipe."""
    flag: str | None = None
    """Command and argument that replace it."""
    config: str | None = None
    """Field of a converted fine-tuned model's config.json."""
    why: str = ""
    """How the meaning changed, or why there is no equivalent."""


def _same(*keys: str, into: str) -> dict[str, Fate]:
    return {key: Fate(recipe=f"{into}.{key.rpartition('.')[2]}") for key in keys}


def _now_in(place: str, names: dict[str, str]) -> dict[str, Fate]:
    """Map the original's keys to their names in a file or command of fine-tuning."""
    return {key: Fate(flag=f"{name} of {place}") for key, name in names.items()}


_LENGTHS = "texts are sorted by length over the whole global batch, so that no buckets are needed"
_ONE_ENGINE = "cluster.use_gpu and cluster.num_workers say what runs where"

ORIGINAL_SETTINGS: dict[str, Fate] = {
    # pre-training
    "dataset.file": Fate("corpus.path", why="a folder made by twilbert-prepare from the TSV"),
    "dataset.vocab_file": Fate("corpus.tokenizer", "twilbert-convert --vocab FILE", why="or by twilbert-vocab"),
    "representation.max_len": Fate("corpus.max_len", why="model.max_len where the positions are to hold longer texts"),
    "representation.bucket_min_a": Fate(why=_LENGTHS),
    "representation.bucket_min_b": Fate(why=_LENGTHS),
    "representation.bucket_max_a": Fate("corpus.max_len", why="texts are cut at max_len; 45 cut them at 40 tokens"),
    "representation.bucket_max_b": Fate("corpus.max_len", why="texts are cut at max_len; 45 cut them at 40 tokens"),
    "representation.bucket_steps": Fate(why=_LENGTHS),
    **_same(
        "model.factorize_embeddings", "model.cross_sharing", "model.embedding_size", "model.hidden_size",
        "model.n_encoders", "model.n_heads", "model.attention_size", "model.input_dropout", "model.output_dropout",
        "model.initializer_range", "model.pkm", into="model",
    ),
    **_same(
        "model.pkm_params.factorize_embeddings", "model.pkm_params.k_dim", "model.pkm_params.memory_size",
        "model.pkm_params.n_heads", "model.pkm_params.knn", "model.pkm_params.in_layers",
        "model.pkm_params.input_dropout", "model.pkm_params.output_dropout", into="model.pkm_params",
    ),
    "model.pkm_params.batch_norm": Fate("model.pkm_params.batch_norm", why="inverted in the original"),
    "model.masked_lm.type": Fate("objective.masked_lm.type", why='"word" is called token: it masks single tokens'),
    **_same("model.masked_lm.max_span", "model.masked_lm.budget", into="objective.masked_lm"),
    **_same(
        "model.masked_lm.probs.mask", "model.masked_lm.probs.random", "model.masked_lm.probs.keep",
        into="objective.masked_lm.probs",
    ),
    "model.rop.use_rop": Fate("objective.rop.use_rop", why="false = MLM only"),
    **_same("model.rop.n_hidden", "model.rop.hidden_size", into="objective.rop"),
    "training.batch_size": Fate("training.global_batch_size", why="times training.accum_iters"),
    "training.accum_iters": Fate("training.global_batch_size", why="times training.batch_size"),
    "training.epochs": Fate("training.max_steps", why="runs are counted in optimiser steps"),
    "training.optimizer": Fate("training.optimizer", why="adam or lamb, not Keras' own; adamw is new"),
    "training.lr": Fate("training.learning_rate"),
    "training.noam_annealing": Fate("training.schedule", why="true = noam, and not one update late"),
    "training.warmup_steps": Fate("training.warmup_steps"),
    "training.use_gpu": Fate("cluster.use_gpu"),
    "training.multi_gpu": Fate("cluster.num_workers", why="any number of workers; true was exactly two GPUs"),
    "training.n_gpus": Fate("cluster.num_workers", why="ignored by the original"),
    "training.path_save_weights": Fate("run.storage_path", why="saved every save_steps, not every hour"),
    "training.path_initial_weights": Fate("model.init_from"),
    "training.initial_batch": Fate(why="a checkpoint records its step; the same command resumes"),
    "training.verbose": Fate(why="progress on a terminal, plain lines elsewhere"),
    # evaluation and embeddings
    "dataset.test_file": Fate(flag="twilbert-evaluate MODEL DATA"),
    "dataset.output_file": Fate(flag="twilbert-evaluate --json FILE"),
    "representation.max_len_training": Fate(why="the model folder records its positions"),
    "representation.max_len_test": Fate(flag="twilbert-evaluate --max-len N", why="ignored by the original"),
    "test.path_load_weights": Fate(flag="twilbert-convert WEIGHTS", why="then twilbert-evaluate MODEL DATA"),
    # fine-tuning, grid search, labelling
    **_now_in("a task file, which twilbert-finetune --task takes", {
        "dataset.train_file": "files.train", "dataset.dev_file": "files.dev", "dataset.id_header": "columns.id",
        "dataset.text_header": "columns.text", "dataset.aux_header": "columns.text_b",
        "dataset.class_header": "columns.label", "dataset.delimiter": "delimiter", "task.eval_metric": "metric",
        "task.average_metric": "average", "task.class_metric": "class_metric", "task.stance_f1": "metric: stance_f1",
        "grid_search.monitorize": "metric",
    }),
    **_now_in("twilbert-finetune", {
        "task.class_weights": "loss.class_weights", "finetuning.batch_size": "training.batch_size",
        "finetuning.epochs": "training.epochs", "finetuning.finetune_all": "encoder.trainable_layers",
        "finetuning.trainable_layers": "encoder.trainable_layers", "finetuning.loss": "loss.name",
        "finetuning.optimizer": "training.optimizer", "finetuning.lr": "training.learning_rate",
        "finetuning.noam_annealing": "training.schedule", "finetuning.warmup_steps": "training.warmup",
        "finetuning.accum_iters": "training.accumulation", "finetuning.path_save_weights": "--out",
        "finetuning.path_load_weights": "--model", "finetuning.model_name": "--out",
    }),
    **_now_in("twilbert-tune", {
        "grid_search.batch_size": "training.batch_size", "grid_search.collapse_mode": "head.pooling",
        "grid_search.lr": "training.learning_rate", "grid_search.runs": "final.seeds",
    }),
    "finetuning.pred_batch_size": Fate(why="predictions are made in batches of near-equal tokens"),
    "finetuning.path_load_finetuned_weights": Fate(flag="twilbert-convert WEIGHTS", why="then the folder is the model"),
    "task.categories": Fate(config="head.labels", why="in the order of their numbers"),
    "task.rev_categories": Fate(config="head.labels", why="the same the other way round"),
    "task.multi_label": Fate(config="head.problem"),
    "task.regression": Fate(why="ignored by the original"),
    "finetuning.collapse_mode": Fate(config="head.pooling"),
    "finetuning.use_special_tokens": Fate(config="head.special_tokens", why="always true: ignored by the original"),
    "finetuning.dropout": Fate(config="head.dropout"),
    "finetune_model.dropout": Fate(config="head.dropout"),
    "representation.preprocessing": Fate(config="text.remove_rt", why="links and mentions are always replaced"),
    "representation.bucket_min": Fate(why=_LENGTHS),
    "representation.bucket_max": Fate(config="text.max_len", why="the longest bucket; 90 cut texts at 85 tokens"),
    "finetuning.use_gpu": Fate(why=_ONE_ENGINE),
    "finetuning.multi_gpu": Fate(why=_ONE_ENGINE),
    "finetuning.n_gpus": Fate(why="ignored by the original"),
    "finetuning.verbose": Fate(why="progress on a terminal, plain lines elsewhere"),
}  # fmt: skip
