"""Commands: exit codes, messages without tracebacks, help with an example, a light core."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.places import TOP
from twilbert import cli
from twilbert.errors import Interrupted, TwilbertError, UsageError

VERBS = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(TwilbertError("x"), 1), (UsageError("x"), 2), (Interrupted("x"), 130), (KeyboardInterrupt(), 130)],
)
def test_errors_become_one_line_and_an_exit_code(error, code, capsys):
    def handler(args):
        raise error

    assert cli.run(cli.parser("verb", "d", "e"), handler, []) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("twilbert-verb: ")
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_end_no_command(closed, tmp_path):
    code = (
        "import subprocess; from twilbert import cli\n"
        "def work(args):\n"
        "    cli.say('a'); cli.table(['h'], [['c']])\n"
        f"    with open({str(tmp_path / 'out')!r}, 'wb') as out:\n"
        "        assert out.fileno() > 2, out.fileno()\n"
        "        subprocess.run('echo into the file; echo into the file >&2', shell=True, check=True)\n"
        "    return 'done'\n"
        "raise SystemExit(cli.run(cli.parser('verb', 'd', 'e'), work, []))"
    )
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == b""
    assert ("done" in done.stdout) == (closed in ("2>&-", "<&-"))


def test_tables_align(capsys):
    cli.table(["name", "n"], [["a", 1], ["bb", 22]])
    assert capsys.readouterr().out == "name   n\n----  --\na      1\nbb    22\n"


@pytest.mark.parametrize("script", sorted(VERBS))
def test_every_verb_has_help_with_an_example_and_is_a_module(script):
    assert VERBS[script] == "twilbert.cli:main"
    module = script.replace("-", ".", 1)
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
    assert f"example:\n  {script}" in done.stdout


CORE = "twilbert.inference.model, twilbert.recipe.loading, twilbert.evaluate, twilbert.pretrain, twilbert.hub.folder"


@pytest.mark.parametrize(
    ("modules", "absent"),
    [(CORE, ["ray", "deepspeed", "wandb", "sentencepiece"]), ("twilbert", ["torch", "numpy", "pyarrow"])],
)
def test_an_import_does_not_load_what_it_does_not_need(modules, absent):
    code = f"import sys, {modules}; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_named(capsys):
    def handler(args):
        raise ModuleNotFoundError("No module named 'ray'", name="ray")

    assert cli.run(cli.parser("verb", "d", "e"), handler, []) == 2
    assert "pip install 'twilbert[train]'" in capsys.readouterr().err


TERMINATED = """
import importlib, os, signal, sys
from twilbert import cli
class Verb:
    main = staticmethod(lambda: print("not reached"))
def imported(name):
    assert name == "twilbert.verb"
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        sys.exit("libraries catch this")
    return Verb
importlib.import_module = imported
sys.argv = ["/bin/twilbert-verb"]
sys.exit(cli.main())
"""


def test_sigterm_while_a_verb_is_imported_is_one_line_and_exit_130():
    done = subprocess.run([sys.executable, "-c", TERMINATED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "twilbert-verb: interrupted\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_as_standard_output_is_one_message(tmp_path, unbuffered):
    command = [sys.executable, "-m", "twilbert.sample", "pairs", "--out", str(tmp_path / "out"), "--pairs", "10"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "twilbert-sample: error: standard output cannot be written (No space left on device)" in done.stderr
