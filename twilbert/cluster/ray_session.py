"""Start or join Ray, check its resources for the job, and choose the environment of workers.

Without an address or a surrounding Ray job, a local Ray is started for the command and stopped after it, with as many
logical CPUs as the job needs. Otherwise the cluster named by the recipe, RAY_ADDRESS or the Ray job is joined.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twilbert import credentials, signals
from twilbert.cluster import local_ray, ray_errors
from twilbert.cluster.joining import address_at_hand, require_answer, wait_for_room
from twilbert.devices import usable_cores
from twilbert.errors import TwilbertError, UsageError

# Ray Data needs logical CPUs beside the training workers: without one it waits for ever, silently.
DATA_CPUS = 2
_INHERITED = (
    "WANDB_", "DS_", "HF_", "AWS_", "GOOGLE_APPLICATION_CREDENTIALS", "TWILBERT_", *credentials.TUNING,
)  # fmt: skip


def in_ray_job() -> bool:
    """Whether this process was started by `ray job submit` (its working folder is then a temporary copy)."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or "_ray_pkg_" in str(Path.cwd())


def worker_environment() -> dict[str, str]:
    """Environment variables that workers inherit from the driver: settings of W&B, networks and clouds, no secrets.

    They are passed in Ray's runtime environment, which Ray logs.
    """
    plain = {name: value for name, value in _inherited().items() if credentials.is_plain(name, value)}
    return {"RAY_USAGE_STATS_ENABLED": "0"} | plain


def worker_secrets() -> dict[str, str]:
    """The other environment variables that workers inherit, with secrets; passed through an actor only."""
    return {name: value for name, value in _inherited().items() if not credentials.is_plain(name, value)}


def _inherited() -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key.startswith(_INHERITED)}
    inherited.pop("WANDB_SERVICE", None)  # the socket of this process's own W&B
    return inherited


@contextlib.contextmanager
def ensure_ray(num_cpus: int | None = None, address: str | None = None) -> Iterator[None]:
    """Join a Ray or start a local one with `num_cpus` logical CPUs; stop only what was started here.

    `address` (or RAY_ADDRESS, which a Ray job sets) names a cluster; TwilbertError when it does not answer or has no
    CPU. Where all CPUs of a cluster are in use, waits for one and says so.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        quiet_ray_data()
        wait_for_room([{"CPU": 1}])
        yield
        return
    target = address_at_hand(address)
    if target:
        require_answer(target)
    with contextlib.ExitStack() as stack:
        try:
            with signals.deferred() as interrupted:
                asked = max(num_cpus or 0, DATA_CPUS)
                here = None if target else local_ray.start(max(asked, usable_cores()), asked, interrupted)
                joined = stack.enter_context(here) if here else target
                import ray  # after local_ray.start has set the environment that Ray reads on import

                stack.callback(ray.shutdown)
                ray.init(address=joined, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
        except TwilbertError:
            raise
        except Exception as error:  # Ray raises a plain Exception when a node starts too slowly
            what = f"cluster {target}: cannot be joined" if target else "a local Ray cannot be started"
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise TwilbertError(f"{what} ({why})") from error
        quiet_ray_data()
        if target:
            wait_for_room([{"CPU": 1}])
        yield


def quiet_ray_data() -> None:
    """Turn off progress bars and INFO lines of Ray; raise a task's exception without pages of traceback in the log."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else its kind and message are lost
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def check_resources(num_workers: int, cpus_per_worker: int, use_gpu: bool) -> None:
    """UsageError when the cluster is too small for the workers and Ray Data beside them."""
    import ray

    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    if use_gpu and gpus < num_workers:
        raise UsageError(
            f"cluster.num_workers: {num_workers} GPU workers asked for, the cluster has {gpus:g} GPUs; "
            f"set cluster.num_workers={max(1, int(gpus))}" + ("" if gpus else " cluster.use_gpu=false")
        )
    needed = num_workers * cpus_per_worker + 1
    if cpus < needed:
        raise UsageError(
            f"cluster.num_workers: {num_workers} workers and Ray Data need {needed} logical CPUs, the cluster has "
            f"{cpus:g}, which leaves none for Ray Data; lower cluster.num_workers, add nodes, "
            f"or start Ray with --num-cpus {needed + DATA_CPUS - 1}"
        )


def nodes() -> list[str]:
    """The ids of all live nodes."""
    import ray

    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def draining_nodes() -> frozenset[str]:
    """The ids of nodes that are draining (a spot instance's notice, a drain request); empty for a local Ray."""
    if local_ray.address():  # its nodes never drain, and the call blocks for a minute when it has died
        return frozenset()
    # The public ray.train.get_preemption_info waits for all workers at every call.
    from ray._private.state import state

    return frozenset(state.get_draining_nodes())


def beside_driver(actor: type) -> Any:
    """`actor` as a Ray actor class: `.remote(…)` makes one that lives on the driver's node and takes no CPU.

    Ray places actors that ask for no resources on any node at random; with that node the run would be lost.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(actor).options(scheduling_strategy=here)


def probe_storage_everywhere(path: str) -> None:
    """Write, read and remove a file under `path` on every node; TwilbertError naming the nodes that cannot."""
    import ray
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from twilbert import storage

    tasks = {
        node: ray.remote(num_cpus=0)(storage.probe_write)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(path)
        for node in nodes()
    }
    failed = []
    for node, task in tasks.items():
        try:
            ray.get(task)
        except RayTaskError as error:
            failed.append(f"node {node[:8]}: {ray_errors.user_error(error) or ray_errors.summary(error)}")
    if failed:
        raise TwilbertError("run.storage_path: not writable everywhere; " + "; ".join(failed))
