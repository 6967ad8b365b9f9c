"""What twilbert-plan says beside what runs of four sizes took: peak memory of a worker, time a step.

    python -m tools.check_plan [--only memory|time] [--sizes tiny,…] [--work DIR] [--json FILE]

Each size is trained for a few steps by the real driver, Ray Train worker and DeepSpeed engine, on a made corpus of
random ids. Time: the median step after the first two against the plan's, with the rates that `--measure` finds.

Memory: the worker's resident peak until the last step against the plan's tensors and what the process itself takes.
That is measured as the peak of a model of next to no tensors (the plan assumes a figure for it; both are printed).
glibc keeps freed blocks in its arenas, and oneDNN a compiled product for every new shape, together several times what
is in use; runs for memory therefore start with the settings that give both back, runs for time without them. The peak
with the checkpoint that follows the last step is printed, not judged. Exit 1 when memory is off by more than 10 % or
time by more than 20 %. About five minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.make_encoded import make_encoded
from twilbert import cli, cluster, pretrain, recipe_file
from twilbert.data.encoded import EncodedCorpus
from twilbert.model.config import ModelConfig
from twilbert.planning import whole
from twilbert.planning.devices import device_of
from twilbert.recipe import Recipe
from twilbert.train import run_folder
from twilbert.train.tracking import read_metrics

MEMORY_BOUND, TIME_BOUND = 0.10, 0.20
_RETURNED_AT_ONCE = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_MMAP_MAX_": "65536",  # glibc's own; twilbert/train/host_memory.py would keep everything
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_ARENA_MAX": "2",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    "LRU_CACHE_CAPACITY": "16",
}
_MEMORY_STEPS = 3
_SMALL = ["model.hidden_size=256", "model.n_heads=4", "model.attention_size=64"]


@dataclass(frozen=True)
class Size:
    """A run to plan and to make."""

    recipe: str
    overrides: tuple[str, ...]
    vocab_size: int
    steps: int


SIZES = {
    "tiny": Size("tiny.yaml", (), 8000, 16),
    "H256 L3": Size(
        "base.yaml",
        (*_SMALL, "model.embedding_size=256", "model.n_encoders=3", "corpus.max_len=64", "training.zero_stage=0",
         "training.precision=fp32", "training.global_batch_size=256", "training.micro_batch_tokens=4096"),
        20000, 10,
    ),
    "shared, memory": Size(
        "xlarge.yaml",
        (*_SMALL, "model.embedding_size=64", "model.n_encoders=6", "model.pkm_params.memory_size=128",
         "model.pkm_params.in_layers=[4]", "model.pkm_params.k_dim=128", "training.global_batch_size=256",
         "training.micro_batch_tokens=4096"),
        20000, 10,
    ),
    "Base": Size("base.yaml", ("training.global_batch_size=256", "training.micro_batch_tokens=8192"), 30002, 6),
}  # fmt: skip
NOTHING = Size(
    "tiny.yaml",
    ("model.hidden_size=32", "model.embedding_size=32", "model.n_heads=2", "training.global_batch_size=32"),
    200, _MEMORY_STEPS,
)  # fmt: skip
"""A model of next to no tensors: what its worker takes, every worker does."""


def recipe_of(size: Size, work: Path) -> Recipe:
    """The recipe of a size as it is run: on CPUs, one worker, no W&B, a row of metrics a step."""
    (work / "tokenizer").mkdir(exist_ok=True)
    (work / "tokenizer" / "tokenizer.json").write_text("{}")
    run = (
        f"run.storage_path={work / 'runs'}", f"corpus.tokenizer={work / 'tokenizer'}", f"corpus.path={work / 'none'}",
        "cluster.num_workers=1", "cluster.use_gpu=false", "tracking.mode=disabled", "training.logging_steps=1",
        f"training.max_steps={size.steps}", "training.schedule=constant", "training.learning_rate=1e-4",
        "training.eval_steps=1000000", "training.save_steps=1000000",
    )  # fmt: skip
    return recipe_file.load(size.recipe, [*size.overrides, *run])


def corpus_of(size: Size, recipe: Recipe, folder: Path) -> EncodedCorpus:
    """Random ids: pairs of tweets of 3 to 45 tokens, or max_len."""
    longest = min(45, recipe.corpus.max_len)
    if folder.exists():
        return EncodedCorpus.open_folder(str(folder))
    return make_encoded(
        folder, [2000] * 4, vocab_size=size.vocab_size, max_len=recipe.corpus.max_len, lengths=(3, longest)
    )


class Watch:
    """The largest worker's resident peak while a run goes, until its last step and in all."""

    def __init__(self, metrics: Path, steps: int) -> None:
        self.training = self.whole = 0
        self._metrics, self._steps = metrics, steps
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _poll(self) -> None:
        worker: psutil.Process | None = None
        while not self._over.wait(0.02):
            worker = worker if worker is not None and worker.is_running() else _worker()
            peak = _resident_peak(worker) if worker is not None else 0
            rows = self._metrics.read_bytes().count(b"\n") if self._metrics.exists() else 0
            self.whole = max(self.whole, peak)
            if rows < self._steps:
                self.training = self.whole


def _worker() -> psutil.Process | None:
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()[:1]):
                return process
        except psutil.Error:  # it ended meanwhile
            continue
    return None


