"""W&B that is unreachable, refuses, hangs or dies: the tracked work goes on, waits are bounded and reported."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.read_wandb import records, series
from tests.wandb_server import wandb_server
from twilbert.tracking import wandb_runs
from twilbert.tracking.metrics import Tracker, read_metrics
from twilbert.tracking.wandb_runs import Wandb, resolve_mode


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("disabled", {"WANDB_API_KEY": "k"}, "disabled"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
    ],
)
def test_mode(mode, environment, expected, monkeypatch):
    for key in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert resolve_mode(mode) == expected


def test_a_home_that_cannot_be_written_is_reported_with_the_remedy(tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "read-only"))
    monkeypatch.setattr(wandb_runs.os, "access", lambda path, mode: path != tmp_path)
    wandb = Wandb("project", "offline", lines.append)
    wandb.open(str(tmp_path / "run"), "run", {}, "0123abcd")
    wandb.close()
    assert len(lines) == 1 and "XDG_CACHE_HOME=DIR" in lines[0]


@pytest.fixture
def online(monkeypatch) -> Callable[[int], None]:
    """A key, and a server at that port of this machine."""

    def at(port: int) -> None:
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")

    return at


class Tracked:
    """A training of five steps, with its messages and the seconds of its start and end."""

    def __init__(self, folder: Path, during: Callable[[], object] = lambda: None) -> None:
        self.folder, self.lines = folder, []
        began = time.monotonic()
        wandb = Wandb("project", "auto", self.lines.append)
        tracker = Tracker(str(folder), "run", wandb, {"seed": 3}, "0123abcd", last_step=0)
        self.lines.insert(0, tracker.first_line)
        self.start_s = time.monotonic() - began
        for step in range(1, 6):
            tracker.log(step, {"train/loss": 1 / step})
            if step == 2:
                during()
                time.sleep(0.5)
        ending = time.monotonic()
        tracker.close()
        self.end_s = time.monotonic() - ending
        assert [row["step"] for row in read_metrics(str(folder / "metrics.jsonl"))] == [1, 2, 3, 4, 5]

    def offline_rows(self) -> list[dict[str, Any]]:
        """What the only run's file holds, which is an offline one."""
        assert not list(self.folder.glob("wandb/run-*")), "what an attempt to go online left is gone"
        (file,) = self.folder.glob("wandb/offline-run-*/*.wandb")
        return series(file)


def test_a_key_that_is_refused_means_offline_with_one_line(online, tmp_path):
    with wandb_server("401") as server:
        online(server.server_port)
        tracked = Tracked(tmp_path)
    (line,) = tracked.lines
    assert line.startswith("tracking: W&B offline (not online: CommError: ") and "401" in line
    assert f"wandb sync {tmp_path}" in line and "0123456789" not in line
    assert len(tracked.offline_rows()) == 5
    assert tracked.start_s + tracked.end_s < 20


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["403", "500", "html", "silent", "trickle", "refusing", "no such host"])
def test_a_server_that_is_not_there_means_offline_with_one_line(online, tmp_path, behaviour, monkeypatch):
    with wandb_server(behaviour) as server:
        online(server.server_port)
        if behaviour == "refusing":
            server.shutdown()
            server.server_close()
        if behaviour == "no such host":
            monkeypatch.setenv("WANDB_BASE_URL", "https://no-such-host.invalid")
        tracked = Tracked(tmp_path)
    (line,) = tracked.lines
    assert line.startswith("tracking: W&B offline (not online: ")
    assert len(tracked.offline_rows()) == 5
    print(f"{behaviour}: offline after {tracked.start_s:.1f} s, ended in {tracked.end_s:.1f} s: {line}")
    assert tracked.start_s < wandb_runs._INIT_S + 10 and tracked.end_s < 10


@pytest.mark.slow
def test_a_sound_server_gets_the_rows(online, tmp_path):
    with wandb_server() as server:
        online(server.server_port)
        tracked = Tracked(tmp_path)
    (line,) = tracked.lines
    assert line.startswith("tracking: W&B online in ") and f"127.0.0.1:{server.server_port}" in line
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 3 and not [file for file in files if b"0123456789" in file.read_bytes()], "the key"
    assert tracked.end_s < 10


@pytest.mark.slow
def test_a_server_that_dies_costs_a_bounded_wait_at_the_end(online, tmp_path):
    with wandb_server() as server:
        online(server.server_port)
        tracked = Tracked(tmp_path, during=lambda: (server.shutdown(), server.server_close()))
    first, second = tracked.lines
    assert "W&B online" in first
    assert second.startswith("tracking: W&B failed (TimeoutError") and f"wandb sync {tmp_path}" in second
    (file,) = tmp_path.glob("wandb/run-*/*.wandb")
    assert len(series(file)) == 5, "nothing is lost"
    print(f"ended in {tracked.end_s:.1f} s: {second}")
    assert tracked.end_s < wandb_runs._FINISH_S + 10


@pytest.mark.slow
def test_a_slow_server_costs_a_bounded_wait_at_the_end(online, tmp_path):
    with wandb_server("slow") as server:
        online(server.server_port)
        tracked = Tracked(tmp_path)
    print(f"began in {tracked.start_s:.1f} s, ended in {tracked.end_s:.1f} s: {tracked.lines}")
    assert tracked.start_s < wandb_runs._INIT_S + 10 and tracked.end_s < wandb_runs._FINISH_S + 10


@pytest.mark.parametrize("mode", ["offline", pytest.param("online", marks=pytest.mark.slow)])
def test_wandbs_own_process_may_be_killed(online, tmp_path, monkeypatch, mode):
    def kill() -> None:
        for process in psutil.Process().children(recursive=True):
            if "wandb-core" in process.name():
                process.send_signal(signal.SIGKILL)
                process.wait(10)

    with wandb_server() as server:
        online(server.server_port)
        monkeypatch.setenv("WANDB_MODE", mode)
        tracked = Tracked(tmp_path, during=kill)
    assert [line.split(" (")[0] for line in tracked.lines[1:2]] == ["tracking: W&B failed"]
    assert len(tracked.lines) <= 3
    assert tracked.end_s < 10


def test_wandb_that_cannot_even_write_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "wandb").write_text("a file in the place of the folder")
    (line,) = Tracked(tmp_path).lines
    assert line.startswith("tracking: W&B disabled (FileExistsError: ") and "metrics in" in line


def test_no_path_of_the_configuration_reaches_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb = Wandb("project", "auto", print)
    config = {
        "model": "tiny-1a2b", "data_dir": "/data/own-name/tasks", "runs": "~own-name", "seeds": [1, 2],
        "corpus": {"path": "s3://bucket-of-own-name/x", "parts": ["own-name/a", "word"], "max_len": 128},
    }  # fmt: skip
    wandb.open(str(tmp_path), "run", config, "0123abcd")
    wandb.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"own-name" not in file.read_bytes()
    sent = {
        item.key: json.loads(item.value_json)
        for record in records(file)
        if record.WhichOneof("record_type") == "run"
        for item in record.run.config.update
    }
    assert sent["corpus"] == {"path": None, "parts": [None, "word"], "max_len": 128}
    assert sent["model"] == "tiny-1a2b" and sent["seeds"] == [1, 2]
