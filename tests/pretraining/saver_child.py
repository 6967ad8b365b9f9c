"""A process that writes a checkpoint and is killed by SIGKILL at a given point of it; run by test_saver.py."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.model import small
from twilbert import storage
from twilbert.model.heads import PretrainingModel
from twilbert.optim.fragments import Fragment
from twilbert.pretraining.saver import CheckpointSaver, Snapshot
from twilbert.recipe import loading
from twilbert.tracking.run_folder import RunFolder

RUN_ID = "0123abcd"


def save(root: str, step: int, kill: tuple[int, str] | None = None) -> None:
    """Write checkpoint `step` of a run at `root` as a single worker.

    `kill`: (n, when): SIGKILL at the n-th file, from 0, "before" it is begun, "within" it, or "after" it is there.
    """
    torch.set_num_threads(1)
    run = RunFolder(root, "run", RUN_ID, {}, token="mine")
    storage.write_json_atomic(storage.join(root, "owner.json"), {"token": "mine"})
    tokenizer = Path(root).parent / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "tokenizer.json").write_text("{}")
    recipe = loading.build({"corpus": {"tokenizer": str(tokenizer)}, "training": {"save_total_limit": 2}})
    config = small.config("plain")
    torch.manual_seed(step)
    model = PretrainingModel(config)
    fragments = [Fragment(n, tuple(p.shape), 0, p.numel(), p, 0) for n, p in model.named_parameters()]
    store = Path(root).parent / f"store-{uuid.uuid4().hex}"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    saver = CheckpointSaver(run, recipe, config, "twilbert-2", 0, 1)
    if kill is None:
        _note_order(Path(root).parent / "order.txt")
    else:
        _kill_at(*kill)
    moments = {f.name: (torch.rand_like(f.flat), torch.rand_like(f.flat)) for f in fragments}
    by_flat = {id(f.flat): moments[f.name] for f in fragments}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    saver.begin(Snapshot(step, {"step": step}, set()), fragments, lambda flat: by_flat[id(flat)], weights)
    saver.finish()
    assert saver.committed_step == step
    dist.destroy_process_group()


def _note_order(file: Path) -> None:
    """Write down the names of the files in the order in which they are written."""
    write = storage.write_bytes_atomic
    file.write_text("")

    def noting(path: str, data: bytes) -> None:
        with file.open("a") as stream:
            stream.write(Path(path).name + "\n")
        write(path, data)

    patched: Any = noting
    storage.write_bytes_atomic = patched


def _kill_at(number: int, when: str) -> None:
    count = {"files": -1}
    write = storage.write_bytes_atomic

    def killing(path: str, data: bytes) -> None:
        count["files"] += 1
        if count["files"] != number:
            return write(path, data)
        if when == "within":
            target = Path(path)
            target.with_name(f".{target.name}.00000000.tmp").write_bytes(data[: len(data) // 2])
        if when == "after":
            write(path, data)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    patched: Any = killing
    storage.write_bytes_atomic = patched
