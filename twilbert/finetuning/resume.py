"""The files from which an interrupted fine-tuning resumes.

OUT/  started.json                what decides the results: settings, task, device, data, weights
      seed-N/best.safetensors     weights at the seed's best dev evaluation, and dev's probabilities
             ended.json           all dev evaluations; written last, when the seed is finished
Both files of a seed hold their own SHA-256: a seed with a damaged one is trained again. They are removed once
results.json is written.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from twilbert import cli, outputs, storage
from twilbert.data import checksums
from twilbert.devices import find_device
from twilbert.errors import TwilbertError, UsageError
from twilbert.finetuning.data import Split, TaskData
from twilbert.finetuning.encoders import Base, sha256_of
from twilbert.finetuning.train import Evaluation, Outcome, resolve_precision
from twilbert.model.tensor_files import read_header
from twilbert.recipe.finetuning import FinetuneRecipe
from twilbert.tasks.task import Task
from twilbert.tracking.metrics import METRICS_FILE

STARTED = "started.json"
NEW = ".new"  # suffix of the folder beside OUT that is going to replace it
WEIGHTS, _ENDED = "best.safetensors", "ended.json"
_SUM = "sha256"
_PROBABILITIES = "dev/probabilities"  # in one file with the weights, so that both are of the same evaluation
_OURS = re.compile(
    r"(started|results)\.json|recipe\.yaml|report\.html|(predictions|errors)-(dev|test)\.jsonl|"
    r"confusion-(dev|test)\.tsv|seed-\d+/(metrics\.jsonl|best\.safetensors|ended\.json|(wandb/.*)?)|model/.*"
)
_MODEL_BEFORE = (
    "config.json", "model.safetensors", "README.md", "configuration_twilbert.py", "modeling_twilbert.py",
    "tokenizer.json", "tokenizer_config.json", "twilbert_tokenizer.json",
)  # fmt: skip
_OF_TASK = {"problem", "labels", "metric", "average", "class_metric", "remove_rt", "files", "root"}


@dataclass(frozen=True)
class _Ended:
    """ended.json."""

    seed: int
    best: int
    """Index in `history`."""
    history: list[Evaluation]
    stopped_early: bool


def identity(recipe: FinetuneRecipe, task: Task, base: Base, data: TaskData) -> dict[str, Any]:
    """Return, as JSON, what must be the same for the results of all seeds to be comparable."""
    device = find_device(recipe.training.device)
    rows = [part for split in (data.train, data.dev) for part in _encoded(split)]
    return recipe.model_dump(mode="json", exclude={"tracking", "runs", "calibrate"}) | {
        "the task file": task.model_dump(mode="json", include=_OF_TASK),
        "train and dev as encoded": sha256_of(*rows, data.text["max_len"]),
        "the model's weights": base.digest(),
        "the device": device.type,
        "the precision": resolve_precision(recipe.training, device),
    }


def _encoded(split: Split) -> tuple[np.ndarray, ...]:
    sequences = split.sequences
    return sequences.ids, sequences.offsets, sequences.seconds, split.labels


@contextlib.contextmanager
def claimed(out: str, identity: Mapping[str, Any], reads: Sequence[str], *, overwrite: bool) -> Iterator[str]:
    """Yield the folder in which the fine-tuning works, for it alone: OUT, or OUT.new, which replaces OUT at the end.

    UsageError where OUT holds something else and not `overwrite`, or something that may not be replaced: not written
    by a fine-tuning, or with one of `reads` in it.
    """
    work = out
    if overwrite and storage.is_folder(out) and storage.list_dir(out):
        _check_replaceable(out, reads)
        work = out + NEW if storage.is_local(out) else out
    claim = outputs.Claim(work, "a fine-tuning", identity, _remedy(out, reads))
    with claim.held(lambda: not storage.is_local(work) or _has_trained(work)):
        before = claim.record(STARTED)
        if overwrite and before is not None and (work == out or outputs.differences(before, identity)):
            _check_replaceable(work, reads)
            for name in sorted(storage.list_dir(work), key=lambda name: name == STARTED):
                storage.delete(storage.join(work, name))
        claim.begin(STARTED)
        yield work
        if work != out:
            _check_replaceable(out, reads)
            target = Path(out).resolve()
            with storage.temporary(target, folder=True) as new:
                Path(work).rename(new)
                storage.replace_folder(new, target)


def _remedy(out: str, reads: Sequence[str]) -> str:
    if storage.exists(storage.join(out, STARTED)):
        with contextlib.suppress(UsageError):
            _check_replaceable(out, reads)
            return "choose another --out, or --overwrite it"
    return "choose another --out"


def _check_replaceable(out: str, reads: Sequence[str]) -> None:
    """UsageError where OUT is no fine-tuning's folder, or replacing it would lose more than that."""
    outputs.refuse_inputs(out, reads)
    model = storage.join(out, "model")
    strangers = [name for name in outputs.strangers_in(out, "finetune") if not _OURS.fullmatch(name)]
    if storage.exists(model):
        strangers += [f"model/{name}" for name in outputs.strangers_in(model, "finetune", _MODEL_BEFORE)]
    if strangers or not storage.exists(storage.join(out, STARTED)):
        named = f" ({outputs.shown(strangers)})" if strangers else ""
        raise UsageError(f"{out}: holds something that finetune did not write{named}; choose another --out")


