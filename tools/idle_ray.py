"""Ray Train with one worker that only waits: what Ray's processes cost whoever computes beside them.

python -m tools.idle_ray     # says "ready" on a line of its own, and ends when its input does
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twilbert.cluster import ray_session


@contextmanager
def idle_ray() -> Iterator[int]:
    """Such a Ray runs beside the body, in processes of its own: the first one's id."""
    command = [sys.executable, "-m", "tools.idle_ray"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        if not any(line.strip() == "ready" for line in process.stdout):
            raise SystemExit("Ray Train with an idle worker did not start: see above")
        yield process.pid
        process.stdin.close()


def wait(config: dict[str, Any]) -> None:
    """What the worker does, until the file is gone; it says by another one that it does."""
    Path(config["started"]).touch()
    while Path(config["until"]).exists():
        time.sleep(0.5)


def main() -> None:
    """Start, say so, stop."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory() as folder, ray_session.ensure_ray(4):
        until, started = Path(folder, "wait"), Path(folder, "started")
        until.touch()
        trainer = TorchTrainer(
            wait,
            train_loop_config={"until": str(until), "started": str(started)},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(storage_path=folder),
        )
        training = threading.Thread(target=trainer.fit)
        training.start()
        while training.is_alive() and not started.exists():
            time.sleep(0.5)
        if not started.exists():
            raise SystemExit("Ray Train ended before its worker began")
        print("ready", flush=True)
        sys.stdin.read()
        until.unlink()
        training.join()


if __name__ == "__main__":
    main()
