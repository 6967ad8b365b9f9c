"""Runs that lose workers, their driver, all of their processes or a node end as runs that nothing happens to.

python -m pytest -m slow tests/pretraining/test_disturbed_runs.py        # all: 17 minutes on two busy cores
python -m pytest -m slow tests/pretraining/test_disturbed_runs.py -k "driver or node"
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pretraining.disturbed_runs import SAVE, STEPS, Training, assert_same_training, is_worker, make_recipe

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("disturbed"))


@pytest.fixture
def start(recipe) -> Iterator[Callable[..., Training]]:
    """Start a run of that name on so many workers, or resume it; what still runs at the end of the test is killed."""
    started: list[Training] = []

    def begin(name: str, workers: int, address: str | None = None) -> Training:
        started.append(Training(recipe, name, workers, address))
        return started[-1]

    yield begin
    for training in started:
        training.kill_group()


@pytest.fixture(scope="module")
def undisturbed(recipe) -> Callable[[int], Path]:
    """The folder of the run on so many workers to which nothing happens; each is trained once."""

    @functools.cache
    def run(workers: int) -> Path:
        training = Training(recipe, f"undisturbed-{workers}", workers)
        try:
            training.finish()
        finally:
            training.kill_group()
        return training.run

    return run


def drawn_steps(name: str, n: int, first: int = SAVE + 2, end: int = STEPS - 2) -> list[int]:
    """Steps at which something happens, the same in every run of the test."""
    return sorted(random.Random(name).sample(range(first, end), n))


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_every_number_of_workers_takes_the_same_steps(undisturbed, workers):
    assert_same_training(undisturbed(workers), undisturbed(1), bitwise=False)


@pytest.mark.parametrize(("workers", "kills"), [(1, 2), (2, 3), (3, 3), (4, 2)])
def test_a_run_whose_workers_are_killed_ends_with_the_same_bits(start, undisturbed, workers, kills):
    name = f"worker-killed-{workers}"
    choose = random.Random(name)
    training = start(name, workers)
    for step in drawn_steps(name, kills, first=2):
        training.wait_for(step)
        training.kill_worker(choose)
        training.wait_for_restart()
    training.finish()
    assert_same_training(training.run, undisturbed(workers), bitwise=True)


@pytest.mark.parametrize("what", ["driver", "group"])
def test_the_same_command_goes_on_after_its_processes_were_killed(start, undisturbed, what):
    name = f"{what}-killed"
    for step in drawn_steps(name, 2):
        training = start(name, 2)
        training.wait_for(step)
        {"driver": training.kill_driver, "group": training.kill_group}[what]()
    training = start(name, 2)
    training.finish()
    assert_same_training(training.run, undisturbed(2), bitwise=True)


@pytest.mark.parametrize("part", ["raylet", "gcs_server", "TrainController"])
def test_a_killed_part_of_the_local_ray_ends_the_command_which_then_resumes(start, undisturbed, part):
    """One message, exit code 1 and no process left, or a restart by Ray; the same command ends with the same bits."""
    training = start(f"killed-{part}", 2)
    training.wait_for(SAVE + 4)
    family = psutil.Process(training.process.pid).children(recursive=True)
    next(process for process in family if part in " ".join(process.cmdline()[:1])).kill()
    began = time.monotonic()
    code = training.process.wait(timeout=120)
    seconds, printed = time.monotonic() - began, training.log.read_text()
    errors = [line for line in printed.splitlines() if "error: " in line]
    print(f"{part}: exit code {code} after {seconds:.1f} s: {errors}")
    assert code == 1 and len(errors) == 1 and "Traceback" not in printed, printed[-3000:]
    _, left = psutil.wait_procs(family, timeout=5)
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]
    training = start(f"killed-{part}", 2)
    training.finish()
    assert_same_training(training.run, undisturbed(2), bitwise=True)


def test_a_local_run_listens_on_the_loopback_interface_alone(start):
    training = start("listening", 2)
    training.wait_for(SAVE)
    sockets: dict[str, int] = {}
    driver = psutil.Process(training.process.pid)
    for process in [driver, *driver.children(recursive=True)]:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                sockets[connection.laddr.ip] = sockets.get(connection.laddr.ip, 0) + 1
    print(f"listening sockets by address: {sockets}")
    assert set(sockets) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_run_may_be_resized_between_starts(start, undisturbed):
    """Two workers, one, two: by Ctrl-C and the same command with another number."""
    name = "resized-2-1-2"
    for workers, step in zip((2, 1), drawn_steps(name, 2, end=STEPS // 2), strict=True):
        training = start(name, workers)
        training.wait_for(step)
        training.interrupt()
    training = start(name, 2)
    training.finish()
    assert_same_training(training.run, undisturbed(1), bitwise=False)


def test_a_run_outlives_the_loss_of_a_node(start, undisturbed):
    """Three nodes of Ray's own cluster for tests; one with a worker is killed, another comes 20 seconds later."""
    from ray.cluster_utils import Cluster

    size: dict[str, Any] = {"object_store_memory": 150 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1} | size)
    try:
        nodes = [cluster.add_node(num_cpus=2, **size) for _ in range(2)]
        cluster.wait_for_nodes()
        training = start("node-lost", 2, cluster.address)
        (step,) = drawn_steps("node-lost", 1, first=10, end=STEPS - 20)
        training.wait_for(step)
        lost, began = next(node for node in nodes if has_worker(node)), time.monotonic()
        cluster.remove_node(lost, allow_graceful=False)
        time.sleep(20)
        cluster.add_node(num_cpus=2, **size)
        training.wait_for_restart()
        print(f"{time.monotonic() - began:.0f} s from the loss to the first step after it, 20 of them without the node")
        training.finish()
    finally:
        cluster.shutdown()
    assert_same_training(training.run, undisturbed(2), bitwise=True)


def has_worker(node: Any) -> bool:
    """Whether a node's raylet has a training worker among its children."""
    raylet = next(iter(node.all_processes["raylet"])).process
    return any(is_worker(process) for process in psutil.Process(raylet.pid).children(recursive=True))
