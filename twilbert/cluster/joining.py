"""Join a Ray cluster with bounded waits and messages.

Ray itself tries a dead address for a quarter of an hour and waits for free resources silently.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from twilbert import cli
from twilbert.errors import TwilbertError, UsageError

_CONNECT_S, _ANSWER_S = 10, 30  # to connect; for an answer from a busy Ray
_SAY_S = 30  # between two progress lines
_HOST_PORT = re.compile(r"\[?(?P<host>[\w.:-]+?)\]?:(?P<port>\d+)")


def address_at_hand(address: str | None = None) -> str | None:
    """`address`, else RAY_ADDRESS, where one names a cluster: "auto" or HOST:PORT; None for a local Ray.

    UsageError for an address that cannot be a cluster's.
    """
    target = (address or os.environ.get("RAY_ADDRESS", "")).strip()
    if target in ("", "local"):
        return None
    scheme, slashes, _ = target.partition("://")
    where = "cluster address" if address else "RAY_ADDRESS"
    head = "the HOST:PORT that `ray start --head` printed (port 6379 by itself), on a machine of the cluster"
    if slashes and scheme in ("http", "https"):
        raise UsageError(
            f"{where}: {scheme}://… is the dashboard, for `ray job submit --address … -- python -m twilbert.VERB …`; "
            f"this command joins a cluster by {head}"
        )
    if slashes:
        raise UsageError(f"{where}: {scheme}://… cannot be joined (Ray Client runs no training); give {head}")
    if target != "auto" and not _HOST_PORT.fullmatch(target):
        raise UsageError(f"{where}: {target!r} is no address; expected {head}, or auto")
    return target


def require_answer(target: str) -> None:
    """TwilbertError, within 40 s, where no Ray answers at `target`, which `address_at_hand` gave."""
    at = _HOST_PORT.fullmatch(target)
    try:
        if at:
            socket.create_connection((at["host"], int(at["port"])), timeout=_CONNECT_S).close()
        status = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", target]
        done = subprocess.run(status, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except (OSError, OverflowError) as error:
        why = str(error)
    except subprocess.TimeoutExpired:
        why = f"no Ray answers within {_ANSWER_S} s"
    else:
        if done.returncode == 0:
            return
        why = (done.stderr.strip().splitlines() or ["no Ray answers"])[-1]
    raise TwilbertError(
        f"cluster {target}: cannot be joined ({why}); start it, name another, or unset RAY_ADDRESS to work here"
    )


def wait_for_room(bundles: Sequence[Mapping[str, float]]) -> None:
    """Wait until Ray has these resources free, each bundle on one node; prints every 30 s what it waits for.

    TwilbertError where there is no logical CPU at all: nothing would ever run.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    if ray.cluster_resources().get("CPU", 0) < 1:
        raise TwilbertError("the cluster has no logical CPU: add nodes, or start one of them with --num-cpus above 0")
    # A placement group queues with other requests and makes an autoscaling cluster grow.
    group = placement_group([dict(bundle) for bundle in bundles])
    say_next = time.monotonic()
    try:
        while not group.wait(timeout_seconds=1):
            if time.monotonic() < say_next:
                continue
            say_next = time.monotonic() + _SAY_S
            kinds = [kind for kind in ("CPU", "GPU") if any(bundle.get(kind) for bundle in bundles)]
            needs = [f"{sum(bundle.get(kind, 0) for bundle in bundles):g} {kind}" for kind in kinds]
            have, free = ray.cluster_resources(), ray.available_resources()
            there = [f"{free.get(kind, 0):g} of {have.get(kind, 0):g} {kind}" for kind in kinds]
            cli.say(
                f"waiting for {' and '.join(needs)} of the cluster: {' and '.join(there)} are free, the rest are in "
                "others' use (ray status shows whose); Ctrl-C ends the wait"
            )
    finally:
        remove_placement_group(group)
