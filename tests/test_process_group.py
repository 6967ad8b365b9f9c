"""A signal for the command's process group leaves alone what the command started for itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from twilbert.process_group import group_of_their_own

GROUPS = """
import os, subprocess, sys
from twilbert.process_group import group_of_their_own
print(os.getpgrp() == os.getpid())
ask = [sys.executable, "-c", "import os; print(os.getpgrp())"]
with group_of_their_own():
    inside = int(subprocess.run(ask, capture_output=True, text=True, check=True).stdout)
print(inside == os.getpgrp(), os.getpgrp() == os.getpid())
"""
MEANWHILE = """
import os, signal, sys, time
from twilbert.process_group import group_of_their_own
number = int(sys.argv[1])
signal.signal(number, lambda heard, _: print(heard))
with group_of_their_own():
    os.killpg(os.getpid(), number)
    time.sleep(0.3)
    print("inside")
print("outside")
"""
RAY = """
import os, signal
import ray
from twilbert import cluster
heard = []
with cluster.ensure_ray(1):
    signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))  # Ray sets one of its own
    print("ready", flush=True)
    while not heard:
        signal.pause()
    print(*heard, ray.get(ray.remote(lambda: "and Ray goes on").remote()))
"""


def test_what_is_started_has_a_group_of_its_own_and_we_keep_ours():
    before = os.getpgrp()
    children = set(psutil.Process().children())
    ask = [sys.executable, "-c", "import os; print(os.getpgrp())"]
    with group_of_their_own():
        inside = int(subprocess.run(ask, capture_output=True, text=True, check=True).stdout)
    after = int(subprocess.run(ask, capture_output=True, text=True, check=True).stdout)
    assert inside != before
    assert after == before == os.getpgrp()
    assert set(psutil.Process().children()) == children


def test_our_group_is_kept_after_a_fault():
    before = os.getpgrp()
    with pytest.raises(ValueError, match="from within"), group_of_their_own():
        raise ValueError("from within")
    assert os.getpgrp() == before


def test_the_leader_of_a_group_comes_back_to_it():
    done = subprocess.run([sys.executable, "-c", GROUPS], process_group=0, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]


def test_the_leader_of_a_session_cannot_leave_its_group():
    done = subprocess.run(
        [sys.executable, "-c", GROUPS], start_new_session=True, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True", "True"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_our_group_meanwhile_is_heard_afterwards(number):
    done = subprocess.run(
        [sys.executable, "-c", MEANWHILE, str(int(number))], process_group=0, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["inside", str(int(number)), "outside"]


@pytest.mark.ray
def test_ray_outlives_a_signal_to_the_group_of_its_command():
    """As `timeout` sends it."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-c", RAY], env=plain, process_group=0, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "ready\n"
        os.killpg(command.pid, signal.SIGTERM)
        assert command.stdout.read() == "SIGTERM and Ray goes on\n"
    assert command.returncode == 0
