"""twilbert-convert on files of the released models' sizes, and its reader on thousands of damaged ones.

python -m pytest -m slow tests/original/test_full_size.py -rP
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from tests.model.small import config
from tests.original.keras_files import original_json, write_pretraining
from twilbert.errors import TwilbertError
from twilbert.model.config import ModelConfig
from twilbert.original.hdf5 import open_keras
from twilbert.original.weights import load_original

pytestmark = pytest.mark.slow
SECONDS, BYTES = 60, 2**30
RELEASED = {
    "Base": (ModelConfig(), 81_747_508),
    "Large": (ModelConfig(n_encoders=12, n_heads=12), 131_334_196),
    "Large without ROP": (ModelConfig(n_encoders=12, n_heads=12, use_rop=False), 131_332_658),
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_file_of_a_released_size_is_converted_in_a_minute(name: str, tmp_path: Path):
    sizes, parameters = RELEASED[name]
    weights, settings, out = tmp_path / "weights.hdf5", tmp_path / "config.json", tmp_path / "model"
    write_pretraining(weights, sizes)
    settings.write_text(json.dumps(original_json(sizes)))
    command = [sys.executable, "-m", "twilbert.convert", str(weights), "--config", str(settings), "--out", str(out)]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    seconds = time.monotonic() - began
    assert status == 0
    with safe_open(out / "model.safetensors", "np") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118 - not a dict
    assert sum(int(np.prod(shape)) for shape in shapes) == parameters
    size = weights.stat().st_size
    print(f"{name}, {size / 2**20:.0f} MiB: {seconds:.1f} s, {usage.ru_maxrss / 1024:.0f} MiB at most")
    weights.unlink()
    (out / "model.safetensors").unlink()
    assert seconds < SECONDS


@pytest.mark.parametrize("times", [2000])
def test_damaged_files_give_numbers_or_a_refusal_and_take_no_memory(times: int, tmp_path: Path):
    """In a process of its own, whose crash would be an error of this test."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        refused, grown = pool.submit(read_damaged, tmp_path, times).result(timeout=1500)
    print(f"{times} damaged files: {refused} refused, memory grew by {grown / 2**20:.0f} MiB")
    assert 0 < refused < times
    assert grown < BYTES


def read_damaged(folder: Path, times: int) -> tuple[int, int]:
    """How many of so many damaged files were refused, and by how many bytes the process's peak grew."""
    sizes = config("memory, no norm")
    whole = np.frombuffer(write_pretraining(folder / "whole.hdf5", sizes).read_bytes(), np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path, refused, rng = folder / "damaged.hdf5", 0, np.random.default_rng(0)
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
    return refused, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
