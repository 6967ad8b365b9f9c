"""How long training stands still for a checkpoint of Base, and how long the writing beside it takes.

    python -m tools.bench_checkpoint [--repeats 5] [--json FILE]

One worker, ZeRO 1, bf16 with fp32 masters and the moments of LAMB. "pause" is what a step waits for, the copy to the
host; "written" the files of the thread, hashed and flushed; "at once" is what the pause would be without it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from twilbert import cli, recipe_file, storage
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.train.engine import full_weights, make_engine
from twilbert.train.run_folder import RunFolder
from twilbert.train.saver import CheckpointSaver, Snapshot
from twilbert.train.shards import local_fragments, owned


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29541",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }
    torch.distributed.init_process_group("gloo")
    work = Path(tempfile.mkdtemp(prefix="twilbert-checkpoint-"))
    (work / "tokenizer").mkdir()
    (work / "tokenizer" / "tokenizer.json").write_text("{}")
    settings = {"optimizer": "lamb", "learning_rate": 1e-3, "precision": "bf16", "zero_stage": 1, "save_total_limit": 1}
    recipe = recipe_file.build({"corpus": {"tokenizer": str(work / "tokenizer")}, "training": settings})
    config = ModelConfig()
    engine, optimizer = make_engine(recipe, PretrainingModel(config), "bf16", 1, 1)
    run = RunFolder(str(work / "run"), "run", "00000000", {}, token="t")
    storage.write_json_atomic(storage.join(run.path, "owner.json"), {"token": "t"})
    saver = CheckpointSaver(run, recipe, config, 0, 1)
    pauses, written = [], []
    for step in range(1, args.repeats + 2):
        began = time.perf_counter()
        fragments = owned(local_fragments(engine), 1, 0, 1)
        weights = full_weights(engine, 0)
        saver.begin(Snapshot(step, {"step": step}, set()), fragments, optimizer.moments, weights)
        paused = time.perf_counter()
        saver.finish()
        pauses.append(paused - began)
        written.append(time.perf_counter() - paused)
    size = sum(file.stat().st_size for file in (work / "run").rglob("*") if file.is_file())
    shutil.rmtree(work)
    pause, thread = statistics.median(pauses[1:]), statistics.median(written[1:])
    rows = [["pause", pause], ["first pause (its buffers are new)", pauses[0]], ["written beside training", thread]]
    rows.append(["at once, without the thread", pause + thread])
    cli.table([f"Base, {size / 1e9:.2f} GB a checkpoint", "seconds"], [[name, f"{s:.2f}"] for name, s in rows])
    if args.json:
        args.json.write_text(json.dumps({"bytes": size, "pauses": pauses, "written": written}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
