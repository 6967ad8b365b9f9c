"""A run's metrics: written to metrics.jsonl and, unless disabled, Weights & Biases; read from metrics.jsonl.

Keys group by slash: train/ valid/ optim/ speed/ data/ pkm/. Every row carries its step, also in W&B, whose own step
restarts at 0.
"""

from __future__ import annotations

import bisect
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from twilbert import cli, storage
from twilbert.parsing import read_rows
from twilbert.tracking.wandb_runs import Wandb

# Four bins a decade from 0.0001 to 1000, the same at every step, so that steps can be compared.
EDGES = [round(10 ** (k / 4), 10) for k in range(-16, 13)]
_KINDS = {
    ".embeddings.": "embeddings",
    ".attention.": "attention",
    ".feed_forward.": "feed_forward",
    ".memory.": "memory",
    "masked_lm.": "heads",
    "reply_order.": "heads",
}


def kind_of(name: str) -> str:
    """Return the part of the model that a tensor belongs to; "other" for an unknown module."""
    return next((kind for mark, kind in _KINDS.items() if mark in name), "other")


def trust_ratio_metrics(
    names: Sequence[str], ratios: torch.Tensor, adapted: torch.Tensor
) -> dict[str, float | Histogram]:
    """Return optim/trust_ratio_{min,median,max} and optim/trust_ratios/KIND of the adapted tensors; none without them.

    `ratios` [tensors] and `adapted` [tensors] (bool) as of `names`.
    """
    chosen = ratios[adapted]
    if not len(chosen):
        return {}
    metrics: dict[str, float | Histogram] = {
        "optim/trust_ratio_min": float(chosen.min()),
        "optim/trust_ratio_median": float(chosen.quantile(0.5)),
        "optim/trust_ratio_max": float(chosen.max()),
    }
    by_kind: dict[str, list[float]] = {}
    for name, ratio, counts in zip(names, ratios.tolist(), adapted.tolist(), strict=True):
        if counts:
            by_kind.setdefault(kind_of(name), []).append(min(max(ratio, EDGES[0]), EDGES[-1]))  # end bins take the rest
    edges = torch.tensor(EDGES, dtype=torch.float64)
    for kind, values in by_kind.items():
        counts = torch.histogram(torch.tensor(values, dtype=torch.float64), edges).hist.int().tolist()
        metrics[f"optim/trust_ratios/{kind}"] = Histogram(EDGES, counts)
    return metrics


METRICS_FILE = "metrics.jsonl"
Curve = list[tuple[float, float]]
"""(step, value) in order of steps."""


class Histogram(NamedTuple):
    """Counts between edges: one more edge than counts."""

    edges: list[float]
    counts: list[int]


class MetricsFile:
    """metrics.jsonl of a run: one JSON object a line, in order of steps.

    Appended to in a local or mounted folder. Object stores cannot append: there `flush`, called at evaluations and
    checkpoints, writes the whole file.
    """

    def __init__(self, path: str, last_step: int) -> None:
        self.path = path
        self._rows = [json.dumps(row) for row in read_metrics(path) if row["step"] <= last_step]
        self._stream: IO[str] | None = None
        self.flush()
        if storage.is_local(path):
            self._stream = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def append(self, row: dict[str, Any]) -> None:
        """Add one row."""
        line = json.dumps(row)
        if self._stream is None:
            self._rows.append(line)
            return
        with storage.explained_write(self.path):
            self._stream.write(line + "\n")
            self._stream.flush()

    def flush(self) -> None:
        """Write the file whole on an object store."""
        if self._stream is None:
            storage.write_bytes_atomic(self.path, "".join(line + "\n" for line in self._rows).encode())

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._stream is not None:
            self._stream.close()


def read_metrics(path: str) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl by step, none where there is no file; damaged lines are reported and skipped.

    A row of an earlier step than the one before it comes from a restart and replaces all rows from that step on.
    """
    rows: list[dict[str, Any]] = []
    for row in read_rows(path, cli.say):
        if rows and row["step"] < rows[-1]["step"]:
            del rows[bisect.bisect_left(rows, row["step"], key=lambda other: other["step"]) :]
        rows.append(row)
    return rows


def curves_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Return each series of numbers in rows of metrics as [(step, value), …], each step once, without histograms."""
    curves: dict[str, dict[float, float]] = {}
    for row in rows:
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                curves.setdefault(key, {})[row["step"]] = value
    return {key: list(points.items()) for key, points in curves.items()}


class Tracker:
    """Writes rows of rank 0 to metrics.jsonl and W&B."""

    def __init__(
        self, run_folder: str, run_name: str, wandb: Wandb, config: dict[str, Any], run_id: str, last_step: int
    ) -> None:
        self._file = MetricsFile(storage.join(run_folder, METRICS_FILE), last_step)
        self._wandb = wandb
        folder = run_folder if storage.is_local(run_folder) else tempfile.mkdtemp(prefix="twilbert-wandb-")
        self._run = wandb.open(folder, run_name, config, run_id)
        where = "" if self._run.folder is None else f" in {self._run.folder}"
        more = {"offline": f"; to upload later: wandb sync {self._run.folder}", "online": f"; {self._run.url}"}
        self.first_line = (
            f"tracking: W&B {wandb.mode}{wandb.why}{where}; metrics in {storage.join(run_folder, METRICS_FILE)}"
            f"{more.get(wandb.mode, '')}"
        )

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write one row: numbers, and histograms, in metrics.jsonl as {"edges", "counts"}."""
        row = {"step": step, **values}
        self._file.append({key: v._asdict() if isinstance(v, Histogram) else v for key, v in row.items()})
        if self._run.is_open:
            self._run.log({key: _wandb_value(value) for key, value in row.items()})

    def flush(self) -> None:
        """Write the rows so far where the storage cannot append."""
        self._file.flush()

    def close(self) -> None:
        """End both logs."""
        self._file.close()
        self._wandb.close()


def _wandb_value(value: Any) -> Any:
    if not isinstance(value, Histogram):
        return value
    import numpy as np
    import wandb

    return wandb.Histogram(np_histogram=(np.asarray(value.counts), np.asarray(value.edges)))
