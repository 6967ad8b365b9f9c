"""Measure what Ray Train, DeepSpeed, the stream and tracking cost: twilbert-pretrain against a bare loop from memory.

    python -m tools.bench_overhead CORPUS TOKENIZER [--recipe base.yaml] [--steps 3] [--repeats 5] [--workers 1,2]
        [--threads 2] [--json OUT.json] [section.key=value …]

The command runs as a user runs it, with a row of metrics every step (more than a run has), and its own speed series is
read: seconds a step. The bare loop sees the same micro-batches of the same steps, from a list: the model in the same
dtype, gradients added up in fp32, fp32 masters, the same optimiser on one flat tensor; no Ray, no DeepSpeed, no
stream, no tracking. "beside Ray" is that loop while a Ray Train whose one worker only waits runs beside it: what Ray's
own processes, ten or more, take from cores that all compute.

A machine's speed drifts by more than what is measured here, so all take turns every few steps: while one computes,
every process of the others is stopped (SIGSTOP). The first step of a turn, in which a command was stopped, is not
counted for anyone. Each step is compared with the same step of the loop in the same turn.

With as many --threads as cores, everything that Ray's processes do is taken from the step; with one fewer, what is left
is the chain's own cost.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from tools.bare_loop import bare_turn
from tools.idle_ray import idle_ray
from tools.turns import Arms
from twilbert import cli, devices
from twilbert.data.corpus.corpus import Corpus
from twilbert.data.encoded import encode
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.pretraining.host_memory import allocator_environment
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Recipe

BARE, BESIDE, COMMAND = "bare loop", "bare loop beside Ray", "twilbert-pretrain"
POLL_S = 0.2  # between two looks at a command's metrics: to look costs the command time
WARM_UP_STEPS = 4  # steps before the first turn: memory grows, the stream fills its buffer


# ---- the command, and turns ----------------------------------------------------------------------------------------


class Stopped:
    """A process and its descendants, which run inside `running()` alone."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self.stop()

    @contextmanager
    def running(self) -> Iterator[None]:
        """All of them go on."""
        self.release()
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop them, those too that are started meanwhile."""
        stopped: set[int] = set()
        while new := [process for process in self._all() if process.pid not in stopped]:
            _send(new, signal.SIGSTOP)
            stopped |= {process.pid for process in new}

    def release(self) -> None:
        """Let them go on."""
        _send(self._all(), signal.SIGCONT)

    def _all(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            process.send_signal(number)


class Command:
    """A run of twilbert-pretrain, stopped but while `take` waits for some of its steps."""

    def __init__(self, args: argparse.Namespace, precision: str, workers: int, folder: str) -> None:
        settings = [*overrides_of(args), f"run.storage_path={folder}", "run.name=measured"]
        settings += [f"training.precision={precision}", f"cluster.num_workers={workers}"]
        self._command = [sys.executable, "-m", "twilbert.pretrain", args.recipe, *settings]
        self._log = Path(folder, "log.txt")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        self._metrics = Path(folder, "measured", "metrics.jsonl")

    def __enter__(self) -> Command:
        try:
            self._await(WARM_UP_STEPS)
        except BaseException:
            self._process.terminate()
            raise
        self._stopped = Stopped(self._process.pid)
        return self

    def __exit__(self, *fault: object) -> None:
        """Let it come to its end; after a fault, end it."""
        self._stopped.release()
        if fault[0] is not None:
            self._process.terminate()
        if self._process.wait() and fault[0] is None:
            self._fail()

    def take(self, steps: int) -> list[dict[str, float]]:
        """Rows of metrics of the next steps, without the one that was under way."""
        before = len(self._rows())
        with self._stopped.running():
            rows = self._await(before + 1 + steps)
        return rows[before + 1 : before + 1 + steps]

    def _rows(self) -> list[dict[str, float]]:
        written = self._metrics.read_text().split("\n")[:-1] if self._metrics.exists() else []
        return [row for row in map(json.loads, written) if "speed/step_seconds" in row]

    def _await(self, count: int) -> list[dict[str, float]]:
        while len(rows := self._rows()) < count:
            if self._process.poll() is not None:
                self._fail()
            time.sleep(POLL_S)
        return rows

    def _fail(self) -> None:
        raise SystemExit(f"{' '.join(self._command)}\n{self._log.read_text()}")


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The settings that both sides train with."""
    steps = WARM_UP_STEPS + args.repeats * (args.steps + 2)
    every = [f"training.{key}={steps}" for key in ("max_steps", "eval_steps", "save_steps")]
    gpu = str(torch.cuda.is_available()).lower()
    own = [
        f"corpus.path={args.corpus.absolute()}",
        f"corpus.tokenizer={args.tokenizer.absolute()}",
        f"cluster.use_gpu={gpu}",
    ]
    if args.threads < (os.cpu_count() or 1):
        own.append(f"cluster.threads_per_worker={args.threads}")
    return [*own, "training.warmup_steps=100", "training.schedule_steps=10000", "training.logging_steps=1", *every,
            *args.overrides]  # fmt: skip


