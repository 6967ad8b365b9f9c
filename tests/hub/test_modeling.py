"""transformers opens a model folder by Auto classes and pipelines, with our code or the folder's own, and agrees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    dynamic_module_utils,
    pipeline,
)

import twilbert
from tests.make_models import VOCABULARY, make_classifier, make_pretrained
from tests.model.small import config
from twilbert.data.cleaning import FIRST
from twilbert.hub import modeling, remote_code
from twilbert.hub.folder import (
    ModelFolder,
    save_model_folder,
)
from twilbert.model.classifier import ClassificationModel, HeadConfig
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.model.problems import MULTI, REGRESSION

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "factorised, shared": {"factorize_embeddings": True, "embedding_size": 16, "cross_sharing": True},
    "memory": {"switch": "memory"},
    "all": {"switch": "all"},
}
HEADS = {
    "cls": HeadConfig(("a", "b", "c"), dropout=0.1),
    "concat": HeadConfig(("a", "b"), pooling="concat", special_tokens=False),
    "multi": HeadConfig(("x", "y", "z"), problem=MULTI, pooling="avg"),
    "score": HeadConfig(("score",), problem=REGRESSION, pooling="max"),
}
TEXT = {"remove_rt": True, "max_len": 12}


@pytest.fixture(autouse=True)
def quiet_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers.utils.logging.disable_progress_bar()
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def _kind(name: str) -> ModelConfig:
    return config(KINDS[name].get("switch", "plain"), **{k: v for k, v in KINDS[name].items() if k != "switch"})


def _draw(model: Any) -> Any:
    """Wide weights and statistics, so that nothing agrees by being small."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=rng)
        for name, buffer in model.named_buffers():
            buffer.uniform_(0.5, 1.5, generator=rng) if name.endswith("running_var") else buffer.normal_(generator=rng)
    return model.eval()


def _batch() -> dict[str, Tensor]:
    mask = (torch.arange(15) < torch.tensor([[15], [6], [2]])).long()
    ids = torch.randint(5, 50, (3, 15), generator=torch.Generator().manual_seed(1)) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (torch.arange(15) > 4).long() * mask}


def _class(folder: Path, name: str, code: str) -> Any:
    """The model class of this name: twilbert's, or the one in the folder's own file."""
    if code == "ours":
        return getattr(modeling, name)
    dynamic_class = dynamic_module_utils.get_class_from_dynamic_module(f"modeling_twilbert.{name}", str(folder))
    assert dynamic_class.__module__.startswith("transformers_modules.")
    return dynamic_class


