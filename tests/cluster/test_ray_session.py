"""What workers inherit from the driver, and by which way."""

from __future__ import annotations

import contextlib

import pytest

from twilbert import devices
from twilbert.cluster import ray_session
from twilbert.errors import TwilbertError


def test_workers_inherit_settings_and_secrets_by_separate_ways(monkeypatch):
    """Ray writes a runtime environment to its logs, so that no secret may travel in it."""
    for key in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(key, "secret")
    settings = {"WANDB_MODE": "offline", "AWS_REGION": "eu-west-1", "DS_ACCELERATOR": "cpu", "WANDB_PROJECT": "p"}
    settings |= {"NCCL_SOCKET_IFNAME": "eth0", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    settings |= {"FI_PROVIDER": "efa", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WANDB_SERVICE", "a socket of this process")
    monkeypatch.setenv("UNRELATED", "1")

    logged, carried = ray_session.worker_environment(), ray_session.worker_secrets()
    assert logged.items() >= settings.items()
    assert "secret" not in logged.values()
    assert carried.keys() >= {"WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"}
    assert not {"WANDB_SERVICE", "UNRELATED"} & (logged.keys() | carried.keys())


def test_a_ray_job_is_recognised(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert not ray_session.in_ray_job()
    package = tmp_path / "working_dir_files" / "_ray_pkg_0123"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    assert ray_session.in_ray_job()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert ray_session.in_ray_job()


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_containers_quota_bounds_the_cores(monkeypatch, tmp_path, quota, expected):
    """A pod on a large node sees all its cores; as many threads as those would crowd each other out of the quota."""
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(devices, "_CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert devices.usable_cores() == expected


def test_without_a_quota_the_affinity_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "_CPU_QUOTA", tmp_path / "none")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {5}, raising=False)
    assert devices.usable_cores() == 1


@pytest.mark.parametrize(
    ("message", "told"), [("The node timed out\nduring startup", "The node timed out"), ("", "Exception")]
)
def test_a_ray_that_does_not_start_is_one_line(monkeypatch, message, told):
    """A node that is too slow to start is a plain Exception of Ray's."""
    import ray

    def init(**settings):
        raise Exception(message)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # the other tests' Ray goes on
    monkeypatch.setattr(ray_session.local_ray, "start", lambda *_: contextlib.nullcontext("an address"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(TwilbertError) as found, ray_session.ensure_ray():
        pass
    assert str(found.value) == f"a local Ray cannot be started ({told})"
