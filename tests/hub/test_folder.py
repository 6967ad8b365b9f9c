"""A model folder loads as it was saved, and says what is wrong with it when it cannot."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.small import SWITCHES, batch, config
from twilbert.errors import TwilbertError, UsageError
from twilbert.hub import remote_code
from twilbert.hub.configuration import TWilBertConfig
from twilbert.hub.folder import ModelFolder, save_model_folder
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.model.memory import QueryNorm


def _saved(folder: Path, switch: str = "all") -> PretrainingModel:
    torch.manual_seed(0)
    model = PretrainingModel(config(switch))
    save_model_folder(str(folder), model.config, model.state_dict())
    return model


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_folder_loads_as_it_was_saved(switch: str, tmp_path: Path):
    model = _saved(tmp_path / "model", switch)
    for norm in model.modules():
        if isinstance(norm, QueryNorm):
            norm.running_mean.uniform_(-1, 1)
    save_model_folder(str(tmp_path / "again"), model.config, model.state_dict())
    folder = ModelFolder.open(str(tmp_path / "again"))
    loaded = folder.load_pretrained()
    assert folder.config == model.config == loaded.config
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    data = batch([9, 7])
    assert model.eval()(**data).mlm_loss_sum == loaded.eval()(**data).mlm_loss_sum
    loaded.train()(**data).mlm_loss_sum.backward()


def test_bf16_weights_are_kept_in_the_file_and_load_as_fp32(tmp_path: Path):
    model = PretrainingModel(config("all")).bfloat16()
    save_model_folder(str(tmp_path / "model"), model.config, model.state_dict())
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert stored["masked_lm.decoder.weight"].dtype == torch.bfloat16
    assert stored["encoder.blocks.1.memory.query_norm.running_var"].dtype == torch.float32
    loaded = ModelFolder.open(str(tmp_path / "model")).load()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    loaded = ModelFolder.open(str(tmp_path / "model")).load(torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_transformers_reads_the_configuration(tmp_path: Path):
    model = _saved(tmp_path / "model")
    read = TWilBertConfig.from_pretrained(str(tmp_path / "model"))
    assert read.to_model_config() == model.config
    assert (read.num_hidden_layers, read.num_attention_heads, read.max_position_embeddings) == (3, 4, 36)
    assert (read.model_type, read.pad_token_id, read.hidden_size) == ("twilbert", 0, 32)
    read.save_pretrained(str(tmp_path / "again"))
    assert TWilBertConfig.from_pretrained(str(tmp_path / "again")).to_model_config() == model.config
    assert TWilBertConfig().to_model_config() == ModelConfig()


def test_tokenizer_files_come_along(tmp_path: Path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "config.json").write_text("not ours")
    model = PretrainingModel(config("plain"))
    save_model_folder(str(tmp_path / "model"), model.config, model.state_dict(), str(tokenizer))
    assert {p.name for p in (tmp_path / "model").iterdir()} - set(remote_code.files()) == {
        ".twilbert.json", "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip


def test_a_full_folder_is_not_overwritten_unasked(tmp_path: Path):
    model = _saved(tmp_path / "model")
    with pytest.raises(UsageError, match="already holds something"):
        save_model_folder(str(tmp_path / "model"), model.config, model.state_dict())


def test_another_models_weights_are_not_saved(tmp_path: Path):
    state = PretrainingModel(config("plain")).state_dict()
    with pytest.raises(TwilbertError, match=r"embeddings\.token\.weight has shape \[51, 32\].*has \[51, 16\]"):
        save_model_folder(str(tmp_path / "model"), config("factorised"), state)
    assert list(tmp_path.iterdir()) == []


def _rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _edit(folder: Path, **fields: object) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | fields))


def _to_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _to_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _header(folder: Path, header: bytes, length: int | None = None) -> None:
    size = struct.pack("<Q", len(header) if length is None else length)
    (folder / "model.safetensors").write_bytes(size + header)


def _truncate(file: Path, keep: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])


KEYS = "encoder.blocks.1.memory.keys"
FAULTS = {
    "no folder": (lambda f: [p.unlink() for p in f.iterdir()], UsageError, "config.json is missing"),
    "another model": (lambda f: _edit(f, model_type="bert"), UsageError, "model_type is 'bert', expected 'twilbert'"),
    "damaged settings": (lambda f: _truncate(f / "config.json", 0.5), TwilbertError, "config.json: invalid JSON"),
    "contradiction": (lambda f: _edit(f, factorize_embeddings=False), TwilbertError, "embedding_size must equal"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), TwilbertError, "model.safetensors: missing"),
    "truncated": (lambda f: _truncate(f / "model.safetensors", 0.7), TwilbertError, "incomplete or damaged"),
    "not safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), TwilbertError, "not readable"),
    "lost tensor": (
        lambda f: _rewrite(f, lambda t: t.pop(KEYS)),
        TwilbertError,
        f"tensor {KEYS} .2, 2, 8, 8. is missing",
    ),
    "other shape": (
        lambda f: _rewrite(f, lambda t: t.update({KEYS: t[KEYS][:1].clone()})),
        TwilbertError,
        f"tensor {KEYS} has shape .1, 2, 8, 8., the configuration has .2, 2, 8, 8.",
    ),
    "more tensors": (
        lambda f: _rewrite(f, lambda t: t.update(extra=torch.zeros(1))),
        TwilbertError,
        "holds 1 tensors this model does not have, the first is extra",
    ),
    "other vocabulary": (lambda f: _edit(f, vocab_size=60), TwilbertError, r"shape \[51, 16\].*has \[61, 16\]"),
    "a billion layers": (lambda f: _edit(f, n_encoders=10**9), TwilbertError, "n_encoders is 1000000000; expected"),
    "terabytes": (lambda f: _edit(f, hidden_size=2**17, embedding_size=2**17), TwilbertError, "has shape"),
    "a float": (lambda f: _edit(f, hidden_size=16.0), TwilbertError, "hidden_size is 16.0; expected a whole number"),
    "a bool": (lambda f: _edit(f, n_heads=True), TwilbertError, "n_heads is True; expected a whole number"),
    "a string": (lambda f: _edit(f, max_len="9" * 500), TwilbertError, "max_len is '999.{,80}; expected"),
    "negative": (lambda f: _edit(f, vocab_size=-1), TwilbertError, "vocab_size is -1; expected"),
    "not a number": (lambda f: _edit(f, input_dropout=math.nan), TwilbertError, "input_dropout is nan; expected"),
    "no memory": (lambda f: _edit(f, pkm_params=[7]), TwilbertError, "pkm_params is .7.; expected a mapping"),
    "odd memory": (lambda f: _edit(f, pkm_params={"knn": {}}), TwilbertError, "pkm_params.knn is {}; expected"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), TwilbertError, "input should be an object"),
    "nested": (lambda f: (f / "config.json").write_text("[" * 10**5), TwilbertError, "config.json: invalid JSON"),
    "long": (lambda f: (f / "config.json").write_text("9" * 10**5), TwilbertError, "config.json: invalid JSON"),
    "a folder for settings": (lambda f: _to_folder(f / "config.json"), UsageError, "config.json is missing"),
    "a pipe for settings": (lambda f: _to_pipe(f / "config.json"), UsageError, "config.json is missing"),
    "a folder for weights": (
        lambda f: _to_folder(f / "model.safetensors"),
        TwilbertError,
        "model.safetensors: missing",
    ),
    "nan": (lambda f: _rewrite(f, lambda t: t[KEYS][0].fill_(math.nan)), TwilbertError, f"{KEYS}: 128 of 256 numbers"),
    "inf": (lambda f: _rewrite(f, lambda t: t[KEYS].view(-1)[:1].fill_(-math.inf)), TwilbertError, "1 of 256 numbers"),
    "int8": (lambda f: _rewrite(f, lambda t: t.update({KEYS: t[KEYS].char()})), TwilbertError, "is of type 'I8'"),
    "sparse": (lambda f: os.truncate(f / "model.safetensors", 2**40), TwilbertError, "incomplete or damaged"),
    "long header": (lambda f: _header(f, b"{}", 2**62), TwilbertError, "header would have"),
    "nested header": (lambda f: _header(f, b"[" * 10**5), TwilbertError, "not readable as safetensors"),
    "odd header": (lambda f: _header(f, b'{"a": 1}'), TwilbertError, "header is no list of tensors"),
    "odd type": (lambda f: _header(f, b'{"a": {"dtype": [], "shape": []}}'), TwilbertError, "is of type"),
    "odd shape": (lambda f: _header(f, b'{"a": {"dtype": "F32", "shape": "x"}}'), TwilbertError, "has the shape 'x'"),
    "huge shape": (lambda f: _header(f, b'{"a": {"dtype": "F32", "shape": [9000000000000]}}'), TwilbertError, "bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: str, tmp_path: Path):
    _saved(tmp_path / "model")
    harm, error, message = FAULTS[fault]
    harm(tmp_path / "model")
    with pytest.raises(error, match=message) as caught:
        ModelFolder.open(str(tmp_path / "model")).load()
    assert str(tmp_path) in str(caught.value)
