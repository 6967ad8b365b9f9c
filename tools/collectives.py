"""Counting the collectives of a process, and the bytes that it puts into them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

NAMES = [
    "all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter", "reduce_scatter_tensor", "reduce",
    "broadcast", "all_to_all_single", "barrier", "_all_gather_base", "_reduce_scatter_base",
]  # fmt: skip
_FIRST_IS_INPUT = ("all_reduce", "reduce", "broadcast", "barrier")  # of the others the second


class Counts:
    """Calls and bytes by collective, for each place that `where` named."""

    def __init__(self) -> None:
        self.calls: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.bytes: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def a_step(self, place: str, steps: int) -> dict[str, dict[str, float]]:
        """{"calls" or "bytes": {collective: of one of so many steps}} of a place."""
        kinds = {"calls": self.calls, "bytes": self.bytes}
        return {kind: {name: n / steps for name, n in by[place].items()} for kind, by in kinds.items()}


@contextmanager
def counting(where: Callable[[], str] = lambda: "step") -> Iterator[Counts]:
    """Count what torch.distributed and DeepSpeed's backend are asked for in the body; DeepSpeed must be initialised."""
    import deepspeed

    counts, busy = Counts(), [False]

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if busy[0]:  # one collective made of others is one
                return function(*args, **kwargs)
            counts.calls[where()][name] += 1
            counts.bytes[where()][name] += bytes_in(name, args, kwargs)
            busy[0] = True
            try:
                return function(*args, **kwargs)
            finally:
                busy[0] = False

        return call

    backend = deepspeed.comm.comm.cdb  # holds references of its own to two of torch's functions
    with ExitStack() as stack:
        for holder in (dist, dist.distributed_c10d):
            for name in NAMES:
                if hasattr(holder, name):
                    stack.enter_context(patch.object(holder, name, counted(name, getattr(holder, name))))
        for kind in ("all_gather_function", "reduce_scatter_function"):
            function = getattr(backend, kind)
            stack.enter_context(patch.object(backend, kind, counted(function.__name__, function)))
        yield counts


def bytes_in(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Bytes of what a rank puts into a collective."""
    given = next((kwargs[key] for key in ("input_tensor", "tensor", "input") if key in kwargs), None)
    if given is None and args:
        given = args[0] if name in _FIRST_IS_INPUT else args[1]
    tensors = given if isinstance(given, list | tuple) else [given]
    return sum(t.numel() * t.element_size() for t in tensors if torch.is_tensor(t))
