"""The driver's side of a run: outcome, workers' own messages, lines to print, and a stop that reaches the workers."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest

from twilbert.cluster import ray_session
from twilbert.errors import TwilbertError, UsageError
from twilbert.pretraining.control import _SAME_SIGNAL_S, STOP_SIGNAL, STOP_TIME, RunControl, watch

PROGRESS = {"step": 1, "max_steps": 4, "loss": 9.5, "tokens_per_second": 1234.5, "seconds_left": 120.0}


class Local:
    """The actor without Ray: `control.method.remote(*args)` calls at once."""

    def __init__(self) -> None:
        self.actor = RunControl()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.actor, name)
        return type("Method", (), {"remote": staticmethod(method)})()


@pytest.fixture
def control(monkeypatch) -> Local:
    import ray

    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray_session, "draining_nodes", frozenset)
    return Local()


def test_the_outcome_comes_back_and_lines_are_printed_in_order(control, capsys):
    def fit() -> None:
        control.actor.say("first")
        control.actor.heartbeat(PROGRESS)
        time.sleep(0.5)
        control.actor.say("second")
        control.actor.finish({"step": 4, "stop": 0})

    assert watch(fit, control) == {"step": 4, "stop": 0}
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["first", "step 1/4  loss 9.500  1,234 tokens/s  2.0 min left", "second"]


def test_the_time_of_a_run_is_one_deadline_for_all_its_restarts(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limited, free = RunControl(seconds=60), RunControl()
    assert limited.heartbeat(PROGRESS) == free.heartbeat(PROGRESS) == 0
    assert limited.poll()[0]["seconds_left"] == 60 and free.poll()[0]["seconds_left"] == 120
    for control in (limited, free):
        control.attempt(3)
        control.attempt(3)  # the workers started again
    now += 61
    assert limited.heartbeat(PROGRESS) == STOP_TIME
    assert free.heartbeat(PROGRESS) == 0


def test_a_workers_own_message_and_exit_code_surface_at_once(control):
    def fit() -> None:
        control.actor.fail(UsageError("micro_batch_tokens 3: too few"))
        control.actor.fail(TwilbertError("a later one"))
        time.sleep(60)  # Ray Train tries again; nobody waits for it

    with pytest.raises(UsageError, match=r"^micro_batch_tokens 3: too few$"):
        watch(fit, control)
    assert control.actor.failed()


def test_workers_that_end_without_a_result_are_a_failure(control):
    with pytest.raises(TwilbertError, match="without a result"):
        watch(lambda: None, control)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_asks_for_a_checkpoint_and_the_handlers_come_back(control, capsys, number):
    before = signal.getsignal(number)

    def fit() -> None:
        control.actor.heartbeat(PROGRESS)
        os.kill(os.getpid(), number)
        while not (stop := control.actor.heartbeat(PROGRESS)):
            time.sleep(0.01)
        control.actor.finish({"stop": stop})

    assert watch(fit, control) == {"stop": STOP_SIGNAL}
    assert "with a checkpoint" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_a_signal_before_the_first_step_leaves_at_once(control):
    def fit() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        watch(fit, control)


def test_a_second_signal_leaves_at_once(control):
    def fit() -> None:
        control.actor.heartbeat(PROGRESS)
        os.kill(os.getpid(), signal.SIGINT)
        while not control.actor.heartbeat(PROGRESS):
            time.sleep(0.01)
        time.sleep(_SAME_SIGNAL_S + 0.3)  # sooner, it would count as the same Ctrl-C
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        watch(fit, control)


def test_a_signal_that_comes_twice_at_once_is_one(control):
    """A terminal and a launcher may both pass on one Ctrl-C."""

    def fit() -> None:
        control.actor.heartbeat(PROGRESS)
        os.kill(os.getpid(), signal.SIGINT)
        while not (stop := control.actor.heartbeat(PROGRESS)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        control.actor.finish({"stop": stop})

    assert watch(fit, control) == {"stop": STOP_SIGNAL}


@pytest.mark.parametrize(("error", "ends"), [(TypeError("a defect"), True), (ConnectionResetError("lost"), False)])
def test_a_workers_exception_ends_the_run_where_another_start_cannot_mend_it(control, monkeypatch, error, ends):
    import ray.train
    import ray.train.torch

    from twilbert.pretrain import train_worker
    from twilbert.pretraining import worker

    def broken(*_: object) -> None:
        raise error

    here = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1, get_local_world_size=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: here)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: None)
    monkeypatch.setattr(worker, "Worker", broken)
    recipe = SimpleNamespace(cluster=SimpleNamespace(max_restarts=3))
    with pytest.raises(type(error)):
        train_worker({"job": SimpleNamespace(control=control, recipe=recipe)})
    assert control.actor.failed() == ends
    if ends:
        _, _, fault, _ = control.actor.poll()
        assert fault is not None and fault.message.startswith("TypeError: a defect (in pretrain.py, line ")
        assert "a restart would fail in the same way" in fault.message