def _resident_peak(process: psutil.Process) -> int:
    """VmHWM in bytes; 0 once the process is gone."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def train(name: str, size: Size, work: Path) -> dict[str, float]:
    """Train a size; resident peaks in bytes and the median seconds of a step."""
    recipe = recipe_of(size, work)
    encoded = corpus_of(size, recipe, work / f"corpus-{size.vocab_size}-{recipe.corpus.max_len}")
    precision = pretrain.resolve_precision(recipe)
    run = run_folder.claim(recipe, f"{name.replace(' ', '-').replace(',', '')}-{time.time_ns()}", {})
    metrics = Path(run.path) / "metrics.jsonl"
    with Watch(metrics, size.steps) as watch:
        pretrain._fit(recipe, run, encoded, precision)
    seconds = [row["speed/step_seconds"] for row in read_metrics(str(metrics)) if "speed/step_seconds" in row]
    return {"training": watch.training, "checkpoint": watch.whole, "seconds": statistics.median(seconds[2:])}


def planned(size: Size, work: Path, *, with_time: bool) -> dict[str, float]:
    """The plan's figures for one worker on this machine."""
    recipe = recipe_of(size, work)
    encoded = corpus_of(size, recipe, work / f"corpus-{size.vocab_size}-{recipe.corpus.max_len}")
    precision = pretrain.resolve_precision(recipe)
    config = ModelConfig.from_dict(recipe.architecture(size.vocab_size))
    lengths = whole.lengths_of(encoded, recipe)
    rates, device = None, device_of("cpu", 1e12)
    if with_time:
        torch.set_num_threads(os.cpu_count() or 1)
        rates = whole.measured_rates(recipe, config, lengths, precision)
        device = device_of("cpu", rates.matrix, rates.stream)
    plan = whole.make_plan(
        recipe, config, device, devices=1, precision=precision, lengths=lengths, rates=rates, encoded=encoded
    )
    own = plan["memory"]["own"]
    return {
        "process": own["reserve"],
        "training": own["peak"],
        "checkpoint": max(own["peak"], own["resting"] + own["checkpoint_host"]),
        "seconds": plan["time"]["own"]["step"],
    }


def check_memory(sizes: dict[str, Size], work: Path, found: dict[str, dict[str, Any]]) -> None:
    """Add "memory" to what was found of every size."""
    before = {key: os.environ.get(key) for key in _RETURNED_AT_ONCE}
    os.environ.update(_RETURNED_AT_ONCE)
    with cluster.ensure_ray(4):
        cli.say("training next to nothing, for what the process itself takes")
        process = train("process", NOTHING, work)["training"]
        for name, size in sizes.items():
            cli.say(f"{name}: training for its memory")
            found[name]["memory"] = {"process": process} | train(name, replace(size, steps=_MEMORY_STEPS), work)
    for key, value in before.items():
        os.environ.pop(key)
        if value is not None:
            os.environ[key] = value


def check_time(sizes: dict[str, Size], work: Path, found: dict[str, dict[str, Any]]) -> None:
    """Add "time" to what was found of every size."""
    with cluster.ensure_ray(4):
        for name, size in sizes.items():
            cli.say(f"{name}: training for its time")
            found[name]["time"] = train(name, size, work)


def report(found: dict[str, dict[str, Any]]) -> bool:
    """Print planned beside measured; whether all that is judged is within bounds."""
    rows, kept = [], True
    for name, figures in found.items():
        plan, compared = figures["planned"], []
        if "memory" in figures:
            real = figures["memory"]
            process = real["process"]
            compared += [
                ("peak, training", plan["training"] + process, real["training"], MEMORY_BOUND, 1e9, "GB"),
                ("of it tensors", plan["training"], real["training"] - process, None, 1e9, "GB"),
                ("of it the process", plan["process"], process, None, 1e9, "GB"),
                ("peak with a checkpoint", plan["checkpoint"] + process, real["checkpoint"], None, 1e9, "GB"),
            ]
        if "time" in figures:
            compared.append(("a step", plan["seconds"], figures["time"]["seconds"], TIME_BOUND, 1, "s"))
        for what, planned_value, real_value, bound, scale, unit in compared:
            off = planned_value / real_value - 1
            within = bound is None or abs(off) <= bound
            kept &= within
            said = "" if bound is None else f"within {bound:.0%}" if within else f"OVER {bound:.0%}"
            cells = (f"{planned_value / scale:.3f}", f"{real_value / scale:.3f}", unit, f"{off:+.1%}", said)
            rows.append([name, what, *cells])
    cli.table(["size", "what", "planned", "measured", "", "off by", "judged"], rows)
    return kept


def main() -> int:
    """Plan, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["memory", "time"])
    parser.add_argument("--sizes", default=",".join(key.split(",")[0] for key in SIZES), help="beginnings of names")
    parser.add_argument("--work", type=Path, help="folder for corpora and runs (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    asked = tuple(args.sizes.split(","))
    sizes = {name: size for name, size in SIZES.items() if name.startswith(asked)}
    with tempfile.TemporaryDirectory(prefix="twilbert-plan-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        found: dict[str, dict[str, Any]] = {}
        for name, size in sizes.items():
            cli.say(f"{name}: planning")
            found[name] = {"planned": planned(size, work, with_time=args.only != "memory")}
        if args.only in (None, "memory"):
            check_memory(sizes, work, found)
        if args.only in (None, "time"):
            check_time(sizes, work, found)
    kept = report(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
        print(f"written: {args.json}")
    print(f"memory within {100 * MEMORY_BOUND:g} %, time within {100 * TIME_BOUND:g} %: {'yes' if kept else 'NO'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
