"""A model folder runs no code, however it names or carries it and whatever opens it, unless the user trusts it."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import twilbert
from tests.make_finetuning import write_marked_task
from tests.make_models import make_bert, make_bert_classifier, make_classifier, make_pretrained
from twilbert import evaluate, export, finetune, predict, tune
from twilbert.model.classifier import HeadConfig
from twilbert.plugins import UntrustedCode

LABELS = ("N", "P")
EVIL = """
import os, pathlib, torch
pathlib.Path(os.environ["MARKER"]).write_text("run")
class Head(torch.nn.Module):
    def __init__(self, hidden_size, head):
        super().__init__()
        self.out = torch.nn.Linear(hidden_size, head.size)
    def forward(self, hidden, lengths, ids):
        return self.out(hidden[:, 0])
"""
"""A module that anybody may have written: it is seen when it runs. As a head it works."""
CUSTOM = (
    EVIL
    + """
from transformers import BertConfig, BertModel, BertTokenizerFast
class Config(BertConfig):
    model_type = "unheard-of"
class Model(BertModel):
    config_class = Config
class Tokenizer(BertTokenizerFast):
    pass
"""
)


class _Payload:
    def __reduce__(self):
        return Path(os.environ["MARKER"]).write_text, ("run",)


def own_head(folder: Path) -> str:
    """The issue's own: the head lies in the model folder, which is a package of the working directory."""
    return _with_evil_module(make_classifier(folder, HeadConfig(LABELS)), "config.json", folder)


def head_beside(folder: Path) -> str:
    """The same in the record of a fine-tuned encoder of transformers."""
    return _with_evil_module(make_bert_classifier(folder, HeadConfig(LABELS)), "twilbert_classifier.json", folder)


def _with_evil_module(model: str, file: str, folder: Path) -> str:
    (Path(model) / "evil.py").write_text(EVIL)
    own = Path(model).rename(folder / "own")
    weights = own / ("model.safetensors" if file == "config.json" else "classifier.safetensors")
    tensors = load_file(weights)
    heads = r"^(classifier\.)?(weight|bias)$"
    save_file({re.sub(heads, r"\1out.\2", name): value for name, value in tensors.items()}, weights)
    _edit(own / file, lambda values: values["head"].update(own="own.evil:Head"))
    return str(own)


def custom_code(folder: Path) -> str:
    """An encoder that no library knows: configuration, model and tokenizer are the folder's own code."""
    model = Path(make_bert(folder))
    (model / "custom.py").write_text(CUSTOM)
    served = {"AutoConfig": "custom.Config", "AutoModel": "custom.Model"}
    _edit(model / "config.json", lambda values: values.update(auto_map=served, model_type="unheard-of"))
    return str(model)


def custom_tokenizer(folder: Path) -> str:
    """A BERT whose tokenizer alone is the folder's own code."""
    model = Path(make_bert(folder))
    (model / "custom.py").write_text(CUSTOM)
    served = {"auto_map": {"AutoTokenizer": [None, "custom.Tokenizer"]}, "tokenizer_class": "Tokenizer"}
    _edit(model / "tokenizer_config.json", lambda values: values.update(served))
    return str(model)


def pickled(folder: Path) -> str:
    """Weights as a pickle."""
    model = Path(make_bert(folder))
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload()))
    return str(model)


def other_modeling(folder: Path) -> str:
    """A model of ours whose copy of our code says something else."""
    model = Path(make_pretrained(folder))
    for name in ("configuration_twilbert.py", "modeling_twilbert.py"):
        (model / name).write_text(EVIL + (model / name).read_text().replace("from __future__ import annotations", ""))
    return str(model)


def kernel(folder: Path) -> str:
    """A configuration that asks for an implementation of attention from the hub."""
    model = Path(make_bert(folder))
    _edit(model / "config.json", lambda values: values.update(attn_implementation="somebody/kernel"))
    return str(model)


