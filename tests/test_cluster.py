"""What workers inherit from the driver, and by which way."""

from __future__ import annotations

from twilbert import cluster


def test_workers_inherit_settings_and_secrets_by_separate_ways(monkeypatch):
    """Ray writes a runtime environment to its logs, so that no secret may travel in it."""
    for key in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(key, "secret")
    settings = {"WANDB_MODE": "offline", "AWS_REGION": "eu-west-1", "DS_ACCELERATOR": "cpu", "WANDB_PROJECT": "p"}
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WANDB_SERVICE", "a socket of this process")
    monkeypatch.setenv("UNRELATED", "1")

    logged, carried = cluster.worker_environment(), cluster.worker_secrets()
    assert logged.items() >= settings.items()
    assert "secret" not in logged.values()
    assert carried.keys() >= {"WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"}
    assert not {"WANDB_SERVICE", "UNRELATED"} & (logged.keys() | carried.keys())


def test_a_ray_job_is_recognised(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert not cluster.in_ray_job()
    package = tmp_path / "working_dir_files" / "_ray_pkg_0123"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    assert cluster.in_ray_job()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert cluster.in_ray_job()
