"""A local Ray: out of reach of signals, strangers and other networks, and gone with its command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from twilbert.cluster import local_ray, ray_keeper

# One Ray, several promises: each line is one.
STARTED = """
import os, signal
import grpc, psutil
from twilbert.cluster import local_ray, ray_session
own = os.nice(0)
heard = []
with ray_session.ensure_ray(1):
    import ray
    assert local_ray.address()
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == own
    me = psutil.Process()
    ours = me.children(recursive=True)
    for process in [me, *ours]:
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN:
                assert one.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1"), (process.cmdline(), one.laddr)
    commands = [" ".join(process.cmdline()) for process in ours]
    assert not any(os.environ["RAY_AUTH_TOKEN"] in command or "log_monitor" in command for command in commands)
    stranger = grpc.insecure_channel(local_ray.address()).unary_unary("/ray.rpc.InternalKVGcsService/InternalKVKeys")
    try:
        raise SystemExit(f"answered a stranger: {stranger(b'', timeout=9)}")
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED, error
    signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
    print("ready", flush=True)
    while not heard:
        signal.pause()
    print(*heard, ray.get(ray.remote(lambda: "and Ray goes on").remote()))
assert not local_ray.address()
assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in ours), ours
"""


def without_ray() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}


@pytest.mark.ray
def test_a_local_ray_is_for_its_command_alone_and_outlives_a_signal_to_its_group():
    """As `timeout` sends it: the command answers with a checkpoint, for which it needs its Ray."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTED], env=without_ray(), process_group=0,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as command:  # fmt: skip
        assert command.stdout is not None and command.stderr is not None
        first = command.stdout.readline()
        assert first == "ready\n", command.stderr.read()
        os.killpg(command.pid, signal.SIGTERM)
        assert command.stdout.read() == "SIGTERM and Ray goes on\n"
        assert command.wait() == 0, command.stderr.read()


KEEP = [sys.executable, "-I", "-S", ray_keeper.__file__]


def test_the_command_ends_with_the_pipe_and_the_keeper_with_the_command():
    with subprocess.Popen([*KEEP, "sleep", "1000"], stdin=subprocess.PIPE) as keeper:
        while not (children := psutil.Process(keeper.pid).children()):
            time.sleep(0.01)
    assert not any(process.is_running() for process in children)
    assert keeper.returncode == -signal.SIGKILL & 0xFF
    with subprocess.Popen([*KEEP, "sh", "-c", "exit 7"], stdin=subprocess.PIPE) as keeper:
        assert keeper.wait() == 7


LEAVES_TWO = """
import os, subprocess
for group in (None, 0):
    print(subprocess.Popen(["sleep", "1000"], process_group=group).pid, flush=True)
"""


def test_a_session_ends_with_its_keeper_and_groups_in_it_too():
    with subprocess.Popen(
        [*KEEP, sys.executable, "-c", LEAVES_TWO],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as keeper:  # fmt: skip
        assert keeper.stdout is not None
        left = [int(keeper.stdout.readline()) for _ in range(2)]
        assert keeper.wait() == 0
    for pid in left:
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_folders_whose_ray_is_gone_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(local_ray, "_LONGEST_FOLDER", 500)
    left, held, fresh = (Path(local_ray._new_folder()) for _ in range(3))
    other = tmp_path / "ray"
    other.mkdir()
    for folder in (left, held, other):
        os.utime(folder, (0, 0))
    with local_ray.locked(held):
        last = Path(local_ray._new_folder())
    assert {path for path in tmp_path.iterdir()} == {held, fresh, other, last}


@pytest.mark.parametrize("name", ["ñ", "a" * 40])
def test_a_temporary_folder_in_which_ray_cannot_work_is_left_for_tmp(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / name))
    folder = Path(local_ray._new_folder())
    folder.rmdir()
    assert folder.parent == Path("/tmp")
