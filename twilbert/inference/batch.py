"""Labels and probabilities, or embeddings, for every row of many files, in order and in bounded memory.

    files ─ read ─▶ Chunk ─ model ─▶ table: the input's own columns, then the results, `error` the last

A chunk of rows is read, computed and handed on before the next. Here one process does it; on Ray Data actors that
each hold the model take a file at a time, and their tables come back in the files' order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from twilbert import cli
from twilbert.cluster.joining import wait_for_room
from twilbert.cluster.ray_errors import user_errors
from twilbert.cluster.ray_session import DATA_CPUS, ensure_ray
from twilbert.data.tables.layout import TableFile
from twilbert.data.tables.texts import Chunk, blank_text, read
from twilbert.devices import usable_cores
from twilbert.errors import UsageError
from twilbert.inference import model as inference
from twilbert.model.problems import MULTI, REGRESSION

_CHUNK_ROWS, _CHUNK_ROWS_OF_TOKENS = 16_384, 512


@dataclass(frozen=True)
class Job:
    """The model and what is computed with it, as every worker needs it."""

    model: str
    device: str | None
    precision: str
    embeddings: str | None
    prefix: str
    trust_remote_code: bool = False
    calibrated: bool = True
    min_precision: float | None = None
    """Rows that are not sure enough for it are not answered."""

    def load(self) -> inference.Model:
        """Load the model."""
        return inference.load(self.model, self.device, self.precision, self.trust_remote_code, self.calibrated)

    @property
    def chunk_rows(self) -> int:
        """Rows computed at a time; a row of token embeddings is much larger than one of labels."""
        return _CHUNK_ROWS_OF_TOKENS if self.embeddings == "tokens" else _CHUNK_ROWS


def results(model: inference.Model, chunk: Chunk, job: Job) -> pa.Table:
    """Return the chunk's columns, then its results, `error` the last."""
    good = [number for number, error in enumerate(chunk.errors) if error is None]
    texts = [chunk.texts[i] or "" for i in good]
    pairs = None if chunk.pairs is None else [chunk.pairs[i] or "" for i in good]
    if job.embeddings:
        vectors = model.vectors(texts, pairs, job.embeddings)
        columns = {"embedding": _vectors(vectors, model, job.embeddings)}
        blank = [not len(one) or bool(np.isnan(one.flat[0])) for one in vectors]
    else:
        scores = model.scores(texts, pairs)
        columns = _labels(model, scores, job.min_precision)
        blank = np.isnan(scores[:, 0]).tolist()
    # Where each row's result is among the good ones; null where it has none.
    clean, remove_rt = model.folder.cleaning, model.folder.text["remove_rt"]
    errors, at = list(chunk.errors), np.full(len(chunk.errors), -1)
    for place, row in enumerate(good):
        if blank[place]:
            errors[row] = blank_text(second=bool(clean(texts[place], remove_rt)))
        else:
            at[row] = place
    places = pa.array(at, mask=at < 0)
    table = chunk.table
    for name, column in columns.items():
        if job.prefix + name in table.column_names:
            raise UsageError(f"the input already has a column {job.prefix + name!r}; choose other names with --prefix")
        table = table.append_column(job.prefix + name, column.take(places))
    return table.append_column(f"{job.prefix}error", pa.array(errors, pa.string()))


def _labels(model: inference.Model, scores: np.ndarray, min_precision: float | None) -> dict[str, pa.Array]:
    assert model.head is not None
    if model.head.problem == REGRESSION and min_precision is None:
        return {"predicted": pa.array(scores[:, 0])}
    abstained = None if min_precision is None else ~model.answered(scores, min_precision)
    predicted = [prediction.label for prediction in model.predictions(scores)]
    kind = pa.list_(pa.string()) if model.head.problem == MULTI else pa.string()
    shares = {f"p_{label}": pa.array(np.ascontiguousarray(p)) for label, p in zip(model.labels, scores.T, strict=True)}
    if abstained is None:
        return {"predicted": pa.array(predicted, kind), **shares}
    answers = [None if out else label for label, out in zip(predicted, abstained.tolist(), strict=True)]
    return {"predicted": pa.array(answers, kind), "abstained": pa.array(abstained), **shares}


def _vectors(vectors: np.ndarray | list[np.ndarray], model: inference.Model, pooling: str) -> pa.Array:
    if isinstance(vectors, np.ndarray):
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    counts = np.array([0, *(len(one) for one in vectors)])
    flat = np.concatenate([np.zeros(0, np.float32), *(one.reshape(-1) for one in vectors)])
    inner = pa.FixedSizeListArray.from_arrays(pa.array(flat), model.config.hidden_size)
    return pa.ListArray.from_arrays(pa.array(np.cumsum(counts), pa.int32()), inner)


def here(files: list[TableFile], job: Job) -> Iterator[pa.Table]:
    """Yield the tables of all chunks, computed in this process."""
    model = job.load()
    cleaning = model.folder.cleaning.name
    cli.say(f"model {job.model} on {model.device}, {precision_line(model, job)}, texts cleaned by {cleaning}")
    for file in files:
        for chunk in read(file, job.chunk_rows):
            yield results(model, chunk, job)


def precision_line(model: inference.Model, job: Job) -> str:
    """Return the number format as progress lines show it."""
    used = model.exact_dtype if job.embeddings else model.dtype
    return f"precision {str(used).removeprefix('torch.')}"


class _Worker:
    """An actor of Ray Data: holds the model, computes one file at a time."""

    def __init__(self, files: list[TableFile], job: Job) -> None:
        self._files, self._job = files, job
        self._model: inference.Model | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        # Loaded with the first file: Ray starts an actor that raises in its construction again and again.
        self._model = self._model or self._job.load()
        for number in batch["file"].tolist():
            for chunk in read(self._files[number], self._job.chunk_rows):
                yield results(self._model, chunk, self._job)


def on_ray(files: list[TableFile], job: Job, address: str | None) -> Iterator[pa.Table]:
    """Yield the same tables from the Ray cluster at `address` (None: the current one, or a local one)."""
    inference.load(job.model, "cpu", job.precision, job.trust_remote_code)  # a fault is one message, not each worker's
    with ensure_ray(usable_cores() + DATA_CPUS, address):
        import ray

        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        have = ray.cluster_resources()
        gpus = int(have.get("GPU", 0)) if job.device in (None, "cuda") else 0
        workers = min(len(files), gpus or max(1, int(have.get("CPU", 1)) - DATA_CPUS))
        device = "a GPU" if gpus else "a CPU"
        needs: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        if gpus:
            wait_for_room([{"GPU": 1}])
        cli.say(f"{len(files)} files on Ray Data, {workers} workers with {device} each")
        dataset = ray.data.from_items([{"file": i} for i in range(len(files))], override_num_blocks=len(files))
        tables = dataset.map_batches(
            _Worker,
            batch_size=1,
            batch_format="numpy",
            fn_constructor_args=(files, job),
            compute=ray.data.ActorPoolStrategy(size=workers),
            **needs,
        )
        with user_errors("predicting on Ray"):
            yield from tables.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
