"""Score a model: masked words and reply order on held-out pairs, the pseudo-likelihood of texts, given orders."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from twilbert import cli, outputs, storage
from twilbert.errors import UsageError
from twilbert.evaluation import scores as evaluation
from twilbert.hub.folder import find_model
from twilbert.parsing import read_record


def _show_pairs(scores: Mapping[str, Any]) -> None:
    rows = [
        ["MLM loss at [MASK] positions", scores["mlm_loss_at_mask"], scores["unigram_loss_at_mask"]],
        ["MLM loss at all masked positions", scores["mlm_loss"], scores["context_free_loss"]],
        ["perplexity at [MASK] positions", scores["mlm_perplexity_at_mask"], np.exp(scores["unigram_loss_at_mask"])],
        ["perplexity at all masked positions", scores["mlm_perplexity"], np.exp(scores["context_free_loss"])],
        ["MLM accuracy at [MASK] positions", scores["mlm_accuracy_at_mask"], None],
        ["MLM accuracy", scores["mlm_accuracy"], None],
    ]
    if "rop_loss" in scores:
        rows += [["ROP loss", scores["rop_loss"], float(np.log(2))], ["ROP accuracy", scores["rop_accuracy"], 0.5]]
    cells = [[name, _short(value), "" if other is None else _short(other)] for name, value, other in rows]
    cli.table(["score (losses in nats)", "model", "without context"], cells)


def _show_texts(scores: Mapping[str, Any]) -> None:
    rows = [
        ["pseudo-log-likelihood per token, over all tokens", f"{scores['log_likelihood_per_token']:.3f}"],
        ["pseudo-perplexity", _short(scores["pseudo_perplexity"])],
        ["pseudo-log-likelihood per token, mean over texts", f"{scores['log_likelihood_per_text']:.3f}"],
        ["the original's P(X): the same, [CLS] and [SEP] counted", f"{scores['original_log_likelihood']:.3f}"],
    ]
    cli.table(["score (nats)", "model"], rows)


def _show_orders(scores: Mapping[str, Any]) -> None:
    right = f"{scores['rop_correct']} of {scores['rows']}"
    rows = [["ROP right", right], ["ROP accuracy", f"{scores['rop_accuracy']:.3f}"]]
    cli.table(["score (losses in nats)", "model"], [*rows, ["ROP loss", f"{scores['rop_loss']:.3f}"]])


def _short(value: float) -> str:
    return f"{value:.3f}" if value < 1000 else f"{value:,.0f}"


@dataclass(frozen=True)
class _Entropy:
    span: float
    perfect: float


@dataclass(frozen=True)
class _Sample:
    """The part of sample.json that is read."""

    nats_per_word: _Entropy


def _compare_with_sample(scores: dict[str, Any], path: str) -> str:
    """Compare the model's loss with word frequencies and the generator's entropy (sample.json)."""
    entropy = read_record(path, _Sample).nats_per_word
    start, model = scores["unigram_loss_at_mask"], scores["mlm_loss_at_mask"]
    shares = {name: (start - model) / (start - getattr(entropy, name)) for name in ("span", "perfect")}
    scores["share_of_the_way"] = shares
    return (
        f"at [MASK]: {start - model:.2f} nats under word frequencies; of the way to the generator's own entropy "
        f"{100 * shares['span']:.0f} % where a span is hidden ({entropy.span:.2f} nats), "
        f"{100 * shares['perfect']:.0f} % where one word is ({entropy.perfect:.2f} nats)"
    )


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "evaluate",
        "Score a model on a corpus' held-out split or on raw pairs; with --lm on texts, with --orders on given orders.",
        "twilbert-evaluate runs/tiny-1a2b3c4d corpus --report scores.html\n"
        "  twilbert-evaluate runs/tiny-1a2b3c4d tweets.txt --lm --examples tweets.jsonl",
    )
    parser.add_argument("model", metavar="MODEL", help="model folder, checkpoint, run folder or run name")
    parser.add_argument(
        "data",
        metavar="DATA",
        help="corpus folder (its valid split), or raw pairs (TSV, CSV, JSONL, Parquet); with --lm also a text file",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--lm", action="store_true", help="pseudo-log-likelihood of texts, one on each line of DATA")
    kind.add_argument(
        "--orders", action="store_true", help="reply order of DATA's rows FIRST, SECOND, 1 (second replies) or 0 (TSV)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the scores there")
    parser.add_argument(
        "--examples", metavar="FILE", help="also write every example with its scores there (JSON lines)"
    )
    parser.add_argument("--report", metavar="FILE", help="also write a page to look at there (HTML, needs no network)")
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        default=evaluation.SAMPLES,
        help=f"how many pairs or texts the page shows (default: {evaluation.SAMPLES})",
    )
    parser.add_argument("--train", metavar="CORPUS", help="count word frequencies in this corpus' train split")
    parser.add_argument("--sample", metavar="FILE", help="sample.json of generated data: compare with its entropy")
    parser.add_argument("--masking", choices=["span", "token"], default="span", help="as in training (default: span)")
    parser.add_argument(
        "--cleaning",
        choices=["ours", "original"],
        default="ours",
        help="of --lm and --orders: as everywhere, or as the original cleaned, to compare with its figures",
    )
    parser.add_argument("--max-len", type=int, metavar="N", help="cut texts at N tokens (default: the model's max_len)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the masks and of what the page shows (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace files of these names that it did not write")
    return parser


def _check(args: argparse.Namespace) -> None:
    """UsageError for flags that do not go together."""
    alone = next((flag for flag in ("lm", "orders") if getattr(args, flag)), None)
    for flag in ("train", "sample"):
        if alone and getattr(args, flag):
            raise UsageError(f"--{flag} is for the evaluation of pairs; leave it out, or leave out --{alone}")
    if not alone and args.cleaning != "ours":
        raise UsageError("--cleaning original is for --lm and --orders")
    if args.samples < 0:
        raise UsageError(f"--samples {args.samples}: expected 0 or more")
    if args.max_len is not None and args.max_len < 1:
        raise UsageError(f"--max-len {args.max_len}: expected at least 1 token")
    named = {"--json": args.json, "--examples": args.examples, "--report": args.report}
    reads = filter(None, [find_model(args.model), args.data, args.train, args.sample])
    outputs.check_files(named, "evaluate", overwrite=args.overwrite, inputs=reads)


def _command(args: argparse.Namespace) -> str:
    _check(args)
    out = {"examples": args.examples, "report": args.report, "max_len": args.max_len}
    show: Callable[[Mapping[str, Any]], None]
    if args.lm:
        scores = evaluation.evaluate_texts(
            args.model, args.data, cleaning=args.cleaning, seed=args.seed, n_samples=args.samples, **out
        )
        done, show = f"{scores['texts']:,} texts", _show_texts
    elif args.orders:
        scores = evaluation.evaluate_orders(
            args.model, args.data, cleaning=args.cleaning, n_samples=args.samples, **out
        )
        done, show = f"{scores['rows']:,} rows", _show_orders
    else:
        scores = evaluation.evaluate_pairs(
            args.model, args.data, train=args.train, masking=args.masking, seed=args.seed, n_samples=args.samples, **out
        )
        done, show = f"{scores['pairs']:,} pairs and {scores['singles']:,} single tweets", _show_pairs
    show(scores)
    if args.sample:
        print(_compare_with_sample(scores, args.sample))
    if args.json:
        storage.write_bytes_atomic(args.json, outputs.marked_json(scores, "evaluate"))
    named = (("scores", args.json), ("examples", args.examples), ("report", args.report))
    written = [f"{what} in {storage.absolute(path)}" for what, path in named if path]
    return "; ".join([f"{done} of {scores['data']}", *written])


def main(argv: list[str] | None = None) -> int:
    """The command twilbert-evaluate."""
    return cli.run(_parser(), _command, argv)


if __name__ == "__main__":
    from twilbert.evaluate import main as _main

    raise SystemExit(_main())
