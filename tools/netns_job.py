"""The job on the hosts of tools/netns_cluster.sh: submitted from outside, watched, robbed of a host, and compared.

Called by that script, which makes the hosts and removes them. A small model without dropout trains on generated pairs
and traces the samples of each step, so that a run whose number of workers changes can be compared step by step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

WORKER_HOSTS = ("one", "two")
HOSTS = ("head", *WORKER_HOSTS)
# One worker a host; on the host that is left when one is lost. A thread each: both hosts share this machine's cores.
SETTINGS = ("cluster.num_workers=[1,2]", "cluster.threads_per_worker=1")
STEPS, LOSS_BOUND = 72, 1e-4


def make_recipe(work: Path) -> Path:
    """A recipe in `work`, with its corpus and tokenizer."""
    if not (work / "tokenizer").exists():
        for command in (
            ("sample", "pairs", "--out", str(work / "raw"), "--pairs", "360"),
            ("prepare", str(work / "raw"), "--out", str(work / "corpus")),
            ("vocab", str(work / "corpus"), "--out", str(work / "tokenizer"), "--vocab-size", "600"),
        ):
            verb, *rest = command
            subprocess.run([sys.executable, "-m", f"twilbert.{verb}", *rest], check=True, capture_output=True)
    recipe = {
        "run": {"storage_path": str(work / "runs")},
        "corpus": {"path": str(work / "corpus"), "tokenizer": str(work / "tokenizer"), "max_len": 24},
        "model": {"hidden_size": 64, "embedding_size": 64, "n_encoders": 2, "n_heads": 2},
        "training": {
            "schedule": "linear", "learning_rate": 1e-3, "warmup_steps": 5, "max_steps": STEPS, "precision": "fp32",
            "global_batch_size": 32, "micro_batch_tokens": 512, "eval_steps": STEPS, "save_steps": 7,
            "logging_steps": 1, "optimizer": "lamb",
        },
        "tracking": {"mode": "disabled", "trace_samples": True},
    }  # fmt: skip
    path = work / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Network:
    """The hosts, seen from the machine they are on."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def on(self, host: str, *command: str) -> list[str]:
        """The command line that runs `command` on a host."""
        return ["ip", "netns", "exec", f"{self._prefix}-{host}", *command]

    def cut(self, host: str) -> None:
        """Pull the host's cable out of the switch: its packets and those for it vanish, nothing is told to anyone."""
        command = ["ip", "-n", f"{self._prefix}-outside", "link", "set", host, "down"]
        subprocess.run(command, check=True, capture_output=True)

    def actors(self, host: str, name: str = "RayTrainWorker") -> set[int]:
        """Process ids of the Ray actors of that class on a host; by default, of the training workers."""
        command = ["ip", "netns", "pids", f"{self._prefix}-{host}"]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return {pid for pid in map(int, listed.split()) if name in _title(pid)}


def _title(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline()[:1])
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


class Job:
    """A pre-training job submitted from outside the cluster."""

    def __init__(self, network: Network, address: str, recipe: Path, run: Path, minutes: float) -> None:
        self.network, self.run = network, run
        self.hosts: set[str] = set()  # those seen training
        self.control: set[str] = set()  # those seen with the run's own actor, which must not be lost
        self.began = time.monotonic()
        self._deadline = self.began + 60 * minutes
        self._log = run.parent / f"{run.name}.log"
        entrypoint = ["python", "-m", "twilbert.pretrain", str(recipe), f"run.name={run.name}", *SETTINGS]
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", ".", "--"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                network.on("outside", *submit, *entrypoint),
                stdout=log, stderr=log, env=os.environ | {"RAY_API_SERVER_ADDRESS": address},
            )  # fmt: skip

    def step(self) -> int:
        """The latest step in metrics.jsonl."""
        found = rows(self.run / "metrics.jsonl")
        return found[-1]["step"] if found else 0

    def wait_for(self, what: str, happened: Callable[[], bool]) -> float:
        """Seconds, of time.monotonic(), at which it happened; exits when the job ends or takes too long."""
        while not happened():
            if self._process.poll() is not None:
                self._fail(f"the job ended before {what}")
            self._look()
        return time.monotonic()

    def finish(self) -> float:
        """Wait for a sound end; seconds since the submission."""
        while self._process.poll() is None:
            self._look()
        if self._process.returncode:
            self._fail(f"the job failed with exit code {self._process.returncode}")
        return time.monotonic() - self.began

    def _look(self) -> None:
        if time.monotonic() > self._deadline:
            self._fail("the job takes longer than --minutes")
        if self.step():
            self.hosts |= {host for host in WORKER_HOSTS if self.network.actors(host)}
            self.control |= {host for host in HOSTS if self.network.actors(host, "RunControl")}
        time.sleep(0.2)

    def _fail(self, why: str) -> None:
        print("\n".join(self._log.read_text(errors="replace").splitlines()[-30:]), file=sys.stderr)
        sys.exit(f"{self.run.name}: {why}")


