"""What is exported opens elsewhere, computes the same, tells where it comes from, and gives no secret away."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer

from tests.make_models import make_classifier, make_pretrained
from tests.model.small import config
from twilbert.data.cleaning import TWILBERT as clean
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.errors import TwilbertError
from twilbert.export import main
from twilbert.hub import onnx, remote_code
from twilbert.hub.folder import ModelFolder
from twilbert.model.classifier import ClassificationModel, HeadConfig
from twilbert.model.heads import PretrainingModel

HEAD = HeadConfig(("no", "si"), pooling="concat", special_tokens=False)
RAW = ["@José  hola &amp; que", "RT hola https://t.co/x tal…no", "&lt;si&gt; &#39;no&#39;\n\tw3!", "no\x1csi ARTE"]


def _run_folder(folder: Path) -> str:
    """A pre-trained model as a run leaves it: recipe, metrics and the corpus it names."""
    folder.mkdir()
    model = make_pretrained(folder)
    recipe = {
        "corpus": {"path": str(folder / "corpus"), "max_len": 12},
        "training": {"optimizer": "lamb", "learning_rate": 0.002},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    keys = "step", "valid/loss", "valid/mlm_loss", "valid/rop_accuracy"
    rows = (2, 5.0, 4.5, 0.5), (5, 3.5, 3.3, 0.75), (9, 3.75, 3.25, 0.6), (5, 3.25, 3.0, 0.75), (9, 3.5, 2.75, 0.625)
    lines = [{"step": 1}, *(dict(zip(keys, row, strict=True)) for row in rows)]  # a restart after step 2
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10, "va')
    (folder / "model" / "training.json").write_text(json.dumps({"checkpoint": "checkpoint-000005", "trained_steps": 9}))
    shutil.copytree(folder / "model", folder / "checkpoint-000009" / "model")
    (folder / "checkpoint-000009" / "model" / "training.json").unlink()
    corpus = {"lines_read": 1234, "dropped": {"too_short": 7}, "cleaning": {"url": "-> url"}}
    corpus["splits"] = {"train": {"rows": 1200}, "valid": {"rows": 27}}
    (folder / "corpus").mkdir()
    (folder / "corpus" / "corpus.json").write_text(json.dumps(corpus))
    return model


def test_a_hub_folder_holds_all_and_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = _run_folder(tmp_path / "run")
    assert main([model, str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == f"hub folder in {tmp_path / 'out'}"
    assert {path.name for path in (tmp_path / "out").iterdir()} - set(remote_code.files()) == {
        ".twilbert.json",
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "twilbert_tokenizer.json",
    }
    before, after = (ModelFolder.open(folder).load().state_dict() for folder in (model, str(tmp_path / "out")))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_card_tells_data_settings_scores_and_limits_and_no_path(tmp_path: Path):
    assert main([_run_folder(tmp_path / "run"), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["pipeline_tag"], header["library_name"], header["language"]) == ("fill-mask", "transformers", "es")
    assert "1,200 to learn from, 27 held out; of 1,234 lines read, dropped: 7 too short" in card
    assert "learning_rate: 0.002" in card
    assert held_out(card) == {"step": "5", "loss": "3.2500", "mlm_loss": "3.0000", "rop_accuracy": "0.7500"}
    assert "## Limits" in card
    assert str(tmp_path) not in card


def held_out(card: str) -> dict[str, str]:
    """The held-out scores in a pre-trained model's card."""
    table = card.partition("Held-out pairs")[2].partition("## ")[0]
    return {score: value for score, value in re.findall(r"\| (\w+) \| ([\d.]+) \|", table)}


def test_a_checkpoints_card_has_the_scores_of_its_own_step(tmp_path: Path):
    """Of the run's model that is the step that was published, though a later one has the lesser MLM loss."""
    run = Path(_run_folder(tmp_path / "run")).parent
    assert main([str(run / "checkpoint-000009"), str(tmp_path / "out")]) == 0
    scores = {"step": "9", "loss": "3.5000", "mlm_loss": "2.7500", "rop_accuracy": "0.6250"}
    assert held_out((tmp_path / "out" / "README.md").read_text()) == scores
    (run / "checkpoint-000009").rename(run / "checkpoint-000007")
    assert main([str(run / "checkpoint-000007"), str(tmp_path / "other")]) == 0
    card = (tmp_path / "other" / "README.md").read_text()
    assert held_out(card) == {} and "Not recorded" in card, "step 7 was not evaluated"


