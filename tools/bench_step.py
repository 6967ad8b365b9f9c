"""Measure a training step against transformers' and against the machine: same pairs, same sizes, one run.

    python -m tools.bench_step CORPUS/encoded/FINGERPRINT [--sizes base] [--dtypes fp32,bf16] [--repeats 3]
        [--seconds 200] [--json OUT.json]

A step is forward, backward, accumulation and optimiser over `--accumulation` micro-batches of `--tokens` padded tokens
in the mean. The arms, each in a process of its own, take turns; figures are medians over the turns:

    twilbert               stream ─▶ DeepSpeed engine ─▶ the recipe's optimiser, as twilbert-pretrain drives them
    transformers           BertForPreTraining, batches drawn at random and padded to their longest sample
    transformers, grouped  the same with batches of like lengths (train_sampling_strategy="group_by_length")
    GEMM                   matrix products alone: square, and the model's own

transformers' arms run the loop of its Trainer with its defaults: DataCollatorForLanguageModeling in the loop, fused
AdamW, clipping, fp32 weights, bf16 by autocast. Its model gets no dropout, as ours has none; where heads are narrower
than hidden_size / n_heads its projections are made as narrow, and where layers share a block its do (it has no memory
layers and no narrow embeddings: those stay a feed-forward layer and wide). All arms see samples of the same steps of
the corpus. Of each step's (or epoch's) micro-batches those are run whose padding and size are nearest the whole's.

Useful FLOPs: 6 for every real token and weight of the blocks, and every masked position and weight of the vocabulary
head, attention scores left out. "share" is of the fastest GEMM of that dtype. Padding is the share of computed
positions that hold no token. The update of fewer tokens weighs more: "even updates" has every arm's update spread over
the tokens of a whole step of `--batch` samples.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.peer_step import peer_turn
from tools.turns import WARM_UP, Arms, PeakMemory, Turn, clock
from twilbert import cli
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream.micro_batch import MicroBatch
from twilbert.data.stream.order import StreamPlan
from twilbert.data.stream.stream import accumulation_for, micro_batches
from twilbert.evaluation import scoring
from twilbert.model.config import ModelConfig
from twilbert.model.flops import device_peak, useful_flops
from twilbert.pretraining.host_memory import allocator_environment
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Recipe

OURS, PEER, GROUPED = "twilbert", "transformers", "transformers, grouped"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
POOL_STEPS = 8  # steps whose samples transformers' arms draw from

Options = dict[str, Any]
"""encoded, tokens, batch, accumulation, device: what every arm is told."""


def device_of(options: Options) -> torch.device:
    """Where the arm works."""
    return torch.device(options["device"])


def recipe_of(size: str, dtype: str, options: Options) -> Recipe:
    """The shipped recipe of that size over the corpus at hand."""
    encoded = EncodedCorpus.open(options["encoded"])
    length, batch = f"corpus.max_len={encoded.max_len}", f"training.global_batch_size={options['batch']}"
    warm = ["training.warmup_steps=100", "training.max_steps=10000"]
    return loading.load(f"{size}.yaml", [length, batch, *warm, f"training.precision={dtype}"])


def config_of(recipe: Recipe, options: Options) -> ModelConfig:
    """The model's sizes with the corpus's vocabulary."""
    return ModelConfig.from_dict(recipe.architecture(EncodedCorpus.open(options["encoded"]).vocab_size))


def representative(costs: list[tuple[int, int]], n: int) -> list[int]:
    """Which n of the micro-batches, given as (padded, real) tokens, have means nearest to those of all; ascending."""
    cost = np.array(costs, np.float64)
    rng = np.random.default_rng(0)
    every = combinations(range(len(cost)), n)
    choices = [*islice(every, 20_000), *(tuple(sorted(rng.permutation(len(cost))[:n])) for _ in range(2000))]
    means = np.array([cost[list(choice)].mean(0) for choice in choices])
    return [int(i) for i in choices[int(np.abs(means / cost.mean(0) - 1).sum(1).argmin())]]


# ---- the arms, each in its own process -----------------------------------------------------------------------------


def stream_plan(options: Options) -> StreamPlan:
    """Steps of `batch` samples in micro-batches of `tokens` padded ones or somewhat more."""
    encoded = EncodedCorpus.open(options["encoded"])
    at_most = accumulation_for(encoded, "train", options["batch"], 1, options["tokens"])
    return StreamPlan(encoded, 0, options["batch"], 1, max(options["accumulation"], at_most - 1))


def twilbert_turn(size: str, dtype: str, options: Options) -> Turn:
    """A step of the recipe's engine over some of a step's micro-batches, which pay their part of the stream."""
    import torch.distributed as dist

    from twilbert.model.heads import PretrainingModel
    from twilbert.model.memory import update_running_statistics
    from twilbert.optim.schedules import learning_rate
    from twilbert.pretraining.engine import import_deepspeed, make_engine

    device, n = device_of(options), options["accumulation"]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed looks for them
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    import_deepspeed()
    memory = PeakMemory(device)
    recipe = recipe_of(size, dtype, options)
    config, plan = config_of(recipe, options), stream_plan(options)
    torch.manual_seed(0)
    engine, optimizer = make_engine(recipe, PretrainingModel(config), dtype, n, 1)
    stream = micro_batches(plan, 0, 0, recipe.training.max_steps)
    first = list(islice(stream, plan.accumulation))
    chosen = representative([(m.padded_tokens, m.real_tokens) for m in first], n)

    def turn(asked: str | None) -> dict[str, Any]:  # all of it: an engine accumulates as often as it was told to
        found: dict[str, Any] = {"padded": 0, "real": 0, "masked": 0}
        with clock(device, found, "stream_seconds"):
            step = list(islice(stream, plan.accumulation))
        mine = [step[i] for i in chosen]
        found["step_real"] = sum(m.real_tokens for m in step)
        masked, replied = sum(len(m.masked_index) for m in mine), sum(int((m.rop_labels >= 0).sum()) for m in mine)
        optimizer.update += 1
        optimizer.learning_rate = learning_rate(recipe, optimizer.update)
        sums = scoring.zero_sums(device)
        for number, micro_batch in enumerate(mine):
            last = number + 1 == n
            with clock(device, found):
                torch.manual_seed(number)
                out = engine(*scoring.tensors(micro_batch, device))
                loss = out.mlm_loss_sum / max(1, masked) + out.rop_loss_sum / max(1, replied)
                engine.backward(loss * n)
                sums += scoring.sums_of(out, micro_batch)
            with clock(device, found, "update_seconds" if last else "seconds"):
                engine.step()
            count(found, micro_batch)
        update_running_statistics(engine.module)
        found["seconds"] += found.pop("stream_seconds") * found["real"] / found["step_real"]
        found["loss"] = float(sums[0] / masked)
        return found | {"peak_bytes": memory.bytes()}

    return turn


def count(found: dict[str, Any], micro_batch: MicroBatch) -> None:
    """Add a micro-batch's tokens."""
    found["padded"] += micro_batch.padded_tokens
    found["real"] += micro_batch.real_tokens
    found["masked"] += len(micro_batch.masked_index)


