"""Weight files of the released models' sizes and damaged small ones, through twilbert-convert.

    python -m tools.check_convert --work /tmp/convert [--damaged 2000]

Writes random Base, Large and Large-without-ROP files in the original's layout and converts each; prints seconds,
memory and parameters. Then damages a small file at random places, again and again, and reads it: prints how many were
refused. Exit 1 when a conversion takes over a minute, has another number of parameters, or when a damaged file ends
in anything but numbers or a refusal, or takes over 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.model.keras_files import original_json, write_pretraining
from tests.model.small import config
from twilbert import cli
from twilbert.errors import TwilbertError
from twilbert.model.config import ModelConfig
from twilbert.model.original import load_original
from twilbert.model.original_hdf5 import open_keras

SECONDS, MEGABYTES = 60, 1024
RELEASED = {
    "Base": (ModelConfig(), 81_747_508),
    "Large": (ModelConfig(n_encoders=12, n_heads=12), 131_334_196),
    "Large without ROP": (ModelConfig(n_encoders=12, n_heads=12, use_rop=False), 131_332_658),
}


def convert(work: Path, name: str) -> tuple[list[object], bool]:
    """One row of the table, and whether it is as it must be."""
    sizes, parameters = RELEASED[name]
    weights, settings, out = work / "weights.hdf5", work / "config.json", work / "model"
    write_pretraining(weights, sizes)
    settings.write_text(json.dumps(original_json(sizes)))
    command = [sys.executable, "-m", "twilbert.convert", str(weights), "--config", str(settings), "--out", str(out)]
    started = time.monotonic()
    process = subprocess.Popen([*command, "--overwrite"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    from safetensors import safe_open

    with safe_open(out / "model.safetensors", "np") as file:
        found = sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118 - not a dict
    row = [name, weights.stat().st_size // 2**20, round(seconds, 1), usage.ru_maxrss // 1024, f"{found:,}"]
    weights.unlink()
    return row, status == 0 and seconds < SECONDS and found == parameters


def read_damaged(work: Path, times: int) -> int:
    """In a process of its own: how many of `times` damaged files were refused; the rest gave numbers."""
    sizes = config("memory, no norm")
    whole = np.frombuffer(write_pretraining(work / "small.hdf5", sizes).read_bytes(), np.uint8)
    path, refused, rng = work / "damaged.hdf5", 0, np.random.default_rng(0)
    for number in range(times):
        damaged = whole.copy()
        # Structures are mostly zeros and small numbers, weights are not.
        places = np.arange(len(whole)) if number % 2 else np.flatnonzero(whole < 3)
        for at in rng.choice(places, rng.integers(1, 20)):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged.tobytes())
        try:
            with open_keras(str(path)) as file:
                load_original(file, sizes)
        except TwilbertError:
            refused += 1
    return refused


def main() -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--work", type=Path, required=True, help="folder for files of up to 1.1 GB, removed as they go")
    made.add_argument("--damaged", type=int, default=0, metavar="N", help="damaged files to read (default: 0)")
    made.add_argument("--only-damaged", action="store_true", help=argparse.SUPPRESS)
    args = made.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.only_damaged:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused = read_damaged(args.work, args.damaged)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        print(json.dumps({"refused": refused, "grown": grown}))
        return 0
    rows, good = zip(*(convert(args.work, name) for name in RELEASED), strict=True)
    cli.table(["model", "file MB", "seconds", "peak MB", "parameters"], rows)
    fine = all(good)
    if args.damaged:
        command = [
            sys.executable,
            "-m",
            "tools.check_convert",
            "--work",
            str(args.work),
            "--damaged",
            str(args.damaged),
            "--only-damaged",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        print(f"{args.damaged} damaged files, exit {done.returncode}: {done.stdout.strip() or done.stderr[-500:]}")
        fine &= done.returncode == 0 and json.loads(done.stdout)["grown"] < MEGABYTES
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
