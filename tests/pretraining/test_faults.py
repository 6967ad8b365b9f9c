"""What goes wrong in the middle of a run: losses and gradients that are no numbers, a worker that hangs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pretraining.faulty_workers import ERRORS, faulty_worker
from tests.small_world import STEPS, make_world
from twilbert import pretrain
from twilbert.pretraining import checkpoint
from twilbert.tracking.metrics import read_metrics


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def train(world, ray_local, monkeypatch) -> Callable[..., int]:
    """Pre-train with two workers, the second of which spoils the steps named."""
    monkeypatch.setattr(pretrain, "train_worker", faulty_worker)

    def run(name: str, faults: str, *overrides: str) -> int:
        fixed = [
            "cluster.num_workers=2",
            "tracking.mode=disabled",
            "tracking.trace_samples=true",
            "training.eval_steps=12",
        ]
        command = [str(world / "small.yaml"), f"run.name={name}", f"tracking.project={faults}", *fixed, *overrides]
        return pretrain.main(command)

    return run


@pytest.mark.ray
@pytest.mark.parametrize(("kind", "stage"), [("nan-loss", 0), ("nan-gradient", 1)])
def test_a_spoilt_step_on_one_worker_is_skipped_on_all_and_training_goes_on(train, world, capsys, kind, stage):
    assert train(kind, f"{kind}:5", f"training.zero_stage={stage}") == 0
    assert "step 5 skipped" in capsys.readouterr().err
    run = world / "runs" / kind
    rows = {row["step"]: row for row in read_metrics(str(run / "metrics.jsonl")) if "optim/learning_rate" in row}
    assert rows[STEPS]["optim/skipped_steps"] == 1
    assert rows[6]["optim/learning_rate"] == rows[5]["optim/learning_rate"], "the schedule did not advance"
    state = checkpoint.read_state(str(run / checkpoint.folder_name(STEPS)))
    assert state["skipped"] == [5]
    trace = read_metrics(str(run / "trace.jsonl"))
    assert [row["step"] for row in trace] == list(range(1, STEPS + 1))
    assert [row["step"] for row in trace if row["skipped"]] == [5]


@pytest.mark.ray
def test_too_many_spoilt_steps_in_a_row_stop_the_run_and_leave_its_checkpoint(train, world, capsys):
    steps = "6,7,8,9"
    assert train("spoilt", f"nan-gradient:{steps}", "training.max_skipped_steps=3", "training.save_steps=4") == 1
    message = capsys.readouterr().err
    assert "steps 6 to 8 were skipped" in message
    assert "the last checkpoint is of step 4" in message
    assert "Traceback" not in message
    assert checkpoint.verify(str(world / "runs" / "spoilt" / "checkpoint-000004")) is None


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "defect", "shape"])
def test_what_another_start_cannot_mend_is_one_message_at_once(train, capsys, kind):
    assert train(kind, f"{kind}:6") == 1
    message = capsys.readouterr().err
    (line,) = [line for line in message.splitlines() if "error: " in line]
    assert f"{type(ERRORS[kind]).__name__}" in line and str(ERRORS[kind]) in line
    assert "a restart would fail in the same way" in line
    assert message.count("tracking:") == 1, "the workers were started once"


@pytest.mark.ray
@pytest.mark.slow
def test_a_lost_connection_starts_again_until_the_limit(train, capsys):
    assert train("network", "network:2", "cluster.max_restarts=2") == 1
    message = capsys.readouterr().err
    assert "the workers died 3 times without a new checkpoint; the latest reason: ConnectionResetError" in message
    assert message.count("tracking:") == 3


@pytest.mark.ray
@pytest.mark.slow
def test_rows_that_a_resume_falls_within_are_those_of_an_undisturbed_run(train, world):
    for name, fault in (("whole", "nan-loss:99"), ("killed", "kill:7")):
        assert train(name, fault, "training.save_steps=4", "training.logging_steps=5") == 0
    whole, killed = (
        [
            {key: value for key, value in row.items() if key == "step" or key.startswith("train/")}
            for row in read_metrics(str(world / "runs" / name / "metrics.jsonl"))
        ]
        for name in ("whole", "killed")
    )
    assert {row["step"] for row in killed if "train/loss" in row} == {5, 10, 12}, "the kill fell between 4 and 10"
    assert killed == whole


@pytest.mark.ray
@pytest.mark.slow
def test_a_hang_ends_with_every_workers_stack(train, world, capsys):
    limits = ["training.hang_timeout=0.2", "cluster.max_restarts=0"]
    assert train("hanging", "hang:6", *limits) == 1
    message = capsys.readouterr().err
    assert "no step in 0.2 minutes" in message
    for worker in (0, 1):
        stacks = (world / "runs" / "hanging" / f"hang-worker-{worker:05d}.txt").read_text()
        assert "after step 5" in stacks
        assert ("time.sleep(600)" in stacks) == (worker == 1), "the one that sleeps is found"
    assert checkpoint.verify(str(world / "runs" / "hanging" / "checkpoint-000004")) is None