def transformers_turn(size: str, dtype: str, options: Options, grouped: bool) -> Turn:
    """A step of transformers' loop over samples of the steps that the stream begins with."""
    plan = stream_plan(options)
    pool = list(islice(micro_batches(plan, 0, 0, POOL_STEPS), POOL_STEPS * plan.accumulation))
    config = config_of(recipe_of(size, dtype, options), options)
    return peer_turn(config, DTYPES[dtype], pool, options, grouped, representative)


def gemm_turn(sizes: list[str], dtypes: list[str], options: Options) -> Turn:
    """FLOP/s of matrix products by dtype: square, and each size's own, forward and backward, all taken together."""
    device = device_of(options)
    side = 4096 if device.type == "cpu" else 8192
    products: dict[str, list[tuple[int, int, int]]] = {
        f"{side}³": [(side, side, side)], "2048×768×3072": [(2048, 768, 3072)] * 8
    }  # fmt: skip
    for size in sizes:
        config = config_of(recipe_of(size, dtypes[0], options), options)
        h, a, m = config.hidden_size, config.attention_width, options["tokens"]
        maps = [(m, h, 3 * a), (m, a, h), (m, h, 4 * h), (m, 4 * h, h), (m * 15 // 100, h, config.vocab_size)]
        # y = x·Wᵀ, its gradients dy·W and xᵀ·dy
        products[f"{size}'s own"] = [p for r, i, o in maps for p in ((r, i, o), (r, o, i), (i, r, o))]

    def rate(shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> float:
        found: dict[str, float] = {}
        for m, k, n in shapes:
            a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype).t()
            a @ b
            with clock(device, found):
                a @ b
        return sum(2.0 * m * k * n for m, k, n in shapes) / found["seconds"]

    return lambda _: {d: {name: rate(shapes, DTYPES[d]) for name, shapes in products.items()} for d in dtypes}


# ---- the comparison ------------------------------------------------------------------------------------------------


def compare(args: argparse.Namespace, size: str, dtype: str, options: Options, gemm: Arms) -> dict[str, Any]:
    """All turns of one size in one dtype: {"turns": {arm: turns}, "gemm": turns}. No more arms than that at a time:
    together they hold the memory that each one's largest tensors take."""
    makers: dict[str, Any] = {OURS: (twilbert_turn, (size, dtype, options))}
    for name in () if args.alone else (PEER, GROUPED):
        makers[name] = (transformers_turn, (size, dtype, options, name == GROUPED))
    began = time.monotonic()
    # As pretrain starts its workers; transformers' Trainer leaves the allocator as it is.
    kept = allocator_environment() if options["device"] == "cpu" else {}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in makers}
    gemms: list[dict[str, Any]] = []
    for names in [[name] for name in makers] if args.apart else [list(makers)]:
        arms = Arms(args.threads, {name: makers[name] for name in names}, {OURS: kept})
        try:
            for name in names:
                arms.take(name, WARM_UP)  # the first one allocates
            for number in range(args.repeats):
                round_began = time.monotonic()
                gemms.append(gemm.take("GEMM")[dtype])
                for name in names:
                    turns[name].append(arms.take(name))
                now = time.monotonic()
                cli.say(f"{size}, {dtype}: round {number + 1} of {args.repeats}, {now - began:.0f} s")
                if now - began + (now - round_began) > args.seconds:
                    break
        finally:
            arms.close()
    return {"turns": turns, "gemm": gemms}


def summarise(size: str, dtype: str, options: Options, found: dict[str, Any]) -> dict[str, Any]:
    """Medians of one size's turns in one dtype: {"gemm": …, arm: figures}."""
    config = config_of(recipe_of(size, dtype, options), options)
    rates = {kind: statistics.median(each[kind] for each in found["gemm"]) for kind in found["gemm"][0]}
    whole = statistics.median(each["step_real"] for each in found["turns"][OURS])
    arms = {name: figures(config, turns, max(rates.values()), whole) for name, turns in found["turns"].items()}
    return {"gemm": rates} | arms


def figures(config: ModelConfig, turns: list[dict[str, Any]], gemm: float, whole: float) -> dict[str, float]:
    """One arm's medians. `whole`: real tokens of a step of the whole batch."""

    def median(key: str) -> float:
        return statistics.median(turn[key] for turn in turns)

    def rate(per: Any) -> float:
        return statistics.median(per(turn) / (turn["seconds"] + turn["update_seconds"]) for turn in turns)

    flops = rate(lambda t: useful_flops(config, t["real"], t["masked"]))
    even = [t["seconds"] / t["real"] + t["update_seconds"] / whole for t in turns]
    return {
        "tokens_per_second": rate(lambda t: t["real"]), "even_updates_tokens_per_second": 1 / statistics.median(even),
        "useful_flops": flops, "share_of_gemm": flops / gemm, "padding": 1 - median("real") / median("padded"),
        "padded": median("padded"),
        "update_share": statistics.median(t["update_seconds"] / (t["seconds"] + t["update_seconds"]) for t in turns),
        "peak_bytes": max(turn["peak_bytes"] for turn in turns), "page_faults": median("page_faults"),
        "system_seconds": median("system_seconds"), "user_seconds": median("user_seconds"), "turns": len(turns),
    }  # fmt: skip


def report(size: str, summary: dict[str, Any], accumulation: int, peak: float | None) -> None:
    """One size's table. `peak`: bf16 FLOP/s of the device's data sheet."""
    rows, shares = [], []
    for dtype, arms in summary.items():
        gemm = ", ".join(f"{kind} {rate / 1e9:,.0f}" for kind, rate in arms["gemm"].items())
        print(f"{size}, {dtype}: GEMM in GFLOP/s: {gemm}")
        ours = arms[OURS]
        for name, f in arms.items():
            if name == "gemm":
                continue
            per_micro = f["padded"] / accumulation
            times = f"{ours['tokens_per_second'] / f['tokens_per_second']:.2f}"
            even = f"{ours['even_updates_tokens_per_second'] / f['even_updates_tokens_per_second']:.2f}"
            rows.append(
                [dtype, name, f"{f['tokens_per_second']:,.0f}", times, even, f"{f['useful_flops'] / 1e9:,.0f}",
                 f"{100 * f['share_of_gemm']:.0f} %", f"{100 * f['padding']:.0f} %", f"{per_micro:,.0f}",
                 f"{f['peak_bytes'] / 2**30:.2f}", f"{100 * f['update_share']:.1f} %", int(f["turns"])]
            )  # fmt: skip
        if peak and dtype == "bf16":
            shares.append(f"{size}, bf16: {100 * ours['useful_flops'] / peak:.1f} % of {peak / 1e12:g} TFLOP/s (MFU)")
    cli.table(
        ["dtype", "arm", "real tokens/s", "ours is", "even updates", "GFLOP/s", "share", "padding", "padded/micro",
         "peak GiB", "update", "turns"],
        rows,
    )  # fmt: skip
    print("\n".join(shares), flush=True)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoded", help="an encoded corpus folder")
    parser.add_argument("--sizes", default="base", type=lambda text: text.split(","), help="tiny,base,large,xlarge")
    parser.add_argument("--dtypes", default="fp32,bf16", type=lambda text: text.split(","))
    parser.add_argument("--repeats", type=int, default=3, help="rounds of turns, after one that is not counted")
    parser.add_argument("--seconds", type=float, default=200, help="of a size in a dtype: no round may pass them")
    parser.add_argument("--batch", type=int, default=2048, help="samples of the steps that are drawn from")
    parser.add_argument("--tokens", type=int, default=8192, help="padded tokens a micro-batch, in the mean, or more")
    parser.add_argument("--accumulation", type=int, default=2, help="micro-batches of a measured step")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of an arm")
    parser.add_argument("--alone", action="store_true", help="without transformers")
    parser.add_argument("--apart", action="store_true", help="one arm after the other, where memory holds no two")
    parser.add_argument("--json", type=Path, help="where to write the figures, every turn's too")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keys = ("encoded", "tokens", "batch", "accumulation")
    options = {key: getattr(args, key) for key in keys} | {"device": device}
    gemm = Arms(args.threads, {"GEMM": (gemm_turn, (args.sizes, args.dtypes, options))})
    record: dict[str, Any] = options | {"encoded": Path(args.encoded).name, "threads": args.threads, "sizes": {}}
    try:
        gemm.take("GEMM", WARM_UP)
        for size in args.sizes:
            medians, turns = {}, {}
            for dtype in args.dtypes:
                turns[dtype] = compare(args, size, dtype, options, gemm)
                medians[dtype] = summarise(size, dtype, options, turns[dtype])
            record["sizes"][size] = {"medians": medians, "turns": turns}
            report(size, medians, args.accumulation, device_peak(torch.device(device)))
            if args.json:  # after every size: a long run that is cut short keeps what it has
                args.json.write_text(json.dumps(record, indent=1) + "\n")
    finally:
        gemm.close()
    if args.json:
        print(f"written: {args.json}")


if __name__ == "__main__":
    main()
