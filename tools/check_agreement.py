"""The same recipe through Ray, DeepSpeed and different cuts of the batch, against plain PyTorch on the whole batch.

    python tools/check_agreement.py corpus tokenizer --work /tmp/agreement

Runs 20 steps in fp32 at 1 and 2 workers, ZeRO 0 to 3, two accumulations, with clipping and without; prints the
largest relative difference of a step's loss from the plain loop's. Exit 1 when one is over 1e-4.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from twilbert import cli, recipe_file, scoring
from twilbert.data.encoded import EncodedCorpus
from twilbert.data.plan import StreamPlan
from twilbert.data.stream import micro_batches
from twilbert.data.tokenizer import Tokenizer
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.recipe import Recipe
from twilbert.train.optimizer import OPTIMIZERS
from twilbert.train.schedule import learning_rate
from twilbert.train.shards import Fragment

STEPS, BOUND = 20, 1e-4
RECIPE = [
    "training.precision=fp32", f"training.max_steps={STEPS}", "training.warmup_steps=5", "training.logging_steps=1",
    "training.eval_steps=1000", "training.save_steps=1000", "tracking.mode=disabled",
]  # fmt: skip
CUTS = {
    "1 worker, ZeRO 1": [],
    "1 worker, ZeRO 0": ["training.zero_stage=0"],
    "2 workers, ZeRO 1": ["cluster.num_workers=2"],
    "2 workers, ZeRO 2": ["cluster.num_workers=2", "training.zero_stage=2"],
    "2 workers, ZeRO 3": ["cluster.num_workers=2", "training.zero_stage=3"],
    "1 worker, ZeRO 1, another accumulation": ["training.micro_batch_tokens=700"],
}


def plain_losses(recipe: Recipe, encoded: EncodedCorpus) -> list[float]:
    """Each step's loss by autograd on the whole global batch in one process."""
    training = recipe.training
    torch.manual_seed(training.seed)
    model = PretrainingModel(ModelConfig.from_dict(recipe.architecture(encoded.vocab_size)))
    optimizer = OPTIMIZERS[training.optimizer](
        model.parameters(), beta1=training.beta1, beta2=recipe.beta2, epsilon=training.epsilon
    )
    named = dict(model.named_parameters())
    fragments = [Fragment(name, tuple(p.shape), 0, p.numel(), p, 0) for name, p in named.items()]
    optimizer.bind(fragments, {name: tuple(p.shape) for name, p in named.items()})
    plan = StreamPlan(encoded, training.seed, training.global_batch_size, 1, 1)
    losses = []
    for batch in micro_batches(plan, 0, 0, STEPS):
        out = model(*scoring.tensors(batch, torch.device("cpu")))
        assert batch.n_masked is not None
        loss = out.mlm_loss_sum / batch.n_masked + out.rop_loss_sum / batch.n_rop
        loss.backward()
        if training.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        optimizer.update = batch.step + 1
        optimizer.learning_rate = learning_rate(recipe, optimizer.update)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return losses


def command_losses(overrides: list[str], name: str, work: Path) -> list[float]:
    """Each step's loss by twilbert-pretrain, from its metrics."""
    command = [sys.executable, "-m", "twilbert.pretrain", "recipes/tiny.yaml", *overrides]
    done = subprocess.run(
        [*command, f"run.name={name}", f"run.storage_path={work}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    rows = [json.loads(line) for line in (work / name / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def main() -> int:
    """Run every cut and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("tokenizer")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs; what is there is replaced")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    data = [f"corpus.path={args.corpus}", f"corpus.tokenizer={args.tokenizer}"]
    rows, worst = [], 0.0
    for norm in (0.0, 1.0):
        settings = [*RECIPE, *data, f"training.max_grad_norm={norm}"]
        expected = None
        for number, (label, cut) in enumerate(CUTS.items()):
            losses = command_losses([*settings, *cut], f"run{norm:g}-{number}", args.work)
            if expected is None:  # the corpus is encoded now
                recipe = recipe_file.load("recipes/tiny.yaml", settings)
                fingerprint = Tokenizer.load(args.tokenizer).fingerprint
                expected = plain_losses(recipe, EncodedCorpus.open(args.corpus, fingerprint, recipe.corpus.max_len))
            assert len(losses) == STEPS
            difference = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
            worst = max(worst, difference)
            clipping = f"clipped to {norm:g}" if norm else "not clipped"
            rows.append([label, clipping, f"{expected[0]:.4f}", f"{losses[-1]:.4f}", f"{difference:.1e}"])
            cli.say(f"{label}, {clipping}: {difference:.1e}")
    cli.table(["cut", "gradient", "first loss", "last loss", "largest relative difference"], rows)
    print(f"bound {BOUND:g}: {'kept' if worst <= BOUND else 'BROKEN'}")
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    raise SystemExit(main())
