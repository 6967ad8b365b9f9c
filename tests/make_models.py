"""Small model folders with random weights, for the tests of what uses models."""

from __future__ import annotations

from pathlib import Path

import torch

from twilbert.data.cleaning import TWILBERT
from twilbert.data.tokenizer.wordpiece import save_wordpiece_folder
from twilbert.hub import encoders
from twilbert.hub.folder import ModelFolder, save_model_folder
from twilbert.model.classifier import ClassificationModel, HeadConfig
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel

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
    text = {"remove_rt": remove_rt, "max_len": max_len, "cleaning": TWILBERT.name}
    tokenizer = make_tokenizer(folder)
    save_model_folder(str(folder / "model"), CONFIG, model.state_dict(), tokenizer, head=head, text=text)
    return str(folder / "model")


def make_pretrained(folder: Path) -> str:
    """A pre-trained model's folder."""
    model = PretrainingModel(CONFIG)
    _draw(model)
    save_model_folder(str(folder / "model"), CONFIG, model.state_dict(), make_tokenizer(folder), cleaning=TWILBERT.name)
    return str(folder / "model")


def make_bert(folder: Path) -> str:
    """A BERT folder as transformers writes it, with a word-piece tokenizer of its own."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VOCABULARY[5:]]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=40, initializer_range=0.3, **sizes)
    BertModel(config).save_pretrained(folder / "bert")
    return str(folder / "bert")


def make_bert_classifier(folder: Path, head: HeadConfig) -> str:
    """A fine-tuned BERT's folder."""
    bert = ModelFolder.open(make_bert(folder), any_encoder=True)
    network = encoders.EncoderClassifier(bert.load(), head, encoders.special_ids(bert.tokenizer))
    _draw(network.classifier)
    encoders.save(
        str(folder / "model"),
        network,
        bert.tokenizer,
        {"remove_rt": True, "max_len": 10, "cleaning": TWILBERT.name},
        {},
    )
    return str(folder / "model")


def _draw(model: torch.nn.Module) -> None:
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=rng)
