"""Generated data to try things with: `sample pairs` writes raw conversations whose entropies are known exactly.

DIR/pairs.tsv     ORIG_ID, ORIG_TEXT, REPLY_ID, REPLY_TEXT: raw, as tweets come
DIR/sample.json   what a model can learn from them, in nats per word, and how many lines `prepare` should drop
"""

from __future__ import annotations

import argparse
import inspect
import time
from dataclasses import asdict
from typing import Any

from twilbert import cli, storage
from twilbert.data.generator import Figures, figures
from twilbert.data.generator_lines import BATCH_LINES, HEADER, draw_lines
from twilbert.errors import UsageError

FORMAT = 1


def sample_pairs(out: str, pairs: int = 60_000, seed: int = 0, *, overwrite: bool = False) -> dict[str, Any]:
    """Write `pairs` lines of raw (tweet, reply) pairs to OUT/pairs.tsv; returns what OUT/sample.json holds.

    The same seed gives the same lines, and fewer of them are the first of more. About 1.5 in 100 are there to be
    dropped: repeats, too short ones, nothing but mentions and links; sample.json counts them under the reasons that
    `prepare` uses. Memory does not grow with `pairs`. UsageError for fewer than one pair or a negative seed.
    """
    if pairs < 1 or seed < 0:
        raise UsageError(f"--pairs {pairs} --seed {seed}: expected at least one pair and a seed from 0")
    target = storage.absolute(out)
    dropped = dict.fromkeys(("repeated", "too_short", "only_mentions_and_links"), 0)
    with storage.new_folder(target, overwrite=overwrite) as work:
        system, inner = storage.filesystem(storage.join(work, "pairs.tsv"))
        last = time.monotonic()
        with storage.explained_write(target), system.open_output_stream(inner) as sink:
            sink.write(HEADER)
            for number, start in enumerate(range(0, pairs, BATCH_LINES)):
                batch = draw_lines(seed, number, min(BATCH_LINES, pairs - start))
                sink.write(batch.data)
                for reason in dropped:
                    dropped[reason] += getattr(batch, reason)
                if time.monotonic() - last > 5:
                    last = time.monotonic()
                    cli.say(f"drawn {start + batch.lines:,} of {pairs:,} pairs")
        info = {
            "format": FORMAT,
            "pairs": pairs,
            "seed": seed,
            "to_drop": dropped,
            "nats_per_word": asdict(figures()),
            "meaning": inspect.cleandoc(Figures.__doc__ or ""),
        }
        storage.write_json_atomic(storage.join(work, "sample.json"), info)
    return info


def _handle(args: argparse.Namespace) -> str:
    info = sample_pairs(args.out, args.pairs, args.seed, overwrite=args.overwrite)
    nats = info["nats_per_word"]
    cli.table(
        ["nats per word", "entropy"],
        [
            ["knowing nothing (unigram)", f"{nats['unigram']:.3f}"],
            ["one span of 1-3 words hidden, the rest known", f"{nats['span']:.3f}"],
            ["one word hidden, the rest known (perfect)", f"{nats['perfect']:.3f}"],
        ],
    )
    return (
        f"wrote {storage.join(storage.absolute(args.out), 'pairs.tsv')}: {info['pairs']:,} pairs, seed {info['seed']}; "
        f"best reply order accuracy {nats['best_rop_accuracy']:.3f}; figures in sample.json beside it"
    )


def main(argv: list[str] | None = None) -> int:
    """The command `twilbert-sample`."""
    parser = cli.parser(
        "sample",
        "Generated data to try things with. `pairs`: raw Spanish-looking conversations in which hidden words and the\n"
        "order of the reply can be learned, and the entropy a perfect model would reach is known.",
        "twilbert-sample pairs --out sample --pairs 60000",
    )
    parser.add_argument("what", choices=["pairs"], help="what to generate")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder or URI to write")
    parser.add_argument("--pairs", type=int, default=60_000, help="lines (60000)")
    parser.add_argument("--seed", type=int, default=0, help="which conversations are drawn (0)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at DIR")
    return cli.run(parser, _handle, argv)


if __name__ == "__main__":
    from twilbert.sample import main as _main

    raise SystemExit(_main())
