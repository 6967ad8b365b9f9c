"""A folder with all that a very small pre-training run needs: corpus, tokenizer, recipe."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.make_encoded import make_corpus, make_texts
from twilbert.vocab import vocab

TEXTS = make_texts(400)
PAIRS = [(TEXTS[i], TEXTS[i + 1] if i % 5 else None) for i in range(0, 398, 2)]
STEPS = 12


def make_world(base: Path) -> Path:
    """`base`, with small.yaml: a model of two layers with dropout and a memory layer, 12 steps of 32 samples."""
    corpus = make_corpus(base / "corpus", PAIRS, valid=PAIRS[:20], row_group_rows=50)
    vocab(corpus.path, str(base / "tokenizer"), vocab_size=400)
    recipe = {
        "run": {"storage_path": str(base / "runs")},
        "corpus": {"path": corpus.path, "tokenizer": str(base / "tokenizer"), "max_len": 16},
        "model": {"hidden_size": 32, "embedding_size": 32, "n_encoders": 2, "n_heads": 2, "output_dropout": 0.1,
                  "pkm": True, "pkm_params": {"in_layers": [1], "memory_size": 8, "knn": 4, "k_dim": 8, "n_heads": 2}},
        "training": {
            "schedule": "linear", "learning_rate": 1e-2, "warmup_steps": 2, "max_steps": STEPS, "precision": "fp32",
            "global_batch_size": 32, "micro_batch_tokens": 512, "eval_steps": 4, "save_steps": 4, "logging_steps": 1,
            "save_total_limit": 2,
        },
        "tracking": {"mode": "offline"},
    }  # fmt: skip
    (base / "small.yaml").write_text(yaml.safe_dump(recipe))
    return base
