"""Pre-training commands that are killed, resized or lose a node, and their comparison with an undisturbed run.

A corpus whose size does not divide the batch, three epochs of it, the sample ids of every step traced; no dropout, so
that runs on other numbers of workers can be compared step by step.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.make_encoded import make_corpus, make_texts
from twilbert.vocab import vocab

STEPS, SAVE = 72, 7


def make_recipe(folder: Path) -> Path:
    """The recipe, with its corpus and tokenizer, in `folder`; runs go to folder/runs."""
    texts = make_texts(700)
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    corpus = make_corpus(folder / "corpus", pairs[7:], valid=pairs[:7], row_group_rows=50)
    vocab(corpus.path, str(folder / "tokenizer"), vocab_size=600)
    recipe = {
        "run": {"storage_path": str(folder / "runs")},
        "corpus": {"path": corpus.path, "tokenizer": str(folder / "tokenizer"), "max_len": 24},
        "model": {"hidden_size": 64, "embedding_size": 64, "n_encoders": 2, "n_heads": 2},
        "training": {
            "schedule": "linear", "learning_rate": 1e-3, "warmup_steps": 5, "max_steps": STEPS, "precision": "fp32",
            "global_batch_size": 32, "micro_batch_tokens": 512, "eval_steps": STEPS, "save_steps": SAVE,
            "logging_steps": 1, "max_grad_norm": 1.0, "optimizer": "lamb", "weight_decay": 0.01,
        },
        "tracking": {"mode": "disabled", "trace_samples": True},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    (folder / "runs").mkdir()
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Training:
    """A twilbert-pretrain in a process group of its own, watched through its trace."""

    def __init__(self, recipe: Path, name: str, workers: int, address: str | None = None) -> None:
        """`address`: of a Ray cluster; None starts a Ray of the command's own."""
        self.run = recipe.parent / "runs" / name
        self.log = recipe.parent / f"{name}.log"
        command = [sys.executable, "-m", "twilbert.pretrain", str(recipe), f"run.name={name}"]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, f"cluster.num_workers={workers}", "cluster.max_restarts=20"],
                stdout=log, stderr=log, start_new_session=True,
                env=environment | ({"RAY_ADDRESS": address} if address else {}),
            )  # fmt: skip

    def step(self) -> int:
        """The latest step in the trace."""
        trace = rows(self.run / "trace.jsonl")
        return trace[-1]["step"] if trace else 0

    def wait_for(self, step: int) -> None:
        """Wait until that step is over."""
        while self.step() < step:
            assert self.process.poll() is None, f"ended before step {step}:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.02)

    def wait_for_restart(self) -> None:
        """Wait until the workers have begun again: the trace was cut back to the checkpoint."""
        before, deadline = self.step(), time.monotonic() + 300
        while self.step() >= before and before > 0 and self.process.poll() is None:
            if before % SAVE == 0 or time.monotonic() > deadline:  # saved at that very step: nothing to cut back
                time.sleep(20)
                return
            time.sleep(0.05)

    def kill_worker(self, choose: random.Random) -> None:
        """SIGKILL one of the training workers."""
        workers = [p for p in psutil.Process(self.process.pid).children(recursive=True) if is_worker(p)]
        choose.choice(workers).kill()

    def kill_group(self) -> None:
        """SIGKILL the driver and everything it started."""
        if self.process.poll() is not None:
            return
        processes = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, signal.SIGKILL)
        for process in processes:
            if process.is_running():
                process.kill()
        self.process.wait()

    def kill_driver(self) -> None:
        """SIGKILL the driver alone, and wait until what it started has gone."""
        processes = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(processes, timeout=60)

    def interrupt(self) -> None:
        """Send Ctrl-C and wait for the end."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=900) == 130, self.log.read_text()[-3000:]

    def finish(self) -> None:
        """Wait for the end of the run."""
        assert self.process.wait(timeout=900) == 0, self.log.read_text()[-3000:]


def is_worker(process: psutil.Process) -> bool:
    """Whether a process is a Ray Train worker."""
    try:
        return "RayTrainWorker" in " ".join(process.cmdline()[:1])
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def final_hash(run: Path) -> str:
    """SHA-256 over the weights and moments of the last step's checkpoint."""
    digest = hashlib.sha256()
    files = sorted((run / f"checkpoint-{STEPS:06d}").rglob("*.safetensors"))
    assert files
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def assert_each_sample_once_an_epoch(trace: list[dict[str, Any]], epochs: int = 3) -> None:
    """After every step no sample has come more than once more often than another of the corpus."""
    counts = collections.Counter({i: 0 for row in trace for i in row["ids"]})
    for row in trace:
        counts.update(row["ids"])
        assert max(counts.values()) - min(counts.values()) <= 1, row["step"]
    assert min(counts.values()) >= epochs


def assert_same_training(run: Path, reference: Path, *, bitwise: bool) -> None:
    """Every step once and with the reference's samples; the same bits in the end, or losses within 1e-4."""
    trace = rows(run / "trace.jsonl")
    assert_each_sample_once_an_epoch(trace)
    assert [row["ids"] for row in trace] == [row["ids"] for row in rows(reference / "trace.jsonl")]
    logged, expected = (
        [(row["step"], row["train/loss"]) for row in rows(folder / "metrics.jsonl") if "train/loss" in row]
        for folder in (run, reference)
    )
    assert [step for step, _ in logged] == [row["step"] for row in trace] == list(range(1, STEPS + 1))
    worst = max(abs(loss / other - 1) for (_, loss), (_, other) in zip(logged, expected, strict=True))
    print(f"{run.name}: losses differ from {reference.name}'s by at most {worst:.1e}")
    assert worst <= (0 if bitwise else 1e-4)
    if bitwise:
        assert final_hash(run) == final_hash(reference)
