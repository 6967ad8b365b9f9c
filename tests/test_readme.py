"""The READMEs: commands have options that exist, blocks run as they stand, links lead somewhere, settings are current.

A block of README.md runs in a folder where the files lie that it names. What needs a cluster or the original's weights
runs in other tests (test_cluster_runs, test_convert).
"""

from __future__ import annotations

import ast
import gzip
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.places import TOP
from tests.recipe import settings_lists
from tests.small_world import TEXTS, make_world
from twilbert import cli

READMES = {
    name: (TOP / name).read_text(encoding="utf-8")
    for name in ("README.md", "README.es.md", "recipes/README.md", "cluster/README.md", "tools/README.md")
}
ELSEWHERE = ("tools/", "pip install", "ray job submit", "twilbert-convert")
_COMMAND = re.compile(r"(?:^|[|;&(]|--|sh -c ')\s*(?:python -m twilbert\.|twilbert-)(\w+)\s([^|;&'\n]*)", re.MULTILINE)
_FILE = re.compile(r"(?:tools|recipes|cluster|tests|twilbert)/[\w/.-]+\.(?:sh|py|yaml|ipynb|json|svg|md)")
# What is shorter in the test: a small recipe that needs no GPU, and fewer trials.
SHORTER = {
    "recipes/base.yaml run.name=my-base training.max_steps=20000": "small.yaml run.name=my-base",
    "--vocab-size 30000": "--vocab-size 400",
    "seeds=5": "seeds=2 training.epochs=1",
    "search.trials=8 final.seeds=2 training.epochs=1": "search.trials=2 training.epochs=1 training.batch_size=64",
    'run = pretrain.run("tiny.yaml", training__max_steps=200)': 'run = pretrain.run("small.yaml")',
    "search__trials=8": "search__trials=2, training__epochs=1",
}


def blocks(name: str, language: str = "(?:bash|python)") -> list[str]:
    """The code blocks of a README."""
    return re.findall(rf"^```{language}\n(.*?)^```", READMES[name], re.MULTILINE | re.DOTALL)


def without_comments(block: str) -> list[str]:
    """The lines of a block, less what a reader's language changes."""
    return [re.sub(r"\s+# .*", "", line).rstrip() for line in block.splitlines()]


def slugs(text: str) -> set[str]:
    """Anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_verb_is_shown_and_its_options_exist(monkeypatch: pytest.MonkeyPatch):
    parsed = []
    monkeypatch.setattr(cli, "run", lambda made, _, argv: parsed.append(made.parse_intermixed_args(argv)))
    text = "\n".join(block for name in READMES for block in blocks(name, "bash")).replace("\\\n", " ")
    commands = [(verb, shlex.split(rest, comments=True)) for verb, rest in _COMMAND.findall(text)]
    for verb, arguments in commands:
        importlib.import_module(f"twilbert.{verb}").main(arguments)
    assert len(parsed) == len(commands)
    shown = {verb for verb, _ in commands}
    assert shown == {"prepare", "vocab", "pretrain", "evaluate", "predict", "convert", "sample", "finetune", "tune",
                     "plan", "runs", "export"}  # fmt: skip


@pytest.mark.parametrize("name", READMES)
def test_links_and_files_that_a_readme_names_are_there(name: str):
    for link in re.findall(r"(?:\]\(|src=\")(?!https?:)([^)\"]+)", READMES[name]):
        path, _, anchor = link.partition("#")
        target = (TOP / name).parent / path if path else TOP / name
        assert target.exists(), link
        assert not anchor or anchor in slugs(target.read_text(encoding="utf-8")), link
    for file in _FILE.findall(READMES[name]):
        assert (TOP / file).exists(), file


def test_the_spanish_readme_shows_the_same_commands():
    english, spanish = ([without_comments(block) for block in blocks(name)] for name in ("README.md", "README.es.md"))
    assert english == spanish
    assert all(len(READMES[name].splitlines()) <= 200 for name in ("README.md", "README.es.md"))


def test_the_lists_of_every_setting_are_current():
    text = READMES["recipes/README.md"]
    assert settings_lists.renewed(text) == text, "stale: python -m tests.recipe.settings_lists writes them anew"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that README.md names."""
    make_world(tmp_path / "world")
    settings = yaml.safe_load((tmp_path / "world" / "small.yaml").read_text())
    settings["run"], settings["corpus"] = {"storage_path": "runs"}, {"max_len": 16}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "recipes").symlink_to(TOP / "recipes")
    pairs = [f"{i}\t{TEXTS[i]}\t{i + 1}\t{TEXTS[i + 1]}" for i in range(0, len(TEXTS) - 1, 2)]
    (tmp_path / "pairs.tsv").write_text("\n".join(pairs[20:]) + "\n")
    (tmp_path / "other_pairs.tsv").write_text("\n".join(pairs[:20]) + "\n")
    (tmp_path / "more").mkdir()
    with gzip.open(tmp_path / "more" / "a.jsonl.gz", "wt") as file:
        file.write('{"ORIG_ID": "7", "ORIG_TEXT": "hola a todos", "REPLY_ID": "8", "REPLY_TEXT": "buenos días a ti"}\n')
    (tmp_path / "tweets.txt").write_text("\n".join(TEXTS[:6]) + "\n")
    (tmp_path / "tweets.tsv").write_text("ID\tTEXT\n" + "".join(f"{i}\t{TEXTS[i]}\n" for i in range(6)))
    (tmp_path / "rows.tsv").write_text(f"{TEXTS[0]}\t{TEXTS[1]}\t1\n{TEXTS[3]}\t{TEXTS[2]}\t0\n")
    return tmp_path


def run(command: list[str], cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(TOP)}
    done = subprocess.run(command, cwd=cwd, env=os.environ | path | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_blocks_run_in_their_order(folder: Path):
    every = re.findall(r"^```(bash|python)\n(.*?)^```", READMES["README.md"], re.MULTILINE | re.DOTALL)
    chosen = [(shell, block) for shell, block in every[2:] if not any(word in block for word in ELSEWHERE)]
    assert len(chosen) >= 9
    for shell, block in chosen:
        for written, shorter in SHORTER.items():
            block = block.replace(written, shorter)
        run([*(["bash", "-euo", "pipefail"] if shell == "bash" else [sys.executable]), "-c", block], folder)
        if "run.name=my-base" in block:
            shutil.copytree(folder / "runs" / "my-base", folder / "runs" / "my-large")


@pytest.mark.slow
def test_the_first_screen_runs_in_this_environment(tmp_path: Path):
    quickstart, python = blocks("README.md")[:2]
    interpreter = tmp_path / "venv" / "bin" / "python"  # installs nothing: what is tested is already there
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text(f'#!/bin/sh\n[ "$2" = pip ] || exec "{sys.executable}" "$@"\n')
    interpreter.chmod(0o755)
    (interpreter.parent / "activate").touch()
    assert quickstart.startswith("tools/quickstart.sh ")
    out = run([str(TOP / "tools" / "quickstart.sh"), str(tmp_path / "quickstart")], TOP, VENV=str(tmp_path / "venv"))
    assert "ROP accuracy" in out
    shown = run([sys.executable, "-c", python], tmp_path).splitlines()
    written = re.findall(r"^# (.*)", python, re.MULTILINE)
    assert [len(ast.literal_eval(line)) for line in shown] == [len(ast.literal_eval(line)) for line in written]
    assert shown[1] == written[1]
