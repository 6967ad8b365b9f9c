"""Ten secrets in the environment of real commands: no file, no process's command line and no line printed holds one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.make_finetuning import QUICK, write_marked_task
from tests.small_world import make_world

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted01/{}",
    "AWS_SESSION_TOKEN": "planted02{}",
    "HF_TOKEN": "hf_planted03{}",
    "WANDB_API_KEY": "planted04" + "0" * 31,
    "WANDB_BASE_URL": "https://me:planted05{}@wandb.example",
    "GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/planted06{}.json",
    "HTTPS_PROXY": "http://me:planted07{}@127.0.0.1:9",
    "MLFLOW_TRACKING_PASSWORD": "planted08{}",
    "DS_REPORT_URL": "https://example.org/hook?sig=planted09{}",
    "TWILBERT_NOTE": "Bearer planted10{}",
}


class Search:
    """Looks again and again, while commands run, for what must be nowhere under `folder` and in no command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[str] = set()
        self.files: set[Path] = set()
        self._over = threading.Event()
        self._known: dict[Path, float] = {}
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        self.look()

    def _loop(self) -> None:
        while not self._over.wait(0.5):
            self.look()

    def look(self) -> None:
        for process in psutil.process_iter(["cmdline"]):
            if "planted" in " ".join(process.info["cmdline"] or []):
                self.seen.add(f"a command line: {' '.join(process.info['cmdline'])[:2000]}")
        for top, _, names in os.walk(self.folder):
            for name in names:
                path = Path(top, name)
                try:
                    changed = path.lstat().st_mtime
                    if path.is_symlink() or not path.is_file() or self._known.get(path) == changed:
                        continue
                    content = path.read_bytes()
                except OSError:  # gone meanwhile
                    continue
                self._known[path] = changed
                self.files.add(path)
                if b"planted" in content:
                    self.seen.add(f"{path}: {content[max(0, content.index(b'planted') - 60) :][:90]!r}")


@pytest.fixture
def folder() -> Iterator[Path]:
    """All that the commands write: a short path, as Ray's sockets need it."""
    made = Path(tempfile.mkdtemp(prefix="tw", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.mark.ray
@pytest.mark.slow
def test_ten_secrets_are_nowhere(folder):
    world, home, temporary = make_world(folder / "world"), folder / "home", folder / "t"
    home.mkdir()
    temporary.mkdir()
    task = write_marked_task(folder / "task", rows=48)
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "RAY_"))}
    planted = {name: value.format("Zq8xR4tVb2") for name, value in PLANTED.items()}
    environment = outside | planted | {"WANDB_MODE": "offline", "HOME": str(home), "TMPDIR": str(temporary)}
    tuning = ["search.trials=2", "final.seeds=1", "training.epochs=1", "training.precision=fp32"]
    model = str(world / "runs" / "secret" / "model")
    search = Search(folder)
    for verb, *arguments in (
        ["pretrain", str(world / "small.yaml"), "run.name=secret", "cluster.num_workers=2"],
        ["finetune", "--task", task, "--model", model, "--out", str(folder / "tuned"), *QUICK[1:], "training.epochs=1"],
        ["tune", "--task", task, "--model", model, "--out", str(folder / "sweep"), *tuning],
        ["pretrain", str(world / "small.yaml"), "run.name=secret", "training.max_steps=13", "training.learning_rate=x"],
        ["pretrain", str(world / "small.yaml"), "run.name=other", "corpus.path=/nowhere"],
    ):
        command = [sys.executable, "-m", f"twilbert.{verb}", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == (2 if arguments[-1] in ("training.learning_rate=x", "corpus.path=/nowhere") else 0)
        assert "planted" not in done.stdout + done.stderr
        time.sleep(1)
    search.end()
    assert not search.seen
    names = {path.name for path in search.files}
    assert names >= {"raylet.out", "gcs_server.out", "debug.log", "recipe.yaml", "results.json", "state.json"}
    assert any(name.startswith("runtime_env") for name in names) and any(name.endswith(".wandb") for name in names)
    print(f"{len(search.files):,} files searched")
