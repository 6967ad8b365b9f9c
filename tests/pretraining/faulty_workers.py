"""Training workers with a fault built in, to stand in for `twilbert.pretrain.train_worker`.

Run as a program it is twilbert-pretrain with workers that kill it, and themselves, in publishing:
tracking.project=before|within|after.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from twilbert.pretrain import train_worker

ERRORS = {
    "memory": MemoryError(),
    "defect": TypeError("a defect of the program"),
    "shape": RuntimeError("The size of tensor a (2) must match the size of tensor b (3) at non-singleton dimension 0"),
    "network": ConnectionResetError("the network was away"),
}


def _faults(config: dict[str, Any]) -> dict[str, Any]:
    """What the test asks for travels in the name of the W&B project: it reaches every worker and changes no science."""
    kind, _, steps = config["job"].recipe.tracking.project.partition(":")
    return {"kind": kind, "steps": [int(step) for step in steps.split(",")]}


def faulty_worker(config: dict[str, Any]) -> None:
    """As the real one, but worker 1 spoils some steps: nan-loss, nan-gradient, hang, kill (once), or one of ERRORS."""
    from ray.train import get_context

    from twilbert.model import heads
    from twilbert.pretraining.worker import Worker

    asked, rank = _faults(config), get_context().get_world_rank()
    current = {"step": 0, "resumed": False}
    steps, forward = Worker.steps, heads.PretrainingModel.forward

    def counted(self):
        for step, *rest in steps(self):
            current.update(step=step, resumed=self.first_step > 0)
            yield step, *rest

    def spoiled(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        if not self.training or rank != 1 or current["step"] not in asked["steps"]:
            return out
        if asked["kind"] in ERRORS:
            raise ERRORS[asked["kind"]]
        if asked["kind"] == "kill" and not current["resumed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if asked["kind"] == "kill":
            return out
        if asked["kind"] == "hang":
            time.sleep(600)
        loss = out.mlm_loss_sum
        if asked["kind"] == "nan-loss":  # with a gradient of zero: only the loss tells
            return out._replace(mlm_loss_sum=loss * 0 + float("nan"))
        loss.register_hook(lambda gradient: gradient * float("nan"))  # with a sound loss: only the gradient tells
        return out

    Worker.steps, heads.PretrainingModel.forward = counted, spoiled
    try:
        train_worker(config)
    finally:
        Worker.steps, heads.PretrainingModel.forward = steps, forward


def killing_worker(config: dict[str, Any]) -> None:
    """As the real one, but in publishing the model it kills the driver and itself."""
    from twilbert import storage
    from twilbert.tracking.run_folder import RunFolder

    when, publish, write = config["job"].recipe.tracking.project, RunFolder.publish, storage.write_bytes_atomic

    def kill(*_: Any, **__: Any) -> None:
        for process in (int(os.environ["TWILBERT_TEST_DRIVER"]), os.getpid()):
            os.kill(process, signal.SIGKILL)

    def published(self, *args, **kwargs) -> str:
        if when == "before":
            kill()
        if when == "within":
            storage.write_bytes_atomic = lambda path, data: (write(path, data), kill())
        step = publish(self, *args, **kwargs)
        kill()
        return step

    RunFolder.publish = published
    train_worker(config)


if __name__ == "__main__":
    from tests.pretraining.faulty_workers import killing_worker as _worker
    from twilbert import pretrain

    os.environ["TWILBERT_TEST_DRIVER"] = str(os.getpid())
    pretrain.train_worker = _worker
    raise SystemExit(pretrain.main())
