"""Which exceptions of a worker are worth another start."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
import torch
from ray.exceptions import ActorDiedError, RayTaskError

from twilbert.pretraining.failures import describe, is_recoverable


def raised(function) -> Exception:
    with pytest.raises(Exception) as caught:
        function()
    return caught.value


def in_ray(error: Exception) -> Exception:
    return RayTaskError("task", "a page of traceback", error).as_instanceof_cause()


def of_a_wrong_shape() -> list[Exception]:
    zeros, layer = torch.zeros, torch.nn.Linear(2, 2)
    return [
        raised(lambda: zeros(2) + zeros(3)),
        raised(lambda: zeros(2).narrow(0, 0, 5)),
        raised(lambda: zeros(3).view(2, 2)),
        raised(lambda: zeros(2, 3) @ zeros(2, 3)),
        raised(lambda: torch.cat([zeros(2, 2), zeros(3, 3)])),
        raised(lambda: layer.load_state_dict({"weight": zeros(3, 3), "bias": zeros(2)})),
        raised(lambda: layer(zeros(2, dtype=torch.int64))),
        raised(lambda: zeros(10**15)),
    ]


LASTING = [
    MemoryError(), TypeError("t"), ValueError("v"), KeyError("k"), AssertionError(), ZeroDivisionError(),
    FileNotFoundError("f"), in_ray(TypeError("in a task")), in_ray(in_ray(MemoryError())),
    raised(lambda: json.loads("{")),
]  # fmt: skip
PASSING = [
    ConnectionResetError(), TimeoutError(), OSError(5, "Input/output error"), ActorDiedError(),
    in_ray(ConnectionResetError("in a task")),
    RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:13979"),
    RuntimeError("[gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4: wrong size"),
    RuntimeError("Application timeout caused pair closure"),
    RuntimeError("NCCL error: unhandled system error, invalid dtype"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("something else"),
]  # fmt: skip


@pytest.mark.parametrize("error", [*LASTING, *of_a_wrong_shape()], ids=repr)
def test_a_defect_or_a_wrong_file_is_not(error):
    assert not is_recoverable(error)


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_was_lost_is(error):
    assert is_recoverable(error)


def test_an_error_is_described_on_one_line_with_its_place():
    assert describe(MemoryError()) == "MemoryError"
    assert describe(in_ray(in_ray(ValueError("a\nb")))) == "ValueError: a b"
    error = raised(lambda: describe(cast(Any, None)))
    assert describe(error).startswith("AttributeError: 'NoneType' object has no attribute")
    assert "(in failures.py, line " in describe(error)
