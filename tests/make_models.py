"""Small model folders with random weights, for the tests of what uses models."""

from __future__ import annotations

from pathlib import Path

import torch

from twilbert.data.wordpiece import save_wordpiece_folder
from twilbert.model.classifier import ClassificationModel, HeadConfig
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.model.transformers_api import save_classifier_folder, save_model_folder

VOCABULARY = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", "user", "url", "hola", "##s", "que", "tal", "no", "si", "!"]
VOCABULARY += [f"w{i}" for i in range(40)]
CONFIG = ModelConfig(
    vocab_size=len(VOCABULARY),
    max_len=12,
    hidden_size=16,
    embedding_size=16,
    n_encoders=2,
    n_heads=2,
    attention_size=8,
)


def make_tokenizer(folder: Path) -> str:
    """A tokenizer folder of VOCABULARY."""
    file = folder / "vocab"
    file.write_text("".join(f"{entry}\n" for entry in VOCABULARY))
    save_wordpiece_folder(str(file), str(folder / "tokenizer"))
    return str(folder / "tokenizer")


def make_classifier(folder: Path, head: HeadConfig, *, remove_rt: bool = True, max_len: int = 10) -> str:
    """A fine-tuned model's folder; weights are wide, so that texts differ."""
    model = ClassificationModel(CONFIG, head)
    _draw(model)
    text = {"remove_rt": remove_rt, "max_len": max_len}
    save_classifier_folder(str(folder / "model"), CONFIG, head, text, model.state_dict(), make_tokenizer(folder))
    return str(folder / "model")


def make_pretrained(folder: Path) -> str:
    """A pre-trained model's folder."""
    model = PretrainingModel(CONFIG)
    _draw(model)
    save_model_folder(str(folder / "model"), CONFIG, model.state_dict(), make_tokenizer(folder))
    return str(folder / "model")


def _draw(model: torch.nn.Module) -> None:
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=rng)
