"""Translate one of the original's JSON configurations into a recipe, and a fine-tuned file's head and text settings.

settings.py maps the keys, this module their values; what has no equivalent is listed with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twilbert import storage
from twilbert.data.cleaning import FIRST
from twilbert.errors import UsageError
from twilbert.model.problems import MULTI, SINGLE
from twilbert.original.settings import ORIGINAL_SETTINGS
from twilbert.parsing import dump_yaml, read_json
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Recipe

_WHOLE = ("task.categories", "task.rev_categories", "task.class_weights")  # mappings that are one setting each
_PATHS = {"corpus.path", "corpus.tokenizer", "run.storage_path", "model.init_from"}
# Defaults of the original's optimisers.
_RATES = {"adam": 1e-4, "lamb": 0.00176}
_LAMB_MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class OriginalConfig:
    """A configuration of the original, translated."""

    file: str
    values: dict[str, Any]
    """The original's settings by dotted key."""
    recipe_values: dict[str, Any]
    """The recipe's sections, with the fields that the configuration sets."""
    recipe: Recipe
    fates: list[tuple[str, str]] = field(default_factory=list)
    """Each key of the original with its equivalent or the reason for having none, in the file's order."""

    @property
    def untrained_norm(self) -> bool:
        """Whether the memory's queries went through a fresh batch normalisation, as `batch_norm: false` meant."""
        return self.recipe.model.pkm and not self.values.get("model.pkm_params.batch_norm", True)

    @property
    def is_finetuning(self) -> bool:
        """Whether it is for fine-tuning or labelling."""
        return any(key.startswith(("finetuning.", "task.")) for key in self.values)

    def head(self, n_classes: int) -> dict[str, Any]:
        """Return the fields of `HeadConfig` for `n_classes` outputs; UsageError where task.categories does not fit."""
        return {
            "labels": self._labels(n_classes),
            "problem": MULTI if self.values.get("task.multi_label") else SINGLE,
            "pooling": self.values.get("finetuning.collapse_mode", "cls"),
            "special_tokens": True,  # the original ignored use_special_tokens
            "dropout": self.values.get("finetune_model.dropout", self.values.get("finetuning.dropout", 0.0)),
        }

    def text(self) -> dict[str, Any]:
        """Return how texts were cleaned and cut in fine-tuning (`hub.folder.TEXT_SETTINGS`)."""
        one = self.recipe.model.max_len or self.recipe.corpus.max_len  # of two texts; one alone may be twice as long
        longest = _longest_bucket(self.values, ("representation.bucket_max",))
        if longest is not None:
            longest = min(longest, 2 * one + 2)
        else:
            longest = min(_longest_bucket(self.values, ("representation.bucket_max_a",)) or one, one)
        return {
            "remove_rt": bool(self.values.get("representation.preprocessing", True)),
            "max_len": longest,
            "cleaning": FIRST,
        }

    def _labels(self, n_classes: int) -> list[str]:
        named = self.values.get("task.categories") or {}
        reverse = self.values.get("task.rev_categories") or {}
        try:
            numbered = {int(number): str(label) for label, number in named.items()}
            numbered = numbered or {int(number): str(label) for number, label in reverse.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise UsageError(f"{self.file}: task.categories must map each label to its number ({error})") from error
        # With several labels to a text, categories are the values that one label takes; the labels had no names.
        nameless = self.values.get("task.multi_label") and sorted(numbered) != list(range(n_classes))
        if not numbered or nameless:
            return [str(number) for number in range(n_classes)]
        if sorted(numbered) != list(range(n_classes)):
            raise UsageError(
                f"{self.file}: task.categories numbers its labels {sorted(numbered)}, the weight file has {n_classes} "
                f"outputs; number them 0 to {n_classes - 1}, each once"
            )
        return [numbered[number] for number in range(n_classes)]

    def recipe_yaml(self) -> str:
        """Return the recipe as YAML that `twilbert-pretrain` takes, under a comment on each of the original's keys."""
        lines = [_one_line(f"# {key}: {fate}") for key, fate in self.fates]
        head = (
            "# The recipe of the original's configuration. To train the converted model further, set corpus.path and\n"
            "# model.init_from. What became of each of the original's settings:"
        )
        body = dump_yaml(self.recipe_values)
        return "\n".join([head, *lines, body])


def _one_line(text: str) -> str:
    """Escape line breaks and their like in `text`, so that no key can end a comment."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def read_original_config(path: str) -> OriginalConfig:
    """Read the JSON file at `path`; UsageError naming the key that is missing or not valid."""
    if not storage.exists(path):
        raise UsageError(f"{path}: no such file; give the JSON configuration that the weights were made with")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UsageError(f'{path}: no section "model"; give the JSON configuration that the weights were made with')
    return translate(content, path)


def translate(content: dict[str, Any], file: str = "configuration") -> OriginalConfig:
    """Translate the configuration `content`; UsageError as `read_original_config`."""
    values = _flat(content)
    _check_types(values, file)
    recipe_values: dict[str, Any] = {}
    fates: list[tuple[str, str]] = []
    for key, value in values.items():
        moved = _moved(key, value, values)
        for target, setting in moved.items():
            section = recipe_values
            *parents, last = target.split(".")
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = setting
        fates.append((key, _fate(key, value, moved)))
    try:
        recipe = loading.build(recipe_values, where=file)
    except UsageError as error:
        raise UsageError(f"{error}\n  (names are the recipe's; the original's own are those of {file})") from error
    return OriginalConfig(file, values, recipe_values, recipe, fates)


def _flat(value: dict[str, Any], path: str = "") -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key, item in value.items():
        dotted = f"{path}{key}"
        if isinstance(item, dict) and dotted not in _WHOLE:
            settings |= _flat(item, f"{dotted}.")
        else:
            settings[dotted] = item
    return settings


_NEEDED = ("hidden_size", "embedding_size", "n_encoders", "n_heads", "factorize_embeddings", "cross_sharing", "pkm")
_NUMBERS = (
    "representation.max_len", "representation.max_len_training", "training.batch_size", "training.accum_iters",
    "training.warmup_steps", *(f"representation.bucket_{name}" for name in ("min", "max", "steps")),
    *(f"representation.bucket_{name}_{side}" for name in ("min", "max") for side in "ab"),
)  # fmt: skip


_COUNTS = ("model.n_encoders", "model.n_heads", "model.pkm_params.n_heads", "model.rop.n_hidden")
_MAX_COUNT = 1000  # each stands for tensors that are listed one by one


def _check_types(values: dict[str, Any], file: str) -> None:
    """UsageError for faulty values that the translation computes with; the recipe's checks cover the rest."""
    missing = [f"model.{name}" for name in _NEEDED if f"model.{name}" not in values]
    if not {"representation.max_len", "representation.max_len_training"} & values.keys():
        missing.append("representation.max_len")
    if missing:
        raise UsageError(
            f"{file}: {', '.join(missing)} missing; give the configuration that the weights were made with"
        )
    for key in _COUNTS:
        if type(values.get(key)) is int and values[key] > _MAX_COUNT:
            raise UsageError(f"{file}: {key} is {values[key]:,}; no model of the original has more than {_MAX_COUNT:,}")
    for key in _NUMBERS:
        value = values.get(key, 1)
        if type(value) is not int or value < 1:
            raise UsageError(f"{file}: {key} must be a whole number above 0, found {value!r}")


def _moved(key: str, value: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's fields that this setting gives, by dotted path."""
    special: dict[str, Callable[[], dict[str, Any]]] = {
        "representation.max_len": lambda: _lengths(values),
        "representation.max_len_training": lambda: _lengths(values),
        "model.pkm_params.batch_norm": lambda: {"model.pkm_params.batch_norm": False},
        "model.pkm_params.factorize_embeddings": lambda: {"model.pkm_params.factorize_embeddings": False},
        "model.masked_lm.type": lambda: {"objective.masked_lm.type": "token" if value == "word" else value},
        "training.batch_size": lambda: {"training.global_batch_size": _batch(values)},
        "training.accum_iters": lambda: {"training.global_batch_size": _batch(values)},
        "training.epochs": dict,
        "training.optimizer": lambda: _optimizer(values),
        "training.noam_annealing": lambda: _schedule(values),
        "training.lr": dict,  # goes with optimizer and noam_annealing
        "training.warmup_steps": lambda: {
            "training.warmup_steps": value if values.get("training.noam_annealing") else 1
        },
        "training.use_gpu": lambda: {"cluster.use_gpu": bool(value)},
        "training.multi_gpu": lambda: {"cluster.num_workers": 2 if value else 1},
        "training.n_gpus": dict,
        "representation.bucket_max_a": dict,
        "representation.bucket_max_b": dict,
    }
    if key.startswith("model.pkm_params.") and not values["model.pkm"]:
        return {}
    if key in special:
        return special[key]()
    fate = ORIGINAL_SETTINGS.get(key)
    if key == "model.pkm_params" or fate is None or fate.recipe is None or fate.recipe in _PATHS:
        return {}
    return {fate.recipe: value}


def _fate(key: str, value: Any, moved: dict[str, Any]) -> str:
    """Return one line on a setting's equivalent, or why it has none."""
    if key.startswith("model.pkm_params") and not moved:
        return "dropped: the model has no memory"
    fate = ORIGINAL_SETTINGS.get(key)
    if fate is None:
        return "dropped: no setting of the original that is known here"
    why = f" ({fate.why})" if fate.why else ""
    if moved:
        return ", ".join(f"{target} = {json.dumps(setting)}" for target, setting in moved.items()) + why
    if fate.config:
        return f"kept in a fine-tuned model's config.json as {fate.config}{why}"
    if fate.flag:
        return f"now {fate.flag}{why}"
    if fate.recipe in _PATHS:
        return f"to be given as {fate.recipe}{why}; was {json.dumps(value)}"
    if fate.recipe:
        return f"goes into {fate.recipe} with its neighbours{why}"
    return f"dropped: {fate.why}; was {json.dumps(value, ensure_ascii=False)}"


def _lengths(values: dict[str, Any]) -> dict[str, Any]:
    positions: int = values.get("representation.max_len_training") or values["representation.max_len"]
    longest = _longest_bucket(values, ("representation.bucket_max_a", "representation.bucket_max_b"))
    return {"model.max_len": positions, "corpus.max_len": min(longest or positions, positions)}


def _longest_bucket(values: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    """Return the longest text, in tokens, of the original's buckets: the last below their end."""
    step = values.get("representation.bucket_steps")
    lengths = []
    for key in keys:
        start, end = values.get(key.replace("_max", "_min")), values.get(key)
        if step and start and end and end > start:
            lengths.append(range(start, end, step)[-1])
    return max(lengths, default=None)


def _batch(values: dict[str, Any]) -> int:
    batch = values.get("training.batch_size", 64)
    return (batch + batch % 2) * values.get("training.accum_iters", 1)  # the original made odd batches even


def _optimizer_name(values: dict[str, Any]) -> str:
    return "lamb" if str(values.get("training.optimizer")).strip().lower() == "lamb" else "adam"


def _rate(values: dict[str, Any]) -> float:
    given = values.get("training.lr")
    return _RATES[_optimizer_name(values)] if given is None else given


def _optimizer(values: dict[str, Any]) -> dict[str, Any]:
    if _optimizer_name(values) == "adam":
        return {"training.optimizer": "adam"}
    # Under Noam the peak must be said: lamb has no default here.
    peak = (values["model.hidden_size"] * values.get("training.warmup_steps", 8000)) ** -0.5
    return {
        "training.optimizer": "lamb",
        "training.learning_rate": peak if values.get("training.noam_annealing") else _rate(values),
        "training.max_grad_norm": _LAMB_MAX_GRAD_NORM,
    }


def _schedule(values: dict[str, Any]) -> dict[str, Any]:
    if values["training.noam_annealing"]:
        return {"training.schedule": "noam"}
    return {"training.schedule": "constant", "training.learning_rate": _rate(values)}