def compare(args: argparse.Namespace, recipe: Recipe, encoded: EncodedCorpus, precision: str) -> dict[str, Any]:
    """{workers: {arm: seconds of every step that counts}}; "waits" and "tokens" of the same steps beside them."""
    kept = {} if recipe.cluster.use_gpu else allocator_environment()  # the loop's allocator is the worker's
    arms = Arms(args.threads, {BARE: (bare_turn, (recipe, encoded, precision))}, {BARE: kept})

    def loop(rows: list[dict[str, float]]) -> list[dict[str, float]]:
        steps = [int(row["step"]) for row in rows]
        arms.take(BARE, steps[0])  # as the command, which lost its first step
        return [arms.take(BARE, step) for step in steps]

    found: dict[str, Any] = {}
    with ExitStack() as stack:
        stack.callback(arms.close)
        loop([{"step": step + 1} for step in range(WARM_UP_STEPS)])
        idle = Stopped(stack.enter_context(idle_ray()))
        stack.callback(idle.release)
        for workers in args.workers:
            taken: dict[str, list[float]] = {BARE: [], BESIDE: [], COMMAND: [], "waits": [], "tokens": []}
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            with Command(args, precision, workers, folder) as command:
                for number in range(args.repeats):
                    rows = command.take(args.steps)
                    if number % 2:
                        alone = loop(rows)
                    with idle.running():
                        beside = loop(rows)
                    if not number % 2:
                        alone = loop(rows)
                    taken[COMMAND] += [row["speed/step_seconds"] for row in rows]
                    taken["waits"] += [row["speed/data_wait_share"] for row in rows]
                    taken[BARE] += [one["seconds"] for one in alone]
                    taken["tokens"] += [one["real"] for one in alone]
                    taken[BESIDE] += [one["seconds"] for one in beside]
                    cli.say(f"workers {workers}: turn {number + 1} of {args.repeats}")
            found[str(workers)] = taken
    return found


# ---- the report ----------------------------------------------------------------------------------------------------


def report(figures: dict[str, Any]) -> None:
    """Print the table."""
    rows = []
    for workers, taken in figures["steps"].items():
        bare, tokens = taken[BARE], taken["tokens"]
        for name in (BARE, BESIDE, COMMAND):
            ratio = statistics.median(a / b for a, b in zip(taken[name], bare, strict=True)) - 1
            rate = statistics.median(n / seconds for n, seconds in zip(tokens, taken[name], strict=True))
            row = [name, f"{rate:,.0f}", f"{statistics.median(taken[name]):.3f}", f"{100 * ratio:+.1f} %", ""]
            if name == COMMAND:
                row[0], row[4] = f"{name}, workers {workers}", f"{100 * statistics.median(taken['waits']):.3f} %"
            rows.append(row)
    counted = len(next(iter(figures["steps"].values()))[BARE])
    print(f"{figures['recipe']}, {figures['precision']}, threads {figures['threads']}, medians of {counted} steps")
    cli.table(["what", "real tokens/s", "s a step", "slower than the loop, step by step", "waiting for data"], rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="a corpus folder")
    parser.add_argument("tokenizer", type=Path, help="a tokenizer folder")
    parser.add_argument("--recipe", default="base.yaml")
    parser.add_argument("--steps", type=int, default=3, help="of a turn, after one that is not counted")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--workers", default=[1, 2], type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the loop and of a worker")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")
    args = parser.parse_intermixed_args()
    recipe = loading.load(args.recipe, overrides_of(args))
    corpus, tokenizer = Corpus.open(str(args.corpus)), Tokenizer.load(str(args.tokenizer))
    encoded = encode.find(corpus, tokenizer, recipe.corpus.max_len)
    if encoded is None:
        parser.error(f"{args.corpus} is not encoded at max_len {recipe.corpus.max_len}: run twilbert-encode first")
    asked = recipe.training.precision
    computes = devices.device_computes_bf16(False) or torch.cuda.is_available()
    precision = asked if asked != "auto" else "bf16" if computes else "fp32"
    figures: dict[str, Any] = {"recipe": args.recipe, "precision": precision, "threads": args.threads}
    figures["batch"] = recipe.training.global_batch_size
    figures["steps"] = compare(args, recipe, encoded, precision)
    report(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"written: {args.json}")


if __name__ == "__main__":
    main()