def test_what_is_not_recorded_is_not_made_up(tmp_path: Path):
    assert main([make_pretrained(tmp_path), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "README.md").read_text().count("Not recorded with the exported model") == 3


def test_a_finetuned_models_card_has_its_results(tmp_path: Path):
    model = make_classifier(tmp_path, HEAD)
    results = {
        "task": "ironía",
        "title": "Irony",
        "model": "/somewhere/private/base",
        "metric": "f1",
        "dev": {"mean": 0.75, "sd": 0.01, "n": 3, "rows": 40},
        "test": {"mean": None, "sd": None, "n": 3, "rows": 41},
        "recipe": {"model": "/somewhere/private/base", "training": {"learning_rate": 0.0003}},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert main([model, str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| dev | 0.7500 | 0.0100 | 3 | 40 |\n| test | – | – | 3 | 41 |" in card
    assert "on the encoder `base`" in card
    assert "learning_rate: 0.0003" in card
    assert "/somewhere" not in card


@pytest.mark.parametrize("remove_rt", [True, False])
def test_the_exported_tokenizer_cleans_as_we_do(remove_rt: bool, tmp_path: Path):
    model = make_classifier(tmp_path, HEAD, remove_rt=remove_rt)
    assert main([model, str(tmp_path / "out")]) == 0
    theirs, ours = AutoTokenizer.from_pretrained(str(tmp_path / "out")), Tokenizer.load(model)
    for raw in RAW:
        assert theirs(raw)["input_ids"][1:-1] == ours.encode(clean(raw, remove_rt)), raw
    assert theirs.model_max_length == 2 * 10 + 3
    assert main([str(tmp_path / "out"), str(tmp_path / "again")]) == 0  # twice changes nothing more
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "out" / "tokenizer.json").read_bytes()


def test_onnx_alone_with_what_its_users_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runtime = pytest.importorskip("onnxruntime", reason="twilbert[export] is not installed")
    model = make_classifier(tmp_path, HEAD)
    assert main([model, str(tmp_path / "out"), "--onnx"]) == 0
    assert "largest difference to torch" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".twilbert.json",
        "config.json",
        "model.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    batch = AutoTokenizer.from_pretrained(str(tmp_path / "out"))(RAW, padding=True, return_tensors="np")
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    (logits,) = session.run(None, {name: np.asarray(batch[name]) for name in onnx.INPUTS})
    network = ModelFolder.open(model).load().eval()
    ids, segments, lengths = (
        torch.from_numpy(a) for a in (batch["input_ids"], batch["token_type_ids"], batch["attention_mask"].sum(1))
    )
    assert np.abs(logits - network(ids, segments, lengths).detach().numpy()).max() < 1e-4


def test_onnx_of_all_switches_and_a_wrong_file_is_refused(tmp_path: Path):
    pytest.importorskip("onnxruntime", reason="twilbert[export] is not installed")
    torch.manual_seed(0)
    model = PretrainingModel(config("all")).eval()
    file = str(tmp_path / "model.onnx")
    onnx.write_onnx(model, file)
    checked = onnx.check_onnx(model, file)
    assert checked.difference < 1e-4
    assert min(checked.onnx_texts_per_second, checked.torch_texts_per_second) > 0
    with torch.no_grad():
        model.encoder.blocks["1"].memory.values.weight.add_(1.0)
    with pytest.raises(TwilbertError, match="differs from torch by"):
        onnx.check_onnx(model, file)


class _Hub:
    """Stands for the hub's client."""

    calls: ClassVar[list[tuple[Any, ...]]] = []
    refuses = False

    def __init__(self, token: str) -> None:
        self.token = token

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> str:
        if self.refuses:
            raise OSError(f"401 for {self.token}")
        self.calls.append((repo, private, exist_ok))
        return f"https://hub/{repo}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, ignore_patterns: str) -> None:
        names = [p.name for p in Path(folder_path).iterdir() if not p.match(ignore_patterns)]
        self.calls.append((repo_id, sorted(names)))


def test_push_needs_a_token_and_never_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model, out = make_pretrained(tmp_path), tmp_path / "out"
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", _Hub)
    monkeypatch.setattr(_Hub, "calls", [])
    assert main([model, str(out), "--push", "me/bert"]) == 2
    assert "HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert main([model, str(out), "--push", "no-owner"]) == 2
    assert not out.exists()
    assert main([model, str(out), "--push", "me/bert"]) == 0
    assert _Hub.calls[0] == ("me/bert", True, True)
    assert {"README.md", "model.safetensors", "modeling_twilbert.py"} < set(_Hub.calls[1][1])
    assert "# bert" in (out / "README.md").read_text().splitlines()
    monkeypatch.setattr(_Hub, "refuses", True)
    assert main([model, str(out), "--push", "me/bert", "--overwrite"]) == 1
    printed = capsys.readouterr()
    assert "can be pushed again" in printed.err
    assert "hf_secret" not in printed.out + printed.err
    assert all(b"hf_secret" not in path.read_bytes() for path in out.iterdir())


def test_wrong_wishes_are_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    model = make_pretrained(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    assert main([model, str(tmp_path / "full")]) == 2
    assert "already holds something" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_custom_head_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = make_classifier(tmp_path, HeadConfig(("a", "b"), own="tests.test_export:own_head"))
    assert main([model, str(tmp_path / "out")]) == 2
    assert "has a custom head" in capsys.readouterr().err


def own_head(hidden_size: int, head: HeadConfig) -> torch.nn.Module:
    """A head whose code no other program has."""
    return ClassificationModel(config("plain"), HeadConfig(head.labels)).classifier
