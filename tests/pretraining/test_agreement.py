"""twilbert-pretrain with other workers, ZeRO stages and cuts of the batch, against plain PyTorch on the whole batch.

python -m pytest -m slow tests/pretraining/test_agreement.py -rP
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.make_encoded import make_corpus, make_texts
from tests.pretraining.training_runs import plain_losses
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Recipe
from twilbert.tracking.metrics import read_metrics
from twilbert.vocab import vocab

STEPS = 20
SETTINGS = [
    "training.precision=fp32", f"training.max_steps={STEPS}", "training.warmup_steps=5", "training.logging_steps=1",
    "training.eval_steps=1000", "training.save_steps=1000", "tracking.mode=disabled",
]  # fmt: skip
CUTS = {
    "1-worker": [],
    "1-worker-zero-0": ["training.zero_stage=0"],
    "2-workers": ["cluster.num_workers=2"],
    "2-workers-zero-2": ["cluster.num_workers=2", "training.zero_stage=2"],
    "2-workers-zero-3": ["cluster.num_workers=2", "training.zero_stage=3"],
    "1-worker-more-accumulation": ["training.micro_batch_tokens=700"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """The settings that name corpus, tokenizer and the folder of the runs."""
    folder = tmp_path_factory.mktemp("agreement")
    texts = make_texts(4000)
    pairs = [(texts[i], texts[i + 1] if i % 5 else None) for i in range(0, len(texts) - 1, 2)]
    corpus = make_corpus(folder / "corpus", pairs, valid=pairs[:50])
    vocab(corpus.path, str(folder / "tokenizer"), vocab_size=2000)
    return [f"corpus.path={corpus.path}", f"corpus.tokenizer={folder / 'tokenizer'}", f"run.storage_path={folder}"]


@pytest.fixture(scope="module")
def expected() -> Callable[[Recipe], list[float]]:
    """The plain loop's losses; the corpus must be encoded."""

    @functools.cache
    def losses(corpus: str, tokenizer: str, norm: float) -> list[float]:
        data = [f"corpus.path={corpus}", f"corpus.tokenizer={tokenizer}", f"training.max_grad_norm={norm}"]
        recipe = loading.load("tiny.yaml", [*SETTINGS, *data])
        fingerprint = Tokenizer.load(tokenizer).fingerprint
        return plain_losses(recipe, EncodedCorpus.open(corpus, fingerprint, recipe.corpus.max_len), STEPS)

    return lambda recipe: losses(recipe.corpus.path, recipe.corpus.tokenizer, recipe.training.max_grad_norm)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("norm", [0.0, 1.0], ids=["free", "clipped"])
@pytest.mark.parametrize("cut", CUTS)
def test_the_commands_losses_are_those_of_plain_pytorch(data, expected, cut, norm):
    name = f"{cut}-{norm:g}"
    settings = [*SETTINGS, *data, *CUTS[cut], f"training.max_grad_norm={norm}", f"run.name={name}"]
    command = [sys.executable, "-m", "twilbert.pretrain", "tiny.yaml", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    recipe = loading.load("tiny.yaml", settings)
    rows = read_metrics(str(Path(recipe.run.storage_path) / name / "metrics.jsonl"))
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    reference = expected(recipe)
    worst = max(abs(loss / other - 1) for loss, other in zip(losses, reference, strict=True))
    print(f"{cut}, {norm:g}: loss {reference[0]:.4f} to {losses[-1]:.4f}, off by at most {worst:.1e}")
    assert worst <= 1e-4
