"""The README's commands: each has options that its command takes, and the blocks marked quick run, as they stand.

A block under `<!-- quick -->` runs in a folder where the files lie that it names: pairs.tsv, tweets, a run under the
README's name for one, the repository's recipes. NAME is that run's name.
"""

from __future__ import annotations

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

from tests.places import TOP
from tests.small_world import TEXTS
from twilbert import cli

README = (TOP / "README.md").read_text(encoding="utf-8")
RUN = "base-1a2b3c4d"
_BLOCK = re.compile(r"^(<!-- quick -->\n)?```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:^|[|;&(]|--|sh -c ')\s*(?:python -m twilbert\.|twilbert-)(\w+)\s([^|;&'\n]*)", re.MULTILINE)


def _blocks(*, quick: bool) -> list[str]:
    return [text for marked, text in _BLOCK.findall(README) if bool(marked) or not quick]


def _commands() -> list[tuple[str, list[str]]]:
    """(verb, arguments) of every twilbert command in a block."""
    text = "\n".join(_blocks(quick=False)).replace("\\\n", " ")
    return [(verb, shlex.split(rest, comments=True)) for verb, rest in _COMMAND.findall(text)]


def test_every_verb_is_shown_and_its_options_exist(monkeypatch: pytest.MonkeyPatch):
    parsed = []
    monkeypatch.setattr(cli, "run", lambda made, _, argv: parsed.append(made.parse_intermixed_args(argv)))
    for verb, arguments in _commands():
        importlib.import_module(f"twilbert.{verb}").main(arguments)
    assert len(parsed) == len(_commands()) > 25
    shown = {verb for verb, _ in _commands()}
    assert shown == {"prepare", "vocab", "pretrain", "evaluate", "predict", "convert", "sample", "finetune", "tune",
                     "plan", "runs"}  # fmt: skip


def test_the_files_that_the_readme_names_are_there():
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (TOP / link).exists(), link
    for name in re.findall(r"(?:tools|recipes|cluster)/[\w/.-]+\.(?:sh|py|yaml|ipynb|json|png)", README):
        assert (TOP / name).exists(), name


@pytest.fixture
def folder(trained, tmp_path: Path) -> Path:
    """The files that the quick blocks name."""
    shutil.copytree(trained.path, tmp_path / "runs" / RUN)
    shutil.copytree(trained.path, tmp_path / "runs" / "base-5e6f7a8b")
    shutil.copytree(Path(trained.path) / "model", tmp_path / "models" / "base")
    (tmp_path / "recipes").symlink_to(TOP / "recipes")
    pairs = [f"{i}\t{TEXTS[i]}\t{i + 1}\t{TEXTS[i + 1]}" for i in range(0, len(TEXTS) - 1, 2)]
    (tmp_path / "pairs.tsv").write_text("\n".join(pairs[20:]) + "\n")
    (tmp_path / "other_pairs.tsv").write_text("\n".join(pairs[:20]) + "\n")
    (tmp_path / "more").mkdir()
    with gzip.open(tmp_path / "more" / "a.jsonl.gz", "wt") as file:
        file.write('{"ORIG_ID": "7", "ORIG_TEXT": "hola a todos", "REPLY_ID": "8", "REPLY_TEXT": "buenos días a ti"}\n')
    (tmp_path / "tweets.txt").write_text("\n".join(TEXTS[:6]) + "\n")
    (tmp_path / "tweets.tsv").write_text("ID\tTEXT\n" + "".join(f"{i}\t{TEXTS[i]}\n" for i in range(6)))
    (tmp_path / "tweets.jsonl").write_text('{"text": "hola a todos"}\n{"text": "qué lunes"}\n')
    (tmp_path / "rows.tsv").write_text(f"{TEXTS[0]}\t{TEXTS[1]}\t1\n{TEXTS[3]}\t{TEXTS[2]}\t0\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.ray
def test_quick_blocks_run_in_their_order(folder: Path):
    blocks = _blocks(quick=True)
    assert len(blocks) >= 5
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for block in blocks:
        script = "set -euo pipefail\n" + block.replace("runs/NAME", f"runs/{RUN}")
        done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
