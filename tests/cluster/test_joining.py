"""Joining a Ray cluster: addresses that are none, that nobody answers at, and clusters without room."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from twilbert import signals
from twilbert.cluster import joining
from twilbert.cluster.joining import address_at_hand, require_answer, wait_for_room
from twilbert.errors import TwilbertError, UsageError


@pytest.mark.parametrize(
    ("address", "variable", "expected"),
    [
        (None, None, None),
        (None, "", None),
        (None, " ", None),
        ("", "", None),
        (None, "local", None),
        (None, "auto", "auto"),
        (None, "head:6379", "head:6379"),
        ("other:6379", "head:6379", "other:6379"),
        (None, "[::1]:6379", "[::1]:6379"),
    ],
)
def test_which_cluster_is_meant(monkeypatch, address, variable, expected):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert address_at_hand(address) == expected


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("http://user:word@head:8265", "ray job submit --address"),
        ("https://head", "HOST:PORT that `ray start --head` printed"),
        ("ray://head:10001", "Ray Client runs no training"),
        ("head", "expected the HOST:PORT"),
        ("head:6379/", "expected the HOST:PORT"),
    ],
)
def test_an_address_of_another_kind_is_refused_with_the_remedy(monkeypatch, address, remedy):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError) as refused:
        address_at_hand()
    assert str(refused.value).startswith("RAY_ADDRESS: ") and remedy in str(refused.value)
    assert "word" not in str(refused.value)


@pytest.fixture
def port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield server.getsockname()[1]


def test_a_port_that_refuses_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        dead = gone.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(TwilbertError, match=rf"^cluster 127.0.0.1:{dead}: cannot be joined \(.*refused"):
        require_answer(f"127.0.0.1:{dead}")
    assert time.monotonic() - began < 10


def test_a_port_that_never_answers_is_given_up(monkeypatch, port):
    monkeypatch.setattr(joining, "_ANSWER_S", 1)
    with pytest.raises(TwilbertError, match=r"cannot be joined \(no Ray answers within 1 s\); start it, name another"):
        require_answer(f"127.0.0.1:{port}")
    assert joining._CONNECT_S + 30 < 60, "the true bounds"


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "no-such-host.invalid:6379"])
def test_an_address_that_leads_nowhere_is_one_message(address):
    with pytest.raises(TwilbertError, match=f"^cluster {address}: cannot be joined"):
        require_answer(address)


def test_a_cluster_without_any_cpu_is_refused(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 1e9, "node:__internal_head__": 1.0})
    with pytest.raises(TwilbertError, match=r"^the cluster has no logical CPU: add nodes, or start .* --num-cpus"):
        wait_for_room([{"CPU": 1}])


@pytest.mark.ray
def test_what_is_waited_for_is_told_now_and_then_and_ctrl_c_ends_the_wait(ray_local, monkeypatch, capsys):
    @ray_local.remote(num_cpus=4)
    class Other:
        def ready(self) -> None: ...

    other = Other.remote()
    ray_local.get(other.ready.remote())
    threading.Timer(2, os.kill, [os.getpid(), signal.SIGINT]).start()
    with signals.handled(signals.interrupt), pytest.raises(KeyboardInterrupt):
        wait_for_room([{"CPU": 1}])
    assert capsys.readouterr().err.startswith("waiting for 1 CPU of the cluster: 0 of 4 CPU are free")

    monkeypatch.setattr(joining, "_SAY_S", 1)
    threading.Timer(3, ray_local.kill, [other]).start()
    wait_for_room([{"CPU": 1}] * 2)
    assert 2 <= capsys.readouterr().err.count("waiting for 2 CPU of the cluster") <= 5
    wait_for_room([{"CPU": 4}])  # what was waited for is not held
