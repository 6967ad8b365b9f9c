"""A user's error arrives from whatever of Ray raised it as the one message it is, and nothing else is printed."""

from __future__ import annotations

from typing import Any

import pytest

from twilbert.cluster.ray_errors import user_error, user_errors
from twilbert.cluster.ray_session import quiet_ray_data
from twilbert.errors import TwilbertError, UsageError

MESSAGE = "data.tsv: not there\nput it there"


def fail(*_: Any) -> Any:
    raise UsageError(MESSAGE)


def fail_inside() -> Any:
    import ray

    return ray.get(ray.remote(fail).remote())


class Actor:
    """A worker of Ray Data that fails at its work."""

    def __call__(self, batch: Any) -> Any:
        yield fail(batch)


def from_a_pool_of_actors() -> Any:
    import ray.data

    pool = ray.data.ActorPoolStrategy(size=1)
    return list(ray.data.from_items([{"a": 1}]).map_batches(Actor, compute=pool).iter_rows())


@pytest.mark.ray
def test_a_users_error_is_itself_whatever_of_ray_raised_it(ray_local, capfd):
    quiet_ray_data()
    for work in (lambda: ray_local.get(ray_local.remote(fail_inside).remote()), from_a_pool_of_actors):
        with pytest.raises(UsageError) as caught, user_errors("reading"):
            work()
        assert (type(caught.value), str(caught.value), caught.value.exit_code) == (UsageError, MESSAGE, 2)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_another_failure_is_one_line_with_its_kind_and_what_was_being_done():
    from ray.exceptions import RayTaskError

    defect = RayTaskError("work", "a page of traceback", KeyError("b\nadvice"))
    with pytest.raises(TwilbertError, match=r"^reading failed \(KeyError: b\)$"), user_errors("reading"):
        raise defect.as_instanceof_cause()
    with pytest.raises(KeyError), user_errors():
        raise defect.as_instanceof_cause()


def test_a_workers_error_is_taken_out_of_what_ray_train_raises():
    from ray.train import WorkerGroupError

    outer = WorkerGroupError("a page of traceback", {0: RuntimeError("lost its peer"), 1: UsageError(MESSAGE)})
    error = RuntimeError("training failed")
    error.__cause__ = outer
    assert str(user_error(error)) == MESSAGE
    assert user_error(RuntimeError("another")) is None
