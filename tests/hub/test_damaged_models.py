"""Fine-tuned models and encoders of transformers that are damaged, or made to harm: one message, bounded memory."""

from __future__ import annotations

import errno
import json
import math
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import twilbert
from tests.make_models import make_bert_classifier, make_classifier
from twilbert import predict
from twilbert.errors import TwilbertError
from twilbert.finetuning.encoders import load_base
from twilbert.hub import encoder_files
from twilbert.hub.folder import ModelFolder
from twilbert.model.classifier import HeadConfig

HEAD = HeadConfig(("N", "P"))


def _edit(name: str, change: Callable[[dict], object]) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return harm


def _tensors(name: str, change: Callable[[dict], object]) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return harm


def _head(**fields: object) -> Callable[[Path], object]:
    return _edit("config.json", lambda values: values["head"].update(fields))


def _text(**fields: object) -> Callable[[Path], object]:
    return _edit("config.json", lambda values: values["text"].update(fields))


def _config(**fields: object) -> Callable[[Path], object]:
    return _edit("config.json", lambda values: values.update(fields))


def _regex(pattern: str) -> Callable[[Path], object]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return _edit("tokenizer.json", lambda values: values.update(pre_tokenizer=split))


CHARSMAP = _edit("tokenizer.json", lambda v: v.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AA"}))
OURS = {
    "labels of many": (_head(labels=[str(i) for i in range(10**5)]), r"shape \[2, 16\].*has \[100000, 16\]"),
    "labels a word": (_head(labels="NP"), "labels is 'NP'; expected a list"),
    "labels numbers": (_head(labels=[1, 2]), "labels is"),
    "dropout": (_head(dropout="0"), "dropout is '0'; expected a number"),
    "own": (_head(own=7), "own is 7; expected an import path"),
    "pooling": (_head(pooling=["cls"]), "pooling"),
    "problem": (_head(problem={}), "problem is {}"),
    "special": (_head(special_tokens=1), "special_tokens is 1; expected"),
    "head a list": (_config(head=[1]), "expected a mapping"),
    "text": (_config(text=[]), "text.remove_rt must be bool"),
    "max_len": (_text(max_len=-3), "text.max_len is -3"),
    "max_len float": (_text(max_len=3.5), "text.max_len must be int"),
    "nan": (
        _tensors("model.safetensors", lambda t: t["classifier.bias"].fill_(math.nan)),
        "classifier.bias: 2",
    ),
    "panic": (CHARSMAP, "tokenizer.json: not a readable tokenizer"),
    "regex": (_regex("("), "tokenizer.json: not a readable tokenizer"),
    "nested": (lambda f: (f / "tokenizer.json").write_text("[" * 10**5), "tokenizer.json: not a readable tokenizer"),
    "vocabulary": (_config(vocab_size=53), "do not belong together"),
    "ids with gaps": (
        _edit("tokenizer.json", lambda v: v["model"]["vocab"].update(w39=10**6)),
        "its ids do not go from 0 to 53",
    ),
}
BERTS = {
    "a billion layers": (_config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "negative": (_config(num_hidden_layers=-(10**9)), "num_hidden_layers is -1000000000"),
    "terabytes": (_config(hidden_size=2**20, intermediate_size=2**20), "do not belong together"),
    "positions": (_config(max_position_embeddings=10**9), "max_position_embeddings is 1000000000"),
    "vocabulary": (_config(vocab_size=10**10), "vocab_size is 10000000000"),
    "a float": (_config(hidden_size=16.5), "neither a model of ours nor one that transformers can open"),
    "a string": (_config(num_attention_heads="x"), "neither a model of ours nor one that transformers can open"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), "config.json: input should be an object"),
    "nested": (lambda f: (f / "config.json").write_text("[" * 10**5), "config.json: invalid JSON"),
    "no kind": (_config(model_type=["bert"]), "neither a model of ours"),
    "nan": (
        _tensors("model.safetensors", lambda t: t["pooler.dense.bias"].fill_(math.nan)),
        "pooler.dense.bias: 16",
    ),
    "int8": (_tensors("model.safetensors", lambda t: t.update({"pooler.dense.bias": torch.zeros(16).char()})), "'I8'"),
    "weights": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "not readable as safetensors"),
    "tokens": (_edit("tokenizer.json", lambda v: v["model"]["vocab"].update({"w": 10**6})), "ids up to 1,000,000"),
    "length": (_edit("tokenizer_config.json", lambda v: v.update(model_max_length=-5)), "model_max_length is -5"),
    "length a word": (_edit("tokenizer_config.json", lambda v: v.update(model_max_length="x")), "model"),
    "panic": (CHARSMAP, "neither a model of ours nor one that transformers can open"),
    "head": (_edit("twilbert_classifier.json", lambda v: v.update(head=1)), "expected a mapping"),
    "record": (
        lambda f: (f / "twilbert_classifier.json").write_text("[1]"),
        "json: input should be an object",
    ),
    "text": (_edit("twilbert_classifier.json", lambda v: v.update(text={"remove_rt": 1})), "text.remove_rt must be"),
    "head nan": (
        _tensors("classifier.safetensors", lambda t: t["bias"].fill_(math.inf)),
        "tensor bias: 2 of 2",
    ),
    "head shape": (_tensors("classifier.safetensors", lambda t: t.update(bias=torch.zeros(3))), "has shape"),
    "head file": (lambda f: (f / "classifier.safetensors").unlink(), "classifier.safetensors"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "an adapter of another model"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, str]:
    return {
        "ours": make_classifier(tmp_path_factory.mktemp("ours"), HEAD),
        "bert": make_bert_classifier(tmp_path_factory.mktemp("bert"), HEAD),
    }


@pytest.mark.parametrize(("kind", "fault"), [*(("ours", f) for f in OURS), *(("bert", f) for f in BERTS)])
def test_what_is_damaged_is_one_message(kind: str, fault: str, sound, tmp_path: Path, capsys):
    harm, message = (OURS if kind == "ours" else BERTS)[fault]
    folder = tmp_path / "model"
    shutil.copytree(sound[kind], folder)
    harm(folder)
    (folder / "twilbert_tokenizer.json").unlink(missing_ok=True)  # its sum would tell of another tokenizer.json
    with pytest.raises(TwilbertError, match=message) as caught:
        twilbert.load(str(folder), precision="fp32")
    assert str(folder) in str(caught.value)
    assert predict.main([str(folder), "--text", "hola"]) in (1, 2)
    assert capsys.readouterr().err.count("twilbert-predict: error: ") == 1


def test_a_tokenizer_that_panics_on_a_text_is_one_message(sound, tmp_path: Path, capsys):
    for kind in ("ours", "bert"):
        folder = tmp_path / kind
        shutil.copytree(sound[kind], folder)
        _regex("(w+)+$")(folder)
        (folder / "twilbert_tokenizer.json").unlink(missing_ok=True)  # its sum would tell
        _edit("tokenizer_config.json", lambda v: v.update(tokenizer_class="PreTrainedTokenizerFast"))(folder)
        assert predict.main([str(folder), "--text", "w" * 40 + "!"]) == 1
        assert "the tokenizer fails on a text" in capsys.readouterr().err


def test_a_fine_tuned_encoder_of_transformers_is_predicted_from(sound, tmp_path: Path, capsys):
    model = sound["bert"]
    (tmp_path / "in.tsv").write_text("text\nhola que tal\nsi\n")
    given = [model, str(tmp_path / "in.tsv"), "--precision", "fp32", "--out"]
    assert predict.main([*given, str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, one in zip(rows, twilbert.load(model, precision="fp32").predict(["hola que tal", "si"]), strict=True):
        assert row["predicted"] == one.label
        assert {label: row[f"p_{label}"] for label in HEAD.labels} == pytest.approx(one.probabilities, abs=1e-6)
    assert predict.main([*given, str(tmp_path / "v.h5"), "--embeddings", "avg"]) == 2
    assert "read its embeddings with AutoModel" in capsys.readouterr().err


def test_a_hub_id_without_network_is_refused_at_once_or_taken_from_the_cache(sound, tmp_path: Path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TwilbertError, match=r"somebody/bert: no model folder.*not fetched from the hub"):
        load_base("somebody/bert", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and never answers
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(encoder_files, "_SECONDS", 0.2)
        with pytest.raises(TwilbertError, match=r"not fetched from the hub \(timed out\)"):
            load_base("somebody/bert", str(tmp_path))

    def unwritable(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/nowhere/.cache")

    with monkeypatch.context() as patched, pytest.raises(TwilbertError, match=r"/nowhere/\.cache: .*HF_HOME=DIR"):
        patched.setattr("huggingface_hub.HfApi.model_info", unwritable)
        load_base("somebody/bert", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--somebody--bert" / "snapshots" / ("0" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    shutil.copytree(sound["bert"], snapshot)
    assert load_base("somebody/bert", str(tmp_path)).name == "somebody/bert"


def test_weights_in_bf16_and_positions_beside_them_are_read(sound, tmp_path: Path):
    shutil.copytree(sound["bert"], tmp_path / "model")

    def older(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})
        tensors["embeddings.position_ids"] = torch.arange(40)[None]

    _tensors("model.safetensors", older)(tmp_path / "model")
    assert ModelFolder.open(str(tmp_path / "model")).load().head == HEAD