def _edit(file: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


FORMS = (own_head, head_beside, custom_code, custom_tokenizer, pickled, other_modeling, kernel)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Every form's folder, and a task."""
    folders = {form.__name__: tmp_path_factory.mktemp(form.__name__) for form in FORMS}
    os.environ["MARKER"] = str(tmp_path_factory.mktemp("marker") / "marker")  # a payload is made with it
    for form in FORMS:
        form(folders[form.__name__])
    folders["task"] = Path(write_marked_task(tmp_path_factory.mktemp("task"), rows=16))
    return folders


@pytest.fixture
def opened(folders, tmp_path, monkeypatch, request) -> tuple[str, Path]:
    """A form's model in the working directory, and the file that its code writes when it runs."""
    form = getattr(request, "param", own_head)
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copytree(folders[form.__name__], tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    for name in ("own", "own.evil"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "here" / "in.txt").write_text("hola que tal\n")
    names = ("own", "model", "bert")
    return next(name for name in names if (tmp_path / "here" / name / "config.json").exists()), tmp_path / "marker"


def _auto(model: str) -> int:
    """transformers' own ways, after `import twilbert`, none told to trust; what they say is theirs."""
    import transformers

    for name in ("Config", "Tokenizer", "Model", "ModelForMaskedLM", "ModelForSequenceClassification"):
        try:
            getattr(transformers, f"Auto{name}").from_pretrained(model)
        except (OSError, ValueError, RuntimeError, ImportError, pickle.UnpicklingError, twilbert.errors.TwilbertError):
            continue
    return 2


def _load(model: str) -> int:
    with pytest.raises(twilbert.errors.UsageError) as error:
        twilbert.load(model)
    print("error:", error.value, file=sys.stderr)
    return 2


WAYS = {
    "predict": lambda model, _: predict.main([model, "in.txt", "--out", "out.tsv"]),
    "predict text": lambda model, _: predict.main([model, "--text", "hola"]),
    "embed": lambda model, _: predict.main([model, "in.txt", "--out", "out.parquet", "--embeddings", "avg"]),
    "finetune": lambda model, task: finetune.main(["--task", task, "--model", model, "--dry-run"]),
    "tune": lambda model, task: tune.main(["--task", task, "--model", model, "--dry-run"]),
    "evaluate": lambda model, _: evaluate.main([model, "in.txt", "--lm"]),
    "export": lambda model, _: export.main([model, "out"]),
    "load": lambda model, _: _load(model),
    "Auto classes": lambda model, _: _auto(model),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("opened", FORMS, indirect=True, ids=[form.__name__ for form in FORMS])
def test_no_code_of_a_folder_runs(opened, way, folders, request, monkeypatch, capsys):
    model, marker = opened
    form = request.node.callspec.id.rpartition("-")[0]
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # `yes |`
    if way == "Auto classes" and form not in ("own_head", "head_beside", "other_modeling"):
        pytest.skip("transformers' own question to its own user")
    if form == "other_modeling" and way == "load":
        assert twilbert.load(model).embed("hola").shape == (16,)  # nothing looks at its copy of our code
    elif form == "other_modeling" or (form == "custom_tokenizer" and way in ("finetune", "tune")):
        assert WAYS[way](model, str(folders["task"])) in (0, 2)  # sound without it: transformers knows BERT's
    else:
        assert WAYS[way](model, str(folders["task"])) == 2
        assert way == "Auto classes" or capsys.readouterr().err.count("error: ") == 1
    assert not marker.exists()


@pytest.mark.parametrize("opened", [own_head, head_beside], indirect=True)
def test_a_head_of_ones_own_is_loaded_where_the_user_says_so(opened, folders, capsys):
    model, marker = opened
    assert predict.main([model, "in.txt", "--out", "out.tsv", "--trust-remote-code"]) == 0
    assert marker.exists()
    assert twilbert.load(model, trust_remote_code=True).predict("hola").label in LABELS
    marker.unlink()
    with pytest.raises(UntrustedCode, match=r"own\.evil:Head"):
        twilbert.load(model)
    assert not marker.exists()


def test_a_recipe_names_the_head_that_its_model_has(opened, folders, capsys):
    model, _ = opened
    task = str(folders["task"])
    given = ["--task", task, "--model", model, "--dry-run"]
    assert finetune.main([*given, "head.own=own.evil:Head"]) == 0
    assert finetune.main([*given, "--trust-remote-code"]) == 0
    assert finetune.main([*given, "head.own=torch.nn:Linear"]) == 2  # another head than the folder's
    assert "head.own: the model folder names code to run, own.evil:Head" in capsys.readouterr().err
    assert tune.main([*given, "head.own={choice: [null, 'own.evil:Head']}"]) == 0


def test_auto_classes_load_a_head_of_ones_own_when_told_to_trust(opened, capsys):
    import transformers

    model, marker = opened
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(model, trust_remote_code=True)
    assert type(loaded.classifier).__name__ == "Head" and marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("opened", [custom_code], indirect=True)
def test_an_encoder_of_its_own_code_is_fine_tuned_where_the_user_says_so(opened, folders, capsys):
    model, marker = opened
    given = ["--task", str(folders["task"]), "--model", model, "--trust-remote-code"]
    quick = ["training.epochs=1", "tracking.mode=disabled", "training.device=cpu"]
    assert finetune.main([*given, *quick, "--out", "out"]) == 0
    assert marker.exists()
    assert predict.main(["out/model", "in.txt", "--out", "out.tsv", "--trust-remote-code"]) == 0
    assert tune.main([*given, "--dry-run"]) == 2  # in processes of Ray
    assert "its own code is not found" in capsys.readouterr().err
