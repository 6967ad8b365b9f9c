"""SIGTERM and Ctrl-C at any moment of any verb: exit 130 with a line, no process and no half output is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.make_finetuning import QUICK, make_base, write_marked_task
from tests.model.small import config
from tests.original.keras_files import original_json, write_pretraining
from tests.small_world import make_world
from tests.test_runs import make_run

pytestmark = [pytest.mark.slow, pytest.mark.ray]
SCRIPT = "import sys; from twilbert.cli import main; sys.argv[0] = sys.argv.pop(1); sys.exit(main())"
MOMENTS = 10


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> dict[str, list[str]]:
    """Each verb's arguments; OUT stands for what it writes."""
    base = tmp_path_factory.mktemp("verbs")
    (base / "base").mkdir()
    world, model, task = make_world(base), make_base(base / "base"), write_marked_task(base / "task")
    (base / "rows.tsv").write_text("TEXT\n" + "hola w1 w2 w3\n" * 20_000)
    (base / "pairs.tsv").write_text("ORIG_ID\tORIG_TEXT\tREPLY_ID\tREPLY_TEXT\n" + "".join(
        f"{2 * i}\thola {i} w{i} qué tal {i % 97}\t{2 * i + 1}\tmuy bien {i} gracias w{i}\n" for i in range(60_000)
    ))  # fmt: skip
    (base / "runs" / "run").mkdir(parents=True)
    make_run(base / "runs" / "run", metrics=[{"step": 1, "train/loss": 9.0}], state="stopped")
    write_pretraining(base / "weights.hdf5", config("plain"))
    (base / "config.json").write_text(json.dumps(original_json(config("plain"))))
    corpus, tokenizer, recipe = f"{world}/corpus", f"{world}/tokenizer", f"{world}/small.yaml"
    subprocess.run(command("prepare", [f"{base}/pairs.tsv", "--out", f"{base}/corpus2"]), check=True)
    storage = ["run.storage_path=OUT", "run.name=run"]
    return {
        "sample": ["pairs", "--out", "OUT", "--pairs", "60000"],
        "prepare": [f"{base}/pairs.tsv", "--out", "OUT"],
        "vocab": [f"{base}/corpus2", "--out", "OUT", "--vocab-size", "2000"],
        "encode": ["OUT", "--tokenizer", tokenizer],
        "pretrain": [recipe, *storage],
        "evaluate": [model, corpus, "--report", "OUT"],
        "finetune": ["--task", task, "--model", model, "--out", "OUT", *QUICK],
        "tune": ["--task", task, "--model", model, "--out", "OUT", *QUICK[:4], "search.trials=2", "training.epochs=2"],
        "predict": [model, f"{base}/rows.tsv", "--out", "OUT.parquet", "--embeddings", "avg"],
        "convert": [f"{base}/weights.hdf5", "--config", f"{base}/config.json", "--out", "OUT"],
        "export": [model, "OUT", "--onnx"],
        "runs": ["run", "--runs", f"{base}/runs", "--out", "OUT"],
        "plan": [recipe, "--gpus", "8", "--kind", "h100", "--json", "OUT"],
    }


def command(verb: str, arguments: list[str], out: Path | str = "") -> list[str]:
    """As the console script would be started."""
    return [sys.executable, "-c", SCRIPT, f"twilbert-{verb}", *(each.replace("OUT", str(out)) for each in arguments)]


def start(verb: str, arguments: list[str], out: Path) -> subprocess.Popen[str]:
    """The command, once its handlers are there: before, the system ends it without asking."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    process = subprocess.Popen(
        command(verb, arguments, out), env=plain, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        process_group=0,
    )  # fmt: skip
    bit = 1 << (signal.SIGTERM - 1)
    while process.poll() is None:
        caught = next(x for x in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "SigCgt" in x)
        if int(caught.split()[1], 16) & bit:
            break
        time.sleep(0.002)
    return process


def family(process: subprocess.Popen[str], known: set[psutil.Process]) -> set[psutil.Process]:
    """Those of `known`, and all that descend from `process` now."""
    try:
        return known | set(psutil.Process(process.pid).children(recursive=True))
    except psutil.Error:
        return known


def end(process: subprocess.Popen[str], known: set[psutil.Process], limit: float) -> tuple[float, str]:
    """Wait until it is over: seconds, and what it printed. Nothing that it started is left."""
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < limit:
        known = family(process, known)
        time.sleep(0.02)
    seconds = time.monotonic() - began
    if process.poll() is None:
        process.kill()
        pytest.fail(f"still there after {limit} s")
    assert process.stdout is not None
    printed = process.stdout.read()
    psutil.wait_procs(known, timeout=1)
    left = [one.cmdline() for one in known if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not left, (left, printed)
    return seconds, printed


def names(folder: Path) -> set[str]:
    """All files below but W&B's, whose names differ between runs."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "wandb" not in path.parts}


@pytest.mark.parametrize("verb", [
    "sample", "prepare", "vocab", "encode", "pretrain", "evaluate", "finetune", "tune", "predict", "convert", "export",
    "runs", "plan",
])  # fmt: skip
def test_sigterm_at_ten_moments_of_each_verb(commands, tmp_path, verb):
    arguments = commands[verb]

    def fresh(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if verb == "encode":
            subprocess.run(["cp", "-r", Path(arguments[2]).parent / "corpus", folder / "out"], check=True)
        return folder

    whole = fresh("whole")
    process = start(verb, arguments, whole / "out")
    began = time.monotonic()
    _, printed = end(process, set(), 600)
    assert process.returncode == 0, printed
    lasts, ends = time.monotonic() - began, []
    for i in range(MOMENTS):
        folder = fresh(str(i))
        before = names(folder)
        process = start(verb, arguments, folder / "out")
        known: set[psutil.Process] = set()
        at = time.monotonic() + lasts * (i + 0.5) / MOMENTS
        while time.monotonic() < at and process.poll() is None:
            known = family(process, known)
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        seconds, printed = end(process, known, 90)
        ends.append(f"{process.returncode} {seconds:.1f}")
        after = names(folder)
        trained = any("checkpoint-" in name or name.endswith(("metrics.jsonl", "evaluations.json")) for name in after)
        if process.returncode == 0 or (after == names(whole) and after != before):
            assert after == names(whole), "it was over before, with all it writes"
            continue
        assert process.returncode == 130, (i, process.returncode, printed)
        assert sum(": interrupted" in line for line in printed.splitlines()) == 1, printed
        assert "Traceback" not in printed and "Exception ignored" not in printed, printed
        assert after == before or trained, (i, after, printed)
    print(f"{verb}: {lasts:.1f} s; {', '.join(ends)}")


@pytest.mark.parametrize("child", [3, 4, 5, 6])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("attempt", range(5))
def test_a_signal_when_a_child_of_the_driver_appears(commands, tmp_path, child, number, attempt):
    """Where it lands in a fork, Python prints and forgets it. By turns to the process, as a supervisor sends it."""
    process = start("pretrain", commands["pretrain"], tmp_path / "out")
    known: set[psutil.Process] = set()
    while len(known) < child and process.poll() is None:
        known = family(process, known)
        time.sleep(0.0005)
    if attempt % 2:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    seconds, printed = end(process, known, 60)
    print(f"{seconds:.1f} s")
    assert process.returncode == 130, printed
    assert seconds < 20
    assert printed.splitlines()[-1] == "twilbert-pretrain: interrupted"
    assert not (tmp_path / "out" / "run").exists()
