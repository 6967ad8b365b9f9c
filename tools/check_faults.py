"""Kill a pre-training run again and again, resize it, and compare what it did with an undisturbed one.

    python tools/check_faults.py --work /tmp/faults [--seed 0] [--worlds 1 2 3 4] [--json faults.json]

Makes a small corpus whose size does not divide the batch, trains three epochs of it at every number of workers, once
undisturbed and once with SIGKILLs of random workers at random steps; at two workers also with SIGKILLs of the driver
and of its whole process group, and with a resize 2 → 1 → 2. Every run traces its sample ids.

Checked: each id once an epoch, every step's set equal to the undisturbed run's, no step twice in metrics and trace;
at the same number of workers the SHA-256 of final weights and moments, at another one the losses to 1e-4.
"""

from __future__ import annotations

import argparse
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

STEPS, BATCH, SAVE = 72, 32, 7


def make_data(work: Path) -> dict[str, Any]:
    """A corpus, its tokenizer and the recipe; dropout off, so that runs of other sizes may be compared."""
    if not (work / "tokenizer").exists():
        for command in (
            ["sample", "pairs", "--out", str(work / "raw"), "--pairs", "360", "--seed", "5"],
            ["prepare", str(work / "raw"), "--out", str(work / "corpus")],
            ["vocab", str(work / "corpus"), "--out", str(work / "tokenizer"), "--vocab-size", "600"],
        ):
            verb, *rest = command
            subprocess.run([sys.executable, "-m", f"twilbert.{verb}", *rest], check=True, capture_output=True)
    return {
        "run": {"storage_path": str(work / "runs")},
        "corpus": {"path": str(work / "corpus"), "tokenizer": str(work / "tokenizer"), "max_len": 24},
        "model": {"hidden_size": 64, "embedding_size": 64, "n_encoders": 2, "n_heads": 2},
        "training": {
            "schedule": "linear", "learning_rate": 1e-3, "warmup_steps": 5, "max_steps": STEPS, "precision": "fp32",
            "global_batch_size": BATCH, "micro_batch_tokens": 512, "eval_steps": STEPS, "save_steps": SAVE,
            "logging_steps": 1, "max_grad_norm": 1.0, "optimizer": "lamb", "weight_decay": 0.01,
        },
        "tracking": {"mode": "disabled", "trace_samples": True},
    }  # fmt: skip


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Trainer:
    """A run as a process group, watched through its trace."""

    def __init__(self, recipe: Path, run: Path, workers: int, *overrides: str) -> None:
        self.run = run
        command = [sys.executable, "-m", "twilbert.pretrain", str(recipe), f"run.name={run.name}"]
        self.log = (run.parent / f"{run.name}.log").open("ab")
        self.process = subprocess.Popen(
            [*command, f"cluster.num_workers={workers}", "cluster.max_restarts=20", *overrides],
            stdout=self.log, stderr=self.log, start_new_session=True,
        )  # fmt: skip

    def step(self) -> int:
        """The latest step in the trace."""
        found = rows(self.run / "trace.jsonl")
        return found[-1]["step"] if found else 0

    def wait_for(self, step: int) -> None:
        """Until that step was made."""
        while self.step() < step:
            if self.process.poll() is not None:
                sys.exit(f"{self.run.name} ended before step {step}; see its log")
            time.sleep(0.02)

    def kill_worker(self, choose: random.Random) -> None:
        """SIGKILL one of the training workers."""
        workers = [p for p in psutil.Process(self.process.pid).children(recursive=True) if _is_worker(p)]
        choose.choice(workers).kill()

    def kill_group(self) -> None:
        """SIGKILL the driver and everything it started."""
        everyone = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, signal.SIGKILL)
        for process in everyone:
            if process.is_running():
                process.kill()
        self.end()

    def kill_driver(self) -> None:
        """SIGKILL the driver alone and wait until what it started has gone."""
        everyone = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        psutil.wait_procs(everyone, timeout=60)
        self.end()

    def stop(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.end()

    def end(self) -> int:
        """The exit code."""
        code = self.process.wait(timeout=900)
        self.log.close()
        return code


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline()[:1])
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def fingerprint(run: Path) -> str:
    """SHA-256 over the final checkpoint's weights and moments."""
    digest = hashlib.sha256()
    for file in sorted((run / f"checkpoint-{STEPS:06d}").rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def once_an_epoch(trace: list[dict[str, Any]]) -> bool:
    """Whether, after every step, no sample was seen more than once more often than another that is in the corpus."""
    counts: collections.Counter[int] = collections.Counter()
    ids = {i for row in trace for i in row["ids"]}
    for row in trace:
        counts.update(row["ids"])
        seen = [counts[i] for i in ids]
        if max(seen) - min(seen) > 1:
            return False
    return min(counts[i] for i in ids) >= 3


def judge(name: str, run: Path, same: Path | None, other: Path | None) -> dict[str, Any]:
    """Compare a run with the undisturbed one of its number of workers (`same`) or of another (`other`)."""
    reference = same or other
    assert reference is not None
    trace, expected = rows(run / "trace.jsonl"), rows(reference / "trace.jsonl")
    losses, undisturbed = (
        {row["step"]: row["train/loss"] for row in rows(folder / "metrics.jsonl") if "train/loss" in row}
        for folder in (run, reference)
    )
    logged = [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row]
    every = list(range(1, STEPS + 1))
    worst = max((abs(losses[s] - undisturbed[s]) / undisturbed[s] for s in every if s in losses), default=float("inf"))
    row = {
        "run": name,
        "once an epoch": once_an_epoch(trace),
        "same sets": [r["ids"] for r in trace] == [r["ids"] for r in expected],
        "no step twice": [r["step"] for r in trace] == every == logged,
        "largest loss difference": worst,
        "same weights and moments": fingerprint(run) == fingerprint(same) if same else None,
    }
    row["passed"] = (
        row["once an epoch"] and row["same sets"] and row["no step twice"] and worst <= (0 if same else 1e-4)
        and row["same weights and moments"] is not False
    )  # fmt: skip
    return row


class Campaign:
    """All runs of one call."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.runs = work, work / "runs"
        work.mkdir(parents=True, exist_ok=True)
        self.runs.mkdir(exist_ok=True)
        self.recipe = work / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(make_data(work)))
        self.choose = random.Random(seed)
        self.results: list[dict[str, Any]] = []

    def start(self, name: str, workers: int) -> Trainer:
        """A run of that name, new or resumed."""
        return Trainer(self.recipe, self.runs / name, workers)

    def finish(self, trainer: Trainer) -> None:
        """Let it end by itself."""
        if trainer.end():
            sys.exit(f"{trainer.run.name} failed; see {trainer.run}.log")

    def undisturbed(self, workers: int) -> Path:
        """The run nothing happens to."""
        path = self.runs / f"undisturbed-{workers}"
        if not (path / "model").exists():
            self.finish(self.start(path.name, workers))
        return path

    def judge(self, name: str, workers: int | None, began: float) -> None:
        """Compare and print a line; `workers` None: of changing number."""
        same = self.undisturbed(workers) if workers else None
        result = judge(name, self.runs / name, same, self.undisturbed(1)) | {"seconds": round(time.monotonic() - began)}
        self.results.append(result)
        print("  ".join(f"{key}: {value}" for key, value in result.items()), flush=True)

    def killed_workers(self, workers: int, kills: int) -> None:
        """SIGKILL a random worker at `kills` random steps; Ray Train starts them again."""
        steps = sorted(self.choose.sample(range(2, STEPS - 2), kills))
        name = f"worker-killed-{workers}-at-{'-'.join(map(str, steps))}"
        trainer, began = self.start(name, workers), time.monotonic()
        for step in steps:
            trainer.wait_for(step)
            trainer.kill_worker(self.choose)
            self._wait_for_loss(trainer)
        self.finish(trainer)
        self.judge(name, workers, began)

    def _wait_for_loss(self, trainer: Trainer) -> None:
        """Until the workers begin again: the trace was cut back to the checkpoint."""
        before, deadline = trainer.step(), time.monotonic() + 300
        while trainer.step() >= before and before > 0 and trainer.process.poll() is None:
            if before % SAVE == 0 or time.monotonic() > deadline:  # saved at that very step: nothing to cut back
                time.sleep(20)
                return
            time.sleep(0.05)

    def killed_process(self, what: str) -> None:
        """SIGKILL the driver, or the whole group, at two random steps; the same command is given again."""
        steps = sorted(self.choose.sample(range(SAVE + 2, STEPS - 2), 2))
        name = f"{what}-killed-2-at-{'-'.join(map(str, steps))}"
        began = time.monotonic()
        for step in steps:
            trainer = self.start(name, 2)
            trainer.wait_for(step)
            {"driver": trainer.kill_driver, "group": trainer.kill_group}[what]()
        self.finish(self.start(name, 2))
        self.judge(name, 2, began)

    def resized(self) -> None:
        """Two workers, then one, then two, by Ctrl-C and the same command with another number."""
        steps = sorted(self.choose.sample(range(SAVE + 2, STEPS - 8), 2))
        name, began = f"resized-2-1-2-at-{'-'.join(map(str, steps))}", time.monotonic()
        for workers, step in zip((2, 1), steps, strict=True):
            trainer = self.start(name, workers)
            trainer.wait_for(step)
            trainer.stop()
        self.finish(self.start(name, 2))
        self.judge(name, None, began)


def main() -> int:
    """Run all, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--kills", type=int, nargs="+", default=[2, 3, 3, 2], help="of workers, for each of --worlds")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    campaign = Campaign(args.work, args.seed)
    for workers in args.worlds:
        began = time.monotonic()
        campaign.undisturbed(workers)
        if workers > 1:
            campaign.judge(f"undisturbed-{workers}", None, began)
    for workers, kills in zip(args.worlds, args.kills, strict=True):
        campaign.killed_workers(workers, kills)
    campaign.killed_process("driver")
    campaign.killed_process("group")
    campaign.resized()
    if args.json:
        args.json.write_text(json.dumps(campaign.results, indent=1))
    return 0 if all(result["passed"] for result in campaign.results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