def _has_trained(out: str) -> bool:
    return any(path.stat().st_size for path in Path(out).rglob(METRICS_FILE))


def write_seed(folder: str, outcome: Outcome) -> None:
    """Write a finished training."""
    write_weights(storage.join(folder, WEIGHTS), outcome.probabilities, outcome.state)
    best = outcome.history.index(outcome.best)
    ended = _Ended(outcome.seed, best, outcome.history, outcome.stopped_early)
    checksums.write_json(storage.join(folder, _ENDED), asdict(ended))


def read_seed(folder: str) -> Outcome | None:
    """Return the training that `write_seed` wrote; None where it is not finished, or damaged, which is reported."""
    if not storage.exists(storage.join(folder, _ENDED)):
        return None
    try:
        ended = checksums.read_json(storage.join(folder, _ENDED), _Ended)
        if not 0 <= ended.best < len(ended.history):
            raise TwilbertError(f"{storage.join(folder, _ENDED)}: no evaluation {ended.best}")
        probabilities, state = read_weights(storage.join(folder, WEIGHTS))
    except TwilbertError as error:
        cli.say(f"{error}: that seed is trained again")
        return None
    return Outcome(ended.seed, ended.history[ended.best], ended.history, probabilities, state, ended.stopped_early)


def drop_seed(folder: str, *, logs: bool = False) -> None:
    """Remove the files of `write_seed`, and with `logs` those of the training too."""
    for name in (_ENDED, WEIGHTS, *((METRICS_FILE, "wandb") if logs else ())):  # first what marks it as finished
        storage.delete(storage.join(folder, name))


def write_weights(path: str, probabilities: np.ndarray, state: Mapping[str, Tensor]) -> None:
    """Write weights and dev's probabilities as a safetensors file that holds the SHA-256 of its tensors."""
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    tensors[_PROBABILITIES] = torch.from_numpy(np.ascontiguousarray(probabilities))
    storage.write_bytes_atomic(path, save_safetensors(tensors, {_SUM: _sum(tensors)}))


def read_weights(path: str) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Return dev's probabilities and weights; TwilbertError naming the file when it is missing or damaged."""
    try:
        tensors = load_safetensors(storage.read_bytes(path))
    except (OSError, SafetensorError) as error:
        raise TwilbertError(f"{path}: missing or damaged ({error})") from error
    written = read_header(path).get("__metadata__", {}).get(_SUM)  # none in files of 0.2.0
    if written is not None and written != _sum(tensors):
        raise TwilbertError(f"{path}: damaged: its tensors do not give its own SHA-256")
    return tensors.pop(_PROBABILITIES).numpy(), tensors


def _sum(tensors: Mapping[str, Tensor]) -> str:
    return sha256_of(*itertools.chain(*((name, tensors[name].numpy()) for name in sorted(tensors))))