def lose_host(job: Job, at: int, host: str) -> dict[str, Any]:
    """Cut `host` off when step `at` was made; what that cost, in seconds after the cut, up to the next new step."""
    network = job.network
    (other,) = set(WORKER_HOSTS) - {host}
    job.wait_for(f"step {at}", lambda: job.step() >= at)
    job.wait_for("both hosts trained", lambda: job.hosts == set(WORKER_HOSTS))
    left = network.actors(other)
    network.cut(host)
    cut = time.monotonic()
    print(f"host {host} is cut off at step {job.step()}", flush=True)
    noticed = job.wait_for("Ray gave the host up", lambda: not left & network.actors(other))
    reached = job.step()
    again = job.wait_for("training began again", lambda: job.step() != reached)  # rows are cut back to the checkpoint
    resumed = min(job.step(), reached)
    new = job.wait_for("a new step", lambda: job.step() > reached)
    return {
        "step": reached, "resumed from": resumed, "given up after s": round(noticed - cut, 1),
        "training after s": round(again - cut, 1), "new step after s": round(new - cut, 1),
        "minutes lost": round((new - cut) / 60, 1), "hosts at the end": sorted(_training(network, host)),
    }  # fmt: skip


def _training(network: Network, lost: str) -> set[str]:
    return {host for host in WORKER_HOSTS if host != lost and network.actors(host)}


def refuses_strangers(network: Network, address: str) -> bool:
    """Whether the cluster answers a request without the token with 401."""
    ask = (
        "import sys, urllib.request, urllib.error\n"
        "try: urllib.request.urlopen(sys.argv[1], timeout=30)\n"
        "except urllib.error.HTTPError as error: sys.exit(error.code == 401)"
    )
    return subprocess.run(network.on("outside", sys.executable, "-c", ask, f"{address}/api/jobs/")).returncode == 1


def took_each_step_once(run: Path) -> bool:
    """Whether a run's trace has every step, in order."""
    return [row["step"] for row in rows(run / "trace.jsonl")] == list(range(1, STEPS + 1))


def compare(run: Path, reference: Path) -> dict[str, Any]:
    """Whether a run took the reference's steps: samples, and losses to rounding."""
    samples, losses = (
        [[row[key] for row in rows(folder / file) if key in row] for folder in (run, reference)]
        for file, key in (("trace.jsonl", "ids"), ("metrics.jsonl", "train/loss"))
    )
    once = took_each_step_once(run) and len(losses[0]) == len(losses[1]) == STEPS
    worst = max((abs(a / b - 1) for a, b in zip(*losses, strict=True)), default=1.0) if once else 1.0
    same = samples[0] == samples[1]
    return {"each step once": once, "same samples": same, "largest loss difference": worst,
            "passed": once and same and worst <= LOSS_BOUND}  # fmt: skip


def _undisturbed(start: Callable[[str], Job], run: Path) -> dict[str, Any]:
    if (run / "model").exists():  # in --work, from an earlier call
        return {"run": run.name, "passed": took_each_step_once(run), "trained on hosts": "before"}
    job = start(run.name)
    seconds, once = job.finish(), took_each_step_once(run)
    result = {"run": run.name, "steps": STEPS, "each step once": once, "seconds": round(seconds)}
    return result | {"passed": once and job.hosts == set(WORKER_HOSTS)} | _places(job)


def _cut(start: Callable[[str], Job], undisturbed: Path, at: int, host: str) -> dict[str, Any]:
    name = f"host-{host}-cut-at-{at}"
    if (undisturbed.parent / name).exists():
        sys.exit(f"{undisturbed.parent / name}: exists from an earlier call; remove it, or give another --work")
    job = start(name)
    cost = lose_host(job, at, host)
    seconds = job.finish()
    return {"run": name} | compare(job.run, undisturbed) | {"seconds": round(seconds)} | _places(job) | cost


def _places(job: Job) -> dict[str, list[str]]:
    return {"trained on hosts": sorted(job.hosts), "control on": sorted(job.control)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/netns_cluster.sh", description=__doc__)
    parser.add_argument("--network", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--subnet", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--tmp", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--only-data", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cut", type=int, metavar="STEP", help="train again and cut a host off at this step")
    parser.add_argument("--cut-host", choices=WORKER_HOSTS, default="two")
    parser.add_argument("--work", type=Path, help="folder for corpus and runs, kept (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write the results there too")
    parser.add_argument("--minutes", type=float, default=30, help="how long a job may take (30)")
    return parser


def main() -> int:
    """Make the data, or run the jobs and print what they did."""
    parser = _parser()
    args = parser.parse_args()
    if args.cut is not None and not 2 <= args.cut <= STEPS - 2:
        parser.error(f"--cut {args.cut}: the runs have {STEPS} steps, give one from 2 to {STEPS - 2}")
    work = (args.work or args.tmp / "work").resolve()
    work.mkdir(parents=True, exist_ok=True)
    recipe = make_recipe(work)
    if args.only_data:
        return 0

    network, address = Network(args.network), f"http://{args.subnet}.1:8265"
    runs = work / "runs"
    runs.mkdir(exist_ok=True)
    if not refuses_strangers(network, address):
        sys.exit("the cluster answers without the token")
    print(f"{address} answers 401 without the token", flush=True)

    def start(name: str) -> Job:
        return Job(network, address, recipe, runs / name, args.minutes)

    results = [_undisturbed(start, runs / "undisturbed")]
    _print(results[-1])
    if args.cut is not None:
        results.append(_cut(start, runs / "undisturbed", args.cut, args.cut_host))
        _print(results[-1])
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    return 0 if all(result["passed"] for result in results) else 1


def _print(result: dict[str, Any]) -> None:
    print("  ".join(f"{key}: {value}" for key, value in result.items()), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
