"""The memory that twilbert-plan says beside what training processes of four sizes take.

python -m pytest -m slow tests/planning/test_memory.py -rP
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.make_encoded import make_encoded
from tests.pretraining.training_runs import CPU, model_of, plan_of, spawn
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream.stream import accumulation_for, micro_batches
from twilbert.evaluation import scoring
from twilbert.model.config import ModelConfig
from twilbert.planning import whole
from twilbert.planning.devices import device_of
from twilbert.pretraining.engine import make_engine
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Recipe

STEPS, BOUND = 2, 0.10
# glibc keeps freed blocks, and oneDNN a compiled product for every new shape, together several times what is in use.
RETURNED_AT_ONCE = {
    "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_TOP_PAD_": "0", "MALLOC_ARENA_MAX": "2", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    "LRU_CACHE_CAPACITY": "16",
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A recipe to plan and to train, with settings that replace its own."""

    recipe: str
    vocab_size: int
    overrides: tuple[str, ...] = ()


SMALL = ("model.hidden_size=256", "model.n_heads=4", "model.attention_size=64", "training.global_batch_size=128",
         "training.micro_batch_tokens=4096")  # fmt: skip
SIZES = {
    "tiny": Size("tiny.yaml", 8000, ("training.global_batch_size=128",)),
    "fp32": Size("base.yaml", 20000, (
        *SMALL, "model.embedding_size=256", "model.n_encoders=3", "corpus.max_len=64", "training.zero_stage=0",
        "training.precision=fp32")),
    "shared, memory": Size("xlarge.yaml", 20000, (
        *SMALL, "model.embedding_size=64", "model.n_encoders=6", "model.pkm_params.memory_size=128",
        "model.pkm_params.in_layers=[4]", "model.pkm_params.k_dim=128")),
    "Base": Size("base.yaml", 30002, ("training.global_batch_size=128", "training.micro_batch_tokens=4096")),
}  # fmt: skip
NOTHING = Size("tiny.yaml", 200, (
    "model.hidden_size=32", "model.embedding_size=32", "model.n_heads=2", "training.global_batch_size=32"))  # fmt: skip
"""A model of next to no tensors: what its process takes, every process does."""


def prepared(size: Size, folder: Path) -> tuple[Recipe, str, EncodedCorpus]:
    """The recipe, its precision here, and a corpus of random ids: tweets of 3 to 45 tokens, or max_len."""
    recipe = loading.load(size.recipe, [*size.overrides, "training.schedule=constant", "training.learning_rate=1e-4"])
    precision = "fp32" if recipe.training.precision == "fp32" else "bf16"
    max_len = recipe.corpus.max_len
    encoded = make_encoded(
        folder, [2000] * 4, vocab_size=size.vocab_size, max_len=max_len, lengths=(3, min(45, max_len))
    )
    return recipe, precision, encoded


def peak_of_training(rank: int, world: int, recipe: Recipe, precision: str, folder: str) -> int:
    """The resident peak in bytes of this process, in which nothing else was done."""
    torch.set_num_threads(2)
    encoded = EncodedCorpus.open(folder)
    training = recipe.training
    accumulation = accumulation_for(encoded, "train", training.global_batch_size, 1, training.micro_batch_tokens)
    engine, optimizer = make_engine(recipe, model_of(recipe, encoded), precision, accumulation, 1)
    for batch in micro_batches(plan_of(recipe, encoded, 1, accumulation), 0, 0, STEPS):
        optimizer.update, optimizer.learning_rate = batch.step + 1, 1e-4
        out = engine(*scoring.tensors(batch, CPU))
        engine.backward(out.mlm_loss_sum + out.rop_loss_sum)
        engine.step()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.fixture(scope="module")
def process_bytes(tmp_path_factory) -> Iterator[int]:
    """What a training process takes without its tensors, with the allocator's settings as all of them have it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RETURNED_AT_ONCE.items():
            patch.setenv(name, value)
        recipe, precision, encoded = prepared(NOTHING, tmp_path_factory.mktemp("nothing"))
        yield spawn(peak_of_training, 1, recipe, precision, encoded.path)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_the_planned_peak_is_that_of_training(name, process_bytes, tmp_path):
    size = SIZES[name]
    recipe, precision, encoded = prepared(size, tmp_path / "encoded")
    plan = whole.make_plan(
        recipe, ModelConfig.from_dict(recipe.architecture(size.vocab_size)), device_of("cpu", 1e12), devices=1,
        precision=precision, lengths=whole.lengths_of(encoded, recipe), encoded=encoded,
    )  # fmt: skip
    planned = plan["memory"]["own"]["peak"] + process_bytes
    measured = spawn(peak_of_training, 1, recipe, precision, encoded.path)[0]
    off = planned / measured - 1
    print(f"{name}: planned {planned / 1e9:.3f} GB, {process_bytes / 1e9:.3f} of it the process; measured "
          f"{measured / 1e9:.3f} GB, off by {off:+.1%}")  # fmt: skip
    assert abs(off) <= BOUND
