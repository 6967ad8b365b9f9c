"""Estimate what a pre-training run needs before anything is started: memory, hours, disk, on any devices."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from twilbert import cli, outputs, storage
from twilbert.devices import device_computes_bf16, usable_cores
from twilbert.errors import UsageError
from twilbert.planning.devices import KINDS, device_of
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Recipe

VOCAB_SIZE = 30_002
"""Entries of the vocabulary without a tokenizer and --vocab-size: the released models'."""
_PLOTS = ("png", "svg")
_MOST_DEVICES, _LARGEST = 2**13, 2**31 - 1


def plan(
    recipe: Recipe,
    *,
    devices: int,
    kind: str,
    vocab_size: int | None = None,
    tweet_tokens: float | None = None,
    flops: float | None = None,
    measure: bool = False,
) -> dict[str, Any]:
    """Return the plan of `recipe` on `devices` devices of a kind, with its assumptions.

    `flops`: of a CPU, FLOP/s of large matrix products; `measure`: time this machine's CPU instead. The recipe's corpus
    and tokenizer are read where they exist. UsageError for arguments that do not fit together.
    """
    from twilbert.model.config import ModelConfig
    from twilbert.planning import whole
    from twilbert.pretraining.initial_model import inherit

    _check(devices, kind, flops, measure=measure)
    recipe = loading.absolute_paths(inherit(recipe))
    encoded, known_size, notes = _data(recipe)
    if known_size is None or vocab_size is not None:
        known_size = vocab_size or VOCAB_SIZE
        notes.append(f"a vocabulary of {known_size:,} entries")
    config = ModelConfig.from_dict(recipe.architecture(known_size))
    precision = _precision(recipe, kind)
    lengths = whole.lengths_of(encoded, recipe, tweet_tokens)
    device, rates = device_of(kind, flops), None
    if measure:
        import torch

        torch.set_num_threads(recipe.cluster.threads_per_worker or usable_cores())
        cli.say(f"measuring this machine on {torch.get_num_threads()} threads")
        rates = whole.measured_rates(recipe, config, lengths, precision)
        device = device_of(kind, rates.matrix, rates.stream)
        notes.append(f"a worker has {torch.get_num_threads()} threads of this machine")
    if encoded is None:
        notes.append(f"tweets of {tweet_tokens or whole.TWEET_TOKENS:g} tokens in the median")
    return whole.make_plan(
        recipe, config, device, devices=devices, precision=precision, lengths=lengths, rates=rates, encoded=encoded,
        notes=notes,
    )  # fmt: skip


def _check(devices: int, kind: str, flops: float | None, *, measure: bool) -> None:
    """Raise UsageError for arguments that do not fit together."""
    if not 1 <= devices <= _MOST_DEVICES:
        raise UsageError(f"--gpus {devices}: expected 1 to {_MOST_DEVICES:,} devices")
    if flops is not None and not 0 < flops < math.inf:
        raise UsageError(f"--flops {flops:g}: expected FLOP/s of large matrix products, e.g. 850e9")
    if kind == "cpu" and measure == (flops is not None):
        raise UsageError(
            "--kind cpu: give --measure, which times this machine for a few seconds, or --flops F, the FLOP/s that "
            "large matrix products reach on one worker's cores, e.g. 850e9; one of the two"
        )
    if kind != "cpu" and (measure or flops is not None):
        raise UsageError(f"--kind {kind}: its rates come from its data sheet; leave out --measure and --flops")


def _data(recipe: Recipe) -> tuple[Any, int | None, list[str]]:
    """Return the encoded corpus and the vocabulary's size, None where unknown, and notes on what is missing."""
    from twilbert.data.corpus.corpus import Corpus
    from twilbert.data.encoded import encode
    from twilbert.data.tokenizer.tokenizer import TOKENIZER_FILE, Tokenizer
    from twilbert.hub.folder import ModelFolder

    source = recipe.model.init_from
    if not storage.exists(storage.join(recipe.corpus.tokenizer, TOKENIZER_FILE)):
        return None, ModelFolder.open(source).config.vocab_size if source else None, []
    tokenizer = Tokenizer.load(recipe.corpus.tokenizer)
    if not storage.exists(storage.join(recipe.corpus.path, "corpus.json")):
        return None, tokenizer.vocab_size, []
    encoded = encode.find(Corpus.open(recipe.corpus.path), tokenizer, recipe.corpus.max_len)
    missing = [] if encoded else [f"{recipe.corpus.path} is not encoded yet, so its lengths are not known"]
    return encoded, tokenizer.vocab_size, missing


