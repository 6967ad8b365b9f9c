"""A model's card (README.md of its hub folder): use, sizes, data, settings, scores and limits.

Everything comes from the records of its run (recipe, metrics, corpus) or of its fine-tuning (results); a section
without a record says so. No path of this machine gets into a card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from twilbert import __version__, storage
from twilbert.data.tokenizer.tokenizer import SETTINGS_FILE
from twilbert.hub.folder import RECIPE_NAME, ModelFolder
from twilbert.model.classifier import HeadConfig
from twilbert.model.config import ModelConfig, count_parameters
from twilbert.parsing import dump_yaml, read_checked

_NOT_RECORDED = "Not recorded with the exported model: to be written by the publisher."
_CLASSIFICATION_LIMITS = (
    "Scores hold for texts like those of its fine-tuning and evaluation; on others, measure before use.",
    "Probabilities are not calibrated.",
)
_LIMITS = (
    "Trained on Spanish tweets and replies: formal text, other languages and long documents are outside its domain.",
    "It reproduces prejudice, insults and opinions about people and groups that its tweets contain. Filter its "
    "suggestions, and do not base decisions about persons on them.",
    "Tweets may be personal data: mentions and links became `user` and `url`, but names in the text remain.",
)


@dataclass(frozen=True)
class _Split:
    rows: int


@dataclass(frozen=True)
class _Corpus:
    """The part of corpus.json that a card shows."""

    dropped: dict[str, int]
    cleaning: dict[str, str]
    splits: dict[Literal["train", "valid"], _Split]
    lines_read: int


@dataclass(frozen=True)
class _Spread:
    mean: float | None
    sd: float | None
    n: int
    rows: int


@dataclass(frozen=True)
class _Results:
    """The part of a fine-tuning's results.json that a card shows."""

    metric: str
    dev: _Spread
    test: _Spread | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Tokenizer:
    type: str | None = None


@dataclass(frozen=True)
class Records:
    """The records of a model's training; empty where there is none."""

    recipe: dict[str, Any]
    corpus: dict[str, Any]
    """corpus.json of the corpus it was pre-trained on, where that still exists."""
    held_out: dict[str, float]
    """The run's held-out evaluation of the very step that the weights are of, and that step."""
    results: dict[str, Any]
    """results.json of a fine-tuning."""
    tokenizer: dict[str, Any]
    converted: bool
    """Whether the weights are the original program's."""


def read_records(folder: ModelFolder, held_out: dict[str, float]) -> Records:
    """Collect the records in the model's folder, its run or checkpoint and its corpus; and `held_out`."""
    corpus = folder.recipe.get("corpus") or {}
    corpus_path = corpus.get("path") if isinstance(corpus, Mapping) else None
    return Records(
        recipe=folder.recipe,
        corpus=_json(storage.join(corpus_path, "corpus.json"), _Corpus) if isinstance(corpus_path, str) else {},
        held_out=held_out,
        results=_json(storage.join(folder.path.rpartition("/")[0], "results.json"), _Results),
        tokenizer=_json(storage.join(folder.path, SETTINGS_FILE), _Tokenizer),
        converted=storage.exists(storage.join(folder.path, RECIPE_NAME)),
    )


def model_card(
    title: str, config: ModelConfig, head: HeadConfig | None, records: Records, onnx: str | None = None
) -> str:
    """Return the card's text; `onnx`: the section on the ONNX file, where there is one."""
    task = "fill-mask" if head is None else "text-classification"
    parts = [
        f"---\nlanguage: es\nlibrary_name: transformers\npipeline_tag: {task}\ntags: [twilbert, twitter, spanish]\n---",
        f"# {plain(title)}\n\n{_about(head, records)}",
        _section("Use", _use(task)),
        _section("Model", _model(config, head, records)),
        _section("Data", _data(records)),
        _section("Settings", _settings(records)),
        _section("Scores", _scores(records)),
        *([_section("ONNX", onnx)] if onnx else []),
        _section("Limits", "\n".join(f"- {limit}" for limit in (*(_CLASSIFICATION_LIMITS if head else ()), *_LIMITS))),
    ]
    return "\n\n".join(parts) + "\n"


def plain(value: object) -> str:
    """Escape `value` for a line of Markdown or HTML: names and titles may hold anything."""
    return re.sub(r"[\\`*\[\]{}<>#|~$&!:@]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(str(value).split()))


def code(value: object) -> str:
    """Return `value` as a code span."""
    return "`" + " ".join(str(value).replace("`", "'").split()) + "`"


def _fence(value: Any) -> str:
    """Return `value` as a fenced block of YAML, which nothing in it can end."""
    text = dump_yaml(value)
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}yaml\n{text}{ticks}"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _about(head: HeadConfig | None, records: Records) -> str:
    if head is None:
        origin = "converted from the original program's weights" if records.converted else "pre-trained"
        return (
            "TWilBERT: an encoder of Spanish Twitter conversations that predicts masked words and reply order, "
            f"{origin} with twilbert {__version__}."
        )
    name = records.results.get("title") or records.results.get("task")
    of = f" for {plain(name)}" if name else ""
    return f"TWilBERT, an encoder of Spanish Twitter conversations, fine-tuned{of} with twilbert {__version__}."


