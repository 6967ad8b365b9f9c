"""Nothing is deleted that the command did not write: every verb, every wrong output, with --overwrite and without."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.make_encoded import make_texts
from tests.make_finetuning import QUICK, write_marked_task
from tests.make_models import make_pretrained
from tests.model.small import config
from tests.original.keras_files import original_json, write_pretraining
from tests.raw_pairs import HEADER, tsv
from tests.test_runs import make_run, rows
from twilbert import convert, evaluate, export, finetune, outputs, plan, predict, runs, sample, tune, vocab
from twilbert import prepare as prepare_verb
from twilbert.errors import UsageError
from twilbert.prepare import prepare, run_here

FOLDERS: dict[str, Callable[[list[str] | None], int]] = {
    "prepare": prepare_verb.main, "vocab": vocab.main, "sample": sample.main, "sample task": sample.main,
    "convert": convert.main, "export": export.main, "export onnx": export.main, "finetune": finetune.main,
    "tune": tune.main,
}  # fmt: skip
FILES = {"predict": predict.main, "evaluate": evaluate.main, "runs": runs.main, "plan": plan.main}
KINDS = ("corpus", "tokenizer", "sample", "model", "export")


def arguments(verb: str, home: Path) -> list[str]:
    """The verb's arguments but its output, all of them good."""
    model, data = str(home / "model"), str(home / "data")
    return {
        "prepare": [f"{home}/raw.tsv", f"{home}/raw*.tsv"],
        "vocab": [f"{home}/corpus", "--vocab-size", "400"],
        "sample": ["pairs", "--pairs", "20"],
        "sample task": ["task", "stance17"],
        "convert": [f"{data}/weights.hdf5", "--config", f"{data}/config.json"],
        "export": [model],
        "export onnx": [model, "--onnx"],
        "finetune": ["--task", f"{data}/marked.yaml", "--model", model, *QUICK],
        "tune": ["--task", f"{data}/marked.yaml", "--model", model, "search.trials=1"],
        "predict": [model, f"{home}/raw.tsv", "--embeddings", "cls"],
        "evaluate": [model, f"{home}/corpus"],
        "runs": [f"{home}/run"],
        "plan": [f"{home}/run/recipe.yaml", "--gpus", "1", "--kind", "h100"],
    }[verb]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder `work` with strangers' files, and `work/home` with an input or output of every kind."""
    work = tmp_path_factory.mktemp("outputs") / "work"
    home = work / "home"
    (home / "data").mkdir(parents=True)
    texts = make_texts(120)
    pairs = [(str(i), one, f"{i}r", two) for i, (one, two) in enumerate(zip(texts[::2], texts[1::2], strict=True))]
    (home / "raw.tsv").write_text(HEADER + tsv(pairs))
    prepare([str(home / "raw.tsv")], str(home / "corpus"), valid_share=0.2, runner=run_here)
    vocab.vocab(str(home / "corpus"), str(home / "tokenizer"), vocab_size=400)
    sample.sample_pairs(str(home / "sample"), 20)
    make_pretrained(home / "data")
    shutil.move(home / "data" / "model", home / "model")
    export.export(str(home / "model"), str(home / "export"))
    write_pretraining(home / "data" / "weights.hdf5", config("plain"))
    (home / "data" / "config.json").write_text(json.dumps(original_json(config("plain"))))
    write_marked_task(home / "data", rows=16)
    make_run(home / "run", metrics=rows(100))
    for folder in (work, home, home / "run", work / "theirs", work / "theirs" / "below"):
        folder.mkdir(exist_ok=True)
        (folder / "notes.txt").write_text(f"a stranger's, of {folder}")
    (work / "theirs" / "empty").mkdir()
    (work / "file.txt").write_text("a stranger's")
    for kind in KINDS:  # each of our own outputs with one file more
        shutil.copytree(home / kind, work / f"{kind} and mine")
        (work / f"{kind} and mine" / "notes.txt").write_text("mine")
    (work / "theirs.parquet").write_text("a stranger's")  # an ending that predict takes
    (work / "theirs.png").symlink_to(work / "theirs.parquet")
    (work / "link").symlink_to(home)
    (work / "raw link.tsv").symlink_to(home / "raw.tsv")
    return work


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below a folder: what it is, and the hash of its contents."""
    paths = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            paths[str(path)] = f"link to {path.readlink()}"
        else:
            paths[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return paths


def wrong_folders(verb: str, world: Path) -> list[str]:
    """Outputs that a verb must not replace: not its own, or with more in them than it wrote."""
    home = world / "home"
    own = {"prepare": ["corpus"], "vocab": ["tokenizer"], "export onnx": ["model", "export"]}.get(
        verb, verb.split()[:1]
    )
    others = [kind for kind in KINDS if kind not in own]
    more = KINDS if verb != "export onnx" else others  # which adds to a folder of the same weights
    return [
        ".", "..", "home", "home/", "./home/../home/.", "link", "link/", f"file://{home}", str(home.parent.parent), "/",
        "home/data", "theirs", "theirs/", "theirs/below", "file.txt", "raw link.tsv", "home/raw.tsv", "home/run",
        *(f"home/{kind}" for kind in others), *(f"link/{kind}" for kind in others),
        *(f"{kind} and mine" for kind in more),
    ]  # fmt: skip


SLOW = ("convert", "finetune", "tune", "sample task", "export onnx")  # they look at all their inputs first


@pytest.mark.parametrize("verb", [pytest.param(v, marks=pytest.mark.slow) if v in SLOW else v for v in FOLDERS])
def test_no_folder_is_replaced_that_the_command_did_not_write(verb, world, monkeypatch, capsys):
    if verb == "export onnx":
        pytest.importorskip("onnxruntime", reason="twilbert[export] is not installed")
    monkeypatch.chdir(world)
    before = snapshot(world.parent)
    for out in wrong_folders(verb, world):
        named = [out] if verb.startswith("export") else ["--out", out]
        if verb == "sample task":
            (world / "tasks").mkdir()
            (world / "tasks" / "stance17").symlink_to(world / out if "://" not in out else world / "home")
            named = ["--out", "tasks"]
        for more in ([], ["--overwrite"] if verb != "tune" else []):
            assert FOLDERS[verb]([*arguments(verb, world / "home"), *named, *more]) == 2, (out, more)
            printed = capsys.readouterr().err
            assert "error: " in printed and "--overwrite" not in printed.split("error: ")[1], (out, printed)
        shutil.rmtree(world / "tasks", ignore_errors=True)
    assert snapshot(world.parent) == before


@pytest.mark.parametrize("verb", FILES)
def test_no_file_is_replaced_unasked_and_an_input_never(verb, world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    home, main = world / "home", FILES[verb]
    flags = {"predict": ["--out"], "evaluate": ["--json", "--report", "--examples"], "runs": ["--out"],
             "plan": ["--json", "--plot"]}[verb]  # fmt: skip
    inputs = {
        "predict": ["home/raw.tsv", "raw link.tsv", f"file://{home}/raw.tsv", "home/model/config.json"],
        "evaluate": ["home/corpus/corpus.json", "home/corpus/rejects.jsonl", "home/../home/model/model.safetensors"],
        "runs": ["home/run/recipe.yaml", "link/run/metrics.jsonl", "home/run/notes.txt"],
        "plan": ["home/run/recipe.yaml", "link/run/recipe.yaml"],
    }[verb]
    monkeypatch.setattr(predict, "VECTORS", ("parquet", "tsv", "json", "txt", "null", "png"))
    monkeypatch.setattr(plan, "_PLOTS", ("parquet", "png", "yaml", "txt", ""))
    before = snapshot(world.parent)
    for flag in flags:
        for out, overwrite in [
            *((out, more) for out in [*inputs, ".", "theirs", "/dev/null"] for more in (False, True)),
            *((out, False) for out in ("theirs.parquet", "theirs.png", "file.txt")),
        ]:
            more = ["--overwrite"] if overwrite else []
            assert main([*arguments(verb, home), flag, out, *more]) == 2, (flag, out, more)
            printed = capsys.readouterr().err
            advised = "--overwrite" in printed.split("error: ")[1]
            assert advised == (out in ("theirs.parquet", "theirs.png", "file.txt")), (out, printed)
    if len(flags) > 1:
        same = [flags[0], "new.png", flags[1], "./new.png"]
        assert main([*arguments(verb, home), *same]) == 2 and "name two files" in capsys.readouterr().err
    assert snapshot(world.parent) == before


def test_a_file_of_the_same_command_is_replaced_unasked(world, tmp_path, monkeypatch, capsys):
    home, out = world / "home", tmp_path / "page.html"
    for _ in range(2):
        assert runs.main([*arguments("runs", home), "--out", str(out)]) == 0
        assert plan.main([*arguments("plan", home), "--json", str(tmp_path / "p.json")]) == 0
    assert json.loads((tmp_path / "p.json").read_text())["written_by"] == "twilbert-plan"
    capsys.readouterr()
    assert evaluate.main([*arguments("evaluate", home), "--report", str(out)]) == 2  # another command's page
    assert "not known as a file of twilbert-evaluate; name another, or give --overwrite" in capsys.readouterr().err
    for suffix in ("png", "svg"):
        pytest.importorskip("matplotlib")
        for _ in range(2):
            assert plan.main([*arguments("plan", home), "--plot", str(tmp_path / f"plan.{suffix}")]) == 0


@pytest.mark.slow
def test_a_model_gets_its_onnx_file_beside_what_is_there(world, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="twilbert[export] is not installed")
    model = tmp_path / "model"
    shutil.copytree(world / "home" / "model", model)
    (model / "notes.txt").write_text("mine")
    before = snapshot(model)
    assert export.main([str(model), str(model), "--onnx"]) == 0
    after = snapshot(model)
    record = str(model / outputs.RECORD)
    assert {path for path in after if after[path] != before.get(path)} == {str(model / "model.onnx"), record}
    assert export.main([str(model), str(model), "--onnx"]) == 2 and "--overwrite replaces it" in capsys.readouterr().err
    assert export.main([str(model), str(model), "--onnx", "--overwrite"]) == 0
    assert set(snapshot(model)) == set(after)
    assert export.main([str(model), str(model), "--overwrite"]) == 2


# ---- the mechanism -------------------------------------------------------------------------------------------------


def test_a_folder_of_version_0_2_is_known_by_its_index(world, tmp_path):
    for kind, again in (
        ("corpus", lambda out: prepare([str(world / "home/raw.tsv")], out, runner=run_here, overwrite=True)),
        ("tokenizer", lambda out: vocab.vocab(str(world / "home/corpus"), out, vocab_size=400, overwrite=True)),
        ("sample", lambda out: sample.sample_pairs(out, 20, overwrite=True)),
    ):
        old = tmp_path / kind
        shutil.copytree(world / "home" / kind, old)
        (old / outputs.RECORD).unlink()
        (old / "notes").write_text("mine")
        with pytest.raises(UsageError, match=r"did not write \(notes\)"):
            again(str(old))
        (old / "notes").unlink()
        again(str(old))
        assert (old / outputs.RECORD).exists()


@pytest.mark.slow
def test_a_command_killed_at_any_moment_leaves_the_old_output_or_the_new(world):
    home = world / "home"
    (home / "raw2.tsv").write_text("".join((home / "raw.tsv").read_text().splitlines(keepends=True)[:-7]))
    special = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]"]
    pieces = [*special, *(f"##p{i}" for i in range(20)), *map(str, range(25))]
    (home / "data" / "vocab50").write_text("".join(f"{piece}\n" for piece in pieces))
    command = [sys.executable, str(Path(__file__).with_name("killed_writers.py")), str(home), "40"]
    results = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert len(results) == 7
    assert all(not counts["other"] and not counts["left over"] for counts in results.values()), results
