"""Which variables may be read by anybody, and which addresses hold a password."""

from __future__ import annotations

import os
import subprocess

import pytest

from twilbert import credentials, storage
from twilbert.errors import UsageError
from twilbert.recipe import loading


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ENDPOINT_URL", "https://minio.lab:9000"),
        ("DS_ACCELERATOR", "cpu"),
        ("HF_HOME", "/shared/hub"),
        ("WANDB_PROJECT", "tweets"),
        ("WANDB_MODE", "offline"),
        ("WANDB_BASE_URL", "http://wandb.lab:8080"),
    ],
)
def test_known_settings_are_plain(name, value):
    assert credentials.is_plain(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GOOGLE_APPLICATION_CREDENTIALS", "/data/key.json"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_PROFILE", "lab"),
        ("WANDB_BASE_URL", "https://me:word@wandb.lab"),
        ("WANDB_PROJECT", "0123456789" * 4),
        ("HF_ENDPOINT", "https://hub.lab/?sig=abc"),
        ("AWS_ENDPOINT_URL", "https://token@minio.lab"),
        ("DS_ACCELERATOR", "-----BEGIN PRIVATE KEY-----\nabc"),
        ("WANDB_ENTITY", "Bearer abc"),
        ("DS_ANYTHING", "cpu"),
        ("TWILBERT_NOTE", "hello"),
    ],
)
def test_all_else_travels_as_a_secret(name, value):
    assert not credentials.is_plain(name, value)


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIAEXAMPLE:word@bucket/runs",
        "s3://AKIAEXAMPLE:wo/rd@bucket/runs",
        "https://:word@host/x",
        "s3://bucket/runs?secret_key=word",
        "https://host/x?X-Amz-Signature=word",
        "gs://bucket/x?a=1&access_token=word",
    ],
)
def test_an_address_with_a_password_is_refused_unread(address, tmp_path):
    assert credentials.in_address(address)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(f"run:\n  storage_path: '{address}'\n")
    for use in (
        lambda: storage.absolute(address),
        lambda: storage.exists(address),
        lambda: loading.load(str(recipe)),
        lambda: loading.load("tiny.yaml", [f"corpus.path={address}"]),
    ):
        with pytest.raises(UsageError, match="an address with a password in it is refused") as refused:
            use()
        assert "word@" not in str(refused.value) and "=word" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    ["s3://bucket/a@b", "gs://anonymous@bucket/x", "s3://bucket/x?endpoint_override=localhost:9000", "C:/a@b"],
)
def test_other_addresses_are_not(address):
    assert not credentials.in_address(address)


def test_ray_tune_sees_no_key_that_arrow_still_does(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    with credentials.hidden_from_ray_tune():
        assert "AWS_SECRET_ACCESS_KEY" not in os.environ and os.environ["AWS_REGION"] == "eu-west-1"
        below = subprocess.run(["printenv", "AWS_SECRET_ACCESS_KEY"], capture_output=True, text=True, check=True)
        assert below.stdout == "word\n", "the process itself still has it"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "word"
