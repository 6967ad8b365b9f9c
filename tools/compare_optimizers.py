"""Curves of Adam and LAMB over the same samples of a corpus, at two batch sizes and several learning rates, as a PNG.

    python tools/compare_optimizers.py CORPUS TOKENIZER --work runs/arms --out arms.png --json arms.json

Every run is `twilbert-pretrain` of the same small model under ZeRO 1 with two workers; an arm is an optimiser and a
batch size, tried at a few learning rates; its best held-out loss is drawn strong, the others faint. Runs that exist are
resumed, so the command can be repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

SAMPLES = 2048 * 300  # that every run sees
ARMS = {  # (optimiser, batch) -> learning rates
    ("adam", 2048): (5e-4, 1e-3, 2e-3),
    ("lamb", 2048): (5e-3, 1e-2),
    ("lamb", 8192): (1e-2, 2e-2),
}
RECIPE = {
    "model.hidden_size": 128,
    "model.embedding_size": 128,
    "model.n_encoders": 2,
    "model.n_heads": 2,
    "corpus.max_len": 32,
    "training.schedule": "linear",
    "training.weight_decay": 0.01,
    "training.max_grad_norm": 1.0,
    "training.micro_batch_tokens": 8192,
    "training.precision": "bf16",
    "training.zero_stage": 1,
    "training.save_steps": 1_000_000,
    "cluster.num_workers": 2,
    "tracking.mode": "disabled",
}


def curve(optimizer: str, batch: int, rate: float, args: argparse.Namespace) -> list[tuple[int, float]]:
    """(samples seen, held-out MLM loss in nats) of one run."""
    steps = SAMPLES // batch
    name = f"{optimizer}-{batch}-{rate:g}"
    settings = RECIPE | {
        "corpus.path": args.corpus,
        "corpus.tokenizer": args.tokenizer,
        "run.name": name,
        "run.storage_path": args.work,
        "training.optimizer": optimizer,
        "training.learning_rate": rate,
        "training.global_batch_size": batch,
        "training.max_steps": steps,
        "training.warmup_steps": steps // 10,
        "training.eval_steps": max(1, 20 * 2048 // batch),
        "training.logging_steps": max(1, 5 * 2048 // batch),
    }
    recipe = Path(args.work) / "empty.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text("run: {}\n")
    command = [sys.executable, "-m", "twilbert.pretrain", str(recipe), *(f"{k}={v}" for k, v in settings.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    rows = [json.loads(line) for line in (Path(args.work) / name / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"] * batch, row["valid/mlm_loss"]) for row in rows if "valid/mlm_loss" in row]


def draw(found: dict[str, dict[str, list[tuple[int, float]]]], path: str) -> None:
    """The curves as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), constrained_layout=True)
    for arm, colour in zip(found, ("tab:gray", "tab:blue", "tab:orange"), strict=True):
        best = min(found[arm], key=lambda rate: found[arm][rate][-1][1])
        for rate, points in found[arm].items():
            label = f"{arm}, learning rate {rate}" if rate == best else None
            xs, ys = [x / 1e3 for x, _ in points], [y for _, y in points]
            axes.plot(xs, ys, color=colour, lw=2 if label else 1, alpha=1 if label else 0.35, label=label)
            axes.annotate(rate, (xs[-1], ys[-1]), xytext=(3, 0), textcoords="offset points", fontsize=7, color=colour)
    axes.set(xlabel="directed samples seen, thousands", ylabel="held-out MLM loss, nats", title="Same samples, ZeRO 1")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)


def main() -> int:
    """Run every arm, print the table, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("tokenizer")
    parser.add_argument("--work", required=True, help="folder for the runs")
    parser.add_argument("--out", required=True, help="PNG")
    parser.add_argument("--json", help="where the curves go as numbers")
    args = parser.parse_args()
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for (optimizer, batch), rates in ARMS.items():
        arm = f"{optimizer.upper() if optimizer == 'lamb' else 'Adam'}, {batch:,} a step"
        found[arm] = {}
        for rate in rates:
            found[arm][f"{rate:g}"] = points = curve(optimizer, batch, rate, args)
            print(f"{arm:22}  {rate:8g}  {points[-1][1]:.3f}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(found))
    draw(found, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