def _use(task: str) -> str:
    example = "Buenos días a [MASK] !" if task == "fill-mask" else "qué bien, lunes otra vez"
    return (
        "Needs torch and transformers alone; the model's code is in the folder, so transformers asks for trust. The "
        "tokenizer cleans tweets itself (links, mentions, entities).\n\n"
        "```python\nfrom transformers import pipeline\n\n"
        f'model = pipeline("{task}", "REPO_OR_FOLDER", trust_remote_code=True)\nprint(model("{example}"))\n```\n\n'
        "With the package twilbert: `import twilbert.hub`, then the same without trust_remote_code, or "
        f'`twilbert.load("FOLDER").{"fill_mask" if task == "fill-mask" else "predict"}("{example}")`.'
    )


def _model(config: ModelConfig, head: HeadConfig | None, records: Records) -> str:
    counts = count_parameters(config)
    rows = [
        ("layers", f"{config.n_encoders}{', one block shared' if config.cross_sharing else ''}"),
        ("hidden size", config.hidden_size),
        ("embedding size", config.embedding_size),
        ("attention heads", f"{config.n_heads} of {config.attention_size} channels"),
        ("product-key memory in layers", ", ".join(map(str, config.memory_layers)) or "none"),
        ("parameters of the encoder", f"{counts['encoder']:,}"),
        ("vocabulary", f"{config.vocab_size:,} ({records.tokenizer.get('type', 'type not recorded')})"),
        ("longest text", f"{config.max_len} tokens, a pair {2 * config.max_len + 3}"),
    ]
    if head is not None:
        rows += [("labels", ", ".join(head.labels)), ("problem", head.problem), ("pooling", head.pooling)]
    return _table(("", ""), rows)


def _data(records: Records) -> str:
    results, corpus = records.results, records.corpus
    if results:
        counts = results.get("counts") or {}
        base = str(results.get("model", "")).rstrip("/").rsplit("/", 1)[-1]
        task = f"Task {plain(results.get('task'))}, on the encoder {code(base)}."
        return f"{task}\n\n{_fence(_without_paths(counts))}" if counts else task
    if corpus:
        dropped = ", ".join(
            f"{number:,} {plain(reason.replace('_', ' '))}" for reason, number in corpus["dropped"].items()
        )
        cleaning = "; ".join(f"{name}: {rule}" for name, rule in corpus["cleaning"].items())
        return (
            f"Pairs of a tweet and its reply: {corpus['splits']['train']['rows']:,} to learn from, "
            f"{corpus['splits']['valid']['rows']:,} held out; of {corpus['lines_read']:,} lines read, dropped: "
            f"{dropped or 'none'}. Cleaning: {code(cleaning)}."
        )
    if records.converted:
        return "That of the original TWilBERT, as its authors describe it; this folder holds their converted weights."
    return _NOT_RECORDED


def _settings(records: Records) -> str:
    recipe = records.results.get("recipe") or records.recipe
    settings = {
        key: value for key, value in recipe.items() if key in ("objective", "training", "encoder", "head", "seeds")
    }
    if not settings:
        return _NOT_RECORDED
    return _fence(_without_paths(settings))


def _scores(records: Records) -> str:
    if records.results:
        results = records.results
        rows = [(split, *_of_split(results[split])) for split in ("dev", "test") if results.get(split)]
        return _table(("split", f"{results['metric']}, mean of seeds", "sd", "seeds", "rows"), rows)
    if records.held_out:
        rows = [
            (name.removeprefix("valid/"), f"{value:.4f}" if name != "step" else value)
            for name, value in records.held_out.items()
        ]
        return "Held-out pairs of the same corpus (losses in nats):\n\n" + _table(("score", "value"), rows)
    return _NOT_RECORDED


def _of_split(scores: Mapping[str, Any]) -> tuple[str, str, Any, Any]:
    shown = ["–" if scores.get(key) is None else f"{scores[key]:.4f}" for key in ("mean", "sd")]
    return shown[0], shown[1], scores.get("n", "–"), scores.get("rows", "–")


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [list(map(plain, headers)), ["---"] * len(headers), *(map(plain, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _without_paths(value: Any) -> Any:
    """Return `value` without the entries that name a file or folder."""
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items() if not _is_path(item)}
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value if not _is_path(item)]
    return value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and "/" in value


def _json(file: str, shape: type) -> dict[str, Any]:
    return read_checked(file, shape) if storage.exists(file) else {}