@pytest.mark.parametrize("code", ["ours", "the folder's"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_pretrained_folder_gives_our_outputs(kind: str, code: str, tmp_path: Path):
    model = _draw(PretrainingModel(_kind(kind)))
    save_model_folder(str(tmp_path / "m"), model.config, model.state_dict())
    batch = _batch()
    real = batch["attention_mask"].bool()
    hidden = model.encoder(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"].sum(1))
    encoder = _class(tmp_path / "m", "TWilBertModel", code).from_pretrained(str(tmp_path / "m")).eval()
    theirs = encoder(**batch, output_hidden_states=True)
    assert (theirs.last_hidden_state - hidden)[real].abs().max() < 1e-5
    assert len(theirs.hidden_states) == 4
    assert torch.equal(theirs.hidden_states[-1], theirs.last_hidden_state)
    words = _class(tmp_path / "m", "TWilBertForMaskedLM", code).from_pretrained(str(tmp_path / "m")).eval()
    output = words(**batch, labels=batch["input_ids"].where(real, -100))
    assert (output.logits - model.masked_lm(hidden))[real].abs().max() < 1e-5
    assert (output.reply_order_logits - model.reply_order(hidden[:, 0])).abs().max() < 1e-5
    nll = -model.masked_lm(hidden).log_softmax(-1).gather(-1, batch["input_ids"][..., None])[..., 0][real]
    assert output.loss == pytest.approx(nll.mean().item(), rel=1e-5)


@pytest.mark.parametrize("code", ["ours", "the folder's"])
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_finetuned_folder_gives_our_outputs(head: str, code: str, tmp_path: Path):
    model = _draw(ClassificationModel(config("all"), HEADS[head]))
    save_model_folder(str(tmp_path / "m"), model.config, model.state_dict(), head=model.head, text=TEXT)
    batch = _batch()
    logits = model(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"].sum(1))
    theirs = _class(tmp_path / "m", "TWilBertForSequenceClassification", code).from_pretrained(str(tmp_path / "m"))
    assert (theirs.eval()(**batch).logits - logits).abs().max() < 1e-5
    assert list(theirs.config.id2label.values()) == list(HEADS[head].labels)
    assert theirs.config.problem_type == HEADS[head].problem


def test_the_folders_code_is_ours_and_stands_alone():
    texts = {name: content.decode() for name, content in remote_code.files().items()}
    assert {"configuration_twilbert.py", "modeling_twilbert.py", "twilbert_layers.py"} <= set(texts)
    for text in texts.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert f"{node.module}.py" in texts
            elif isinstance(node, ast.Import | ast.ImportFrom):
                name = (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
                assert name.split(".")[0] in {"torch", "transformers", "__future__", *sys.stdlib_module_names}
    layers = Path(twilbert.__file__).parent / "model" / "layers.py"
    assert layers.read_text().split("class Table(")[1].split("\n\n\n")[0] in texts["twilbert_layers.py"]


def test_importing_the_package_is_light_and_importing_hub_registers():
    """In a process of its own: twilbert loads neither torch nor transformers; the Auto classes know us after hub."""
    script = (
        "import sys, twilbert\n"
        "assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)\n"
        "import twilbert.hub\n"
        "from transformers import AutoConfig, AutoModelForMaskedLM\n"
        "settings = AutoConfig.for_model('twilbert', hidden_size=8, embedding_size=8, n_encoders=1, n_heads=1,"
        " vocab_size=9)\n"
        "print(type(AutoModelForMaskedLM.from_config(settings)).__module__)\n"
        "twilbert.hub.register()  # again: changes nothing\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "twilbert.hub.modeling"), done.stderr


@pytest.mark.parametrize("code", ["ours", "the folder's"])
def test_what_transformers_saves_opens_everywhere(code: str, tmp_path: Path):
    model = _draw(PretrainingModel(config("all")))
    save_model_folder(str(tmp_path / "m"), model.config, model.state_dict())
    words = _class(tmp_path / "m", "TWilBertForMaskedLM", code)
    words.register_for_auto_class("AutoModelForMaskedLM") if code != "ours" else None
    words.from_pretrained(str(tmp_path / "m")).save_pretrained(str(tmp_path / "again"))
    assert set(remote_code.files()) < {p.name for p in (tmp_path / "again").iterdir()}
    folder = ModelFolder.open(str(tmp_path / "again"))
    sizes, ours = folder.config, folder.load_pretrained()
    assert sizes == model.config
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()


def test_a_new_head_to_start_from(tmp_path: Path):
    model = _draw(PretrainingModel(config("plain")))
    save_model_folder(str(tmp_path / "m"), model.config, model.state_dict())
    names = {0: "no", 1: "sí", 2: "quizá"}
    start = AutoModelForSequenceClassification.from_pretrained(
        str(tmp_path / "m"), id2label=names, label2id={v: k for k, v in names.items()}, head={"pooling": "avg"}
    )
    assert isinstance(start, modeling.TWilBertForSequenceClassification)
    assert start.classifier.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.equal(start.encoder.embeddings.token.weight, model.encoder.embeddings.token.weight)
    start(**_batch(), labels=torch.tensor([0, 2, 1])).loss.backward()
    assert start.classifier.weight.grad.abs().max() > 0
    start.save_pretrained(str(tmp_path / "c"))
    folder = ModelFolder.open(str(tmp_path / "c"))
    head, text = folder.head, folder.text
    assert head == HeadConfig(("no", "sí", "quizá"), pooling="avg")
    assert text == {"remove_rt": False, "max_len": 16, "cleaning": FIRST}


def test_flags_make_it_multi_label(tmp_path: Path):
    model = PretrainingModel(config("plain"))
    save_model_folder(str(tmp_path / "m"), model.config, model.state_dict())
    start = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "m"), num_labels=3)
    flags = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
    output = start.eval()(**_batch(), labels=flags)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, flags)
    assert output.loss.item() == pytest.approx(expected.item())
    assert (start.config.problem_type, start.config.head["problem"]) == (MULTI, MULTI)


def test_tokens_get_labels_from_a_finetuned_encoder(tmp_path: Path):
    model = _draw(ClassificationModel(config("plain"), HEADS["cls"]))
    save_model_folder(str(tmp_path / "m"), model.config, model.state_dict(), head=model.head, text=TEXT)
    start = AutoModelForTokenClassification.from_pretrained(
        str(tmp_path / "m"), num_labels=5, ignore_mismatched_sizes=True
    )
    batch = _batch()
    output = start.eval()(**batch, labels=torch.ones(3, 15).long().where(batch["attention_mask"].bool(), -100))
    assert output.logits.shape == (3, 15, 5)
    real = batch["attention_mask"].bool()
    expected = -output.logits.log_softmax(-1)[..., 1][real].mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert "head" not in start.config.to_diff_dict()


def test_bf16_keeps_the_query_norms_statistics(tmp_path: Path):
    model = _draw(PretrainingModel(config("memory")))
    save_model_folder(str(tmp_path / "m"), model.config, model.state_dict())
    half = AutoModel.from_pretrained(str(tmp_path / "m"), dtype=torch.bfloat16)
    in_fp32 = {name: tensor for name, tensor in half.state_dict().items() if tensor.dtype == torch.float32}
    assert sorted(name.rsplit(".", 1)[1] for name in in_fp32) == ["running_mean", "running_var"]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in in_fp32.items())


def test_wishes_it_cannot_fulfil_are_refused():
    model = modeling.TWilBertModel(modeling.TWilBertConfig.from_model_config(config("plain")))
    batch = _batch()
    with pytest.raises(ValueError, match="padded at the end"):
        model(**batch | {"attention_mask": batch["attention_mask"].flip(1)})
    with pytest.raises(ValueError, match="inputs_embeds are not supported"):
        model(inputs_embeds=torch.zeros(1, 2, 32))
    with pytest.raises(ValueError, match="attention weights are not kept"):
        model(**batch, output_attentions=True)


def test_pipelines_fill_masks_and_embed_as_we_do(tmp_path: Path):
    folder = make_pretrained(tmp_path)
    text = "hola user que [MASK] no w3!"
    output = pipeline("fill-mask", folder)(text, top_k=3)
    assert [one["token_str"].replace(" ", "") for one in output] == [
        word.removeprefix("##") for word, _ in twilbert.load(folder).fill_mask(text, top=3)[0]
    ]
    assert [one["token"] for one in output] == [
        VOCABULARY.index(word) for word, _ in twilbert.load(folder).fill_mask(text, top=3)[0]
    ]
    assert [one["score"] for one in output] == pytest.approx(
        [share for _, share in twilbert.load(folder).fill_mask(text, top=3)[0]], abs=1e-5
    )
    vectors = pipeline("feature-extraction", folder)("hola que tal")
    ours = twilbert.load(folder, precision="fp32").embed("hola que tal", pooling="tokens")
    assert (torch.tensor(vectors)[0] - torch.tensor(ours)).abs().max() < 1e-5


@pytest.mark.parametrize("head", HEADS)
def test_the_pipeline_labels_as_we_do(head: str, tmp_path: Path):
    folder = make_classifier(tmp_path, HEADS[head])
    text = "hola w7 que no !"
    (answers,) = pipeline("text-classification", folder, top_k=None)([text])
    output = {one["label"]: one["score"] for one in answers}
    ours = twilbert.load(folder, precision="fp32").predict(text)
    expected = ours.probabilities or {"score": ours.label}
    assert output == pytest.approx(expected, abs=1e-5)


def test_masked_words_model_is_an_auto_model(tmp_path: Path):
    assert isinstance(AutoModelForMaskedLM.from_pretrained(make_pretrained(tmp_path)), modeling.TWilBertForMaskedLM)