def _precision(recipe: Recipe, kind: str) -> str:
    """Return fp32 or bf16; auto as on such devices."""
    training = recipe.training
    if training.precision != "auto":
        return training.precision
    computes = device_computes_bf16(False) if kind == "cpu" else True
    return "bf16" if training.zero_stage > 0 and computes else "fp32"


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "plan",
        "Estimate what a pre-training run needs: parameters, memory by ZeRO stage, hours on 1 to 512 devices, disk.",
        "twilbert-plan recipes/large.yaml --gpus 8 --kind h100 --plot plan.png\n"
        "  twilbert-plan recipes/tiny.yaml --gpus 1 --kind cpu --measure training.max_steps=200",
    )
    parser.add_argument("recipe", help="YAML file, or the name of a shipped recipe (recipes/base.yaml)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")
    parser.add_argument(
        "--gpus", type=int, required=True, metavar="N", help="devices, one a worker (with cpu: workers)"
    )
    parser.add_argument("--kind", required=True, help=f"kind of device: {', '.join(KINDS)}")
    parser.add_argument("--json", metavar="FILE", help="also write the plan there")
    parser.add_argument("--plot", metavar="FILE", help="also draw it there (.png or .svg)")
    parser.add_argument("--measure", action="store_true", help="cpu: time this machine on the model's parts first")
    parser.add_argument("--flops", type=float, metavar="F", help="cpu: FLOP/s of large matrix products on a worker")
    parser.add_argument("--overwrite", action="store_true", help="replace files of these names that it did not write")
    parser.add_argument("--vocab-size", type=int, metavar="V", help="entries (default: the tokenizer's, else 30,002)")
    parser.add_argument("--tweet-tokens", type=float, metavar="M", help="median tokens of a tweet without a corpus")
    return parser


def _command(args: argparse.Namespace) -> str:
    suffix = Path(args.plot).suffix.lower().removeprefix(".") if args.plot else ""
    if args.plot and suffix not in _PLOTS:
        raise UsageError(f"--plot {args.plot}: expected a name that ends in .png or .svg")
    for flag, value in (("--vocab-size", args.vocab_size), ("--tweet-tokens", args.tweet_tokens)):
        if value is not None and not 1 <= value <= _LARGEST:
            raise UsageError(f"{flag} {value:g}: expected 1 to {_LARGEST:,}")
    from twilbert.planning import plot, tables

    if args.plot:
        plot.require_matplotlib()
    recipe = loading.load(args.recipe, args.overrides)
    data, source = recipe.corpus, recipe.model.init_from
    outputs.check_files(
        {"--json": args.json, "--plot": args.plot},
        "plan",
        overwrite=args.overwrite,
        inputs=[args.recipe, data.path, data.tokenizer, *([source] if source else [])],
    )
    estimate = plan(
        recipe, devices=args.gpus, kind=args.kind, vocab_size=args.vocab_size, tweet_tokens=args.tweet_tokens,
        flops=args.flops, measure=args.measure,
    )  # fmt: skip
    tables.show(estimate)
    written = []
    if args.json:
        storage.write_bytes_atomic(args.json, outputs.marked_json({"recipe": args.recipe} | estimate, "plan"))
        written.append(f"plan in {storage.absolute(args.json)}")
    if args.plot:
        storage.write_bytes_atomic(args.plot, plot.draw(estimate, suffix))
        written.append(f"picture in {storage.absolute(args.plot)}")
    own, total = estimate["time"]["own"], estimate["memory"]["own"]["total"]
    summary = (
        f"{args.gpus} x {args.kind}: {tables.size(total)} a device, {tables.duration(own['step'])} a step, "
        f"{tables.duration(own['hours'] * 3600)} in all, bound by {estimate['bound']}"
    )
    return "; ".join([summary, *written])


def main(argv: list[str] | None = None) -> int:
    """The command twilbert-plan."""
    return cli.run(_parser(), _command, argv)


if __name__ == "__main__":
    from twilbert.plan import main as _main

    raise SystemExit(_main())
