"""A small world to evaluate in: a corpus of random words, its tokenizer, and models that know nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from tests.make_encoded import make_corpus
from twilbert.data.corpus.corpus import Corpus
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.hub.folder import save_model_folder
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.vocab import vocab

WORDS = ["sol", "luna", "mar", "río", "gato", "perro", "casa", "calle", "vino", "pan", "hoy", "ayer", "burla", "url"]


def make_world(folder: Path) -> tuple[Path, Corpus, Tokenizer]:
    """`folder` with corpus, tokenizer, and models: `model` gives every word the same chance, `random`, `mlm only`."""
    rng = np.random.default_rng(0)

    def text() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(3, 9)))

    def rows(count: int) -> list[tuple[str, str | None]]:
        return [(text(), None if rng.random() < 0.2 else text()) for _ in range(count)]

    corpus = make_corpus(folder / "corpus", train=rows(300), valid=rows(80))
    vocab(str(folder / "corpus"), str(folder / "tokenizer"), vocab_size=350)
    tokenizer = Tokenizer.load(str(folder / "tokenizer"))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, max_len=32, hidden_size=16, embedding_size=16, n_encoders=1, n_heads=2,
        attention_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = PretrainingModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("masked_lm", "reply_order")):
                parameter.zero_()
    save_model_folder(str(folder / "model"), config, model.state_dict(), str(folder / "tokenizer"))
    for name, changes in (("random", {}), ("mlm only", {"use_rop": False})):
        config = dataclasses.replace(config, initializer_range=0.3, **changes)
        torch.manual_seed(1)
        drawn = PretrainingModel(config).state_dict()
        save_model_folder(str(folder / name), config, drawn, str(folder / "tokenizer"))
    return folder, corpus, tokenizer
