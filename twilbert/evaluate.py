"""Score a model on held-out pairs: masked words and reply order, beside the best predictor without context."""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

import numpy as np
import torch

from twilbert import cli, inference, scoring, storage
from twilbert.data.encoded import EncodedCorpus
from twilbert.data.heldout import encode_pairs, read_pairs, token_counts
from twilbert.data.microbatch import MicroBatch
from twilbert.data.objectives import MASK, N_SPECIAL, MaskingSettings
from twilbert.data.stream import evaluation_batches
from twilbert.data.tokenizer import Tokenizer
from twilbert.model.transformers_api import load_model_folder

_MICRO_BATCH_TOKENS = 8192


def evaluate(
    model: str,
    data: str,
    *,
    train: str | None = None,
    masking: str = "span",
    max_len: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """Scores of `model` (folder, checkpoint or run) on `data` (a corpus' valid split, or raw pairs).

    Losses in nats a masked token, accuracies from 0 to 1. `unigram_…` and `context_free_…` are the losses of predictors
    that know the words' frequencies alone: in the train split of corpus `train` (default: `data` where it is a corpus,
    else the evaluated pairs themselves); the second one also sees the word at the position, which random and kept
    tokens show. Masks depend on `seed` alone.
    """
    folder = inference.find_model(model)
    config, network = load_model_folder(folder)
    tokenizer = Tokenizer.load(folder)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network.to(where).eval()
    settings = MaskingSettings(kind=masking)  # pyright: ignore[reportArgumentType]
    corpus = train or (data if storage.exists(storage.join(storage.absolute(data), "corpus.json")) else None)
    counts = token_counts(read_pairs(corpus, "train") if corpus else read_pairs(data), tokenizer)
    with tempfile.TemporaryDirectory(prefix="twilbert-evaluate-") as scratch:
        encoded = encode_pairs(read_pairs(data), tokenizer, max_len or config.max_len, scratch)
        reference = _Frequencies(counts, settings)
        batches = reference.seen(_batches(encoded, settings, seed))
        sums = scoring.evaluate(network, batches, where)
        split = encoded.split("valid")
    return {
        "model": folder,
        "data": storage.absolute(data),
        "frequencies": f"train split of {corpus}" if corpus else "the evaluated pairs",
        "pairs": split.pairs,
        "singles": split.singles,
        "tokens": split.tokens,
        **{name: int(count) for name, count in scoring.counts_of(sums.tolist()).items()},
        **scoring.scores_of(sums.tolist()),
        **reference.losses(),
    }


def _batches(encoded: EncodedCorpus, settings: MaskingSettings, seed: int):
    return evaluation_batches(encoded, "valid", 0, 1, _MICRO_BATCH_TOKENS, settings, seed)


class _Frequencies:
    """Predictors that know how often each word occurs, and nothing of its neighbours.

    At [MASK] the best guess is the frequency u(y) itself. Elsewhere the visible token x was kept or drawn at random:
    p(y | x) = u(y) (keep·[x = y] + random/W) / (keep·u(x) + random/W), W the ordinary words.
    """

    def __init__(self, counts: np.ndarray, settings: MaskingSettings) -> None:
        ordinary = counts.astype(np.float64)
        ordinary[:N_SPECIAL] = 0
        ordinary[N_SPECIAL:] += 1  # a word never seen still has a chance
        self._share = ordinary / ordinary.sum()
        self._settings, self._words = settings, len(counts) - N_SPECIAL
        self._sums = {"at_mask": 0.0, "elsewhere": 0.0}
        self._n = {"at_mask": 0, "elsewhere": 0}
        self._labels = np.zeros(len(counts), np.int64)

    def seen(self, batches):
        """`batches` unchanged, their masked positions added up on the way."""
        for batch in batches:
            self._add(batch)
            yield batch

    def _add(self, batch: MicroBatch) -> None:
        label, shown = batch.masked_labels, batch.input_ids.reshape(-1)[batch.masked_index]
        known = (label >= N_SPECIAL) & (label < len(self._share))
        at_mask = (shown == MASK) & known
        self._labels += np.bincount(label[at_mask], minlength=len(self._labels))
        self._sums["at_mask"] -= float(np.log(self._share[label[at_mask]]).sum())
        self._n["at_mask"] += int(at_mask.sum())
        rest = (shown != MASK) & known
        y, x = label[rest], shown[rest]
        chance = self._settings.random / self._words
        joint = self._share[y] * (self._settings.keep * (x == y) + chance)
        self._sums["elsewhere"] -= float(np.log(joint / (self._settings.keep * self._share[x] + chance)).sum())
        self._n["elsewhere"] += int(rest.sum())

    def losses(self) -> dict[str, float]:
        """Mean losses in nats; `label_entropy_at_mask` is the labels' own entropy, which no frequencies can beat."""
        total, n = sum(self._sums.values()), max(1, sum(self._n.values()))
        share = self._labels[self._labels > 0] / max(1, self._labels.sum())
        return {
            "unigram_loss_at_mask": self._sums["at_mask"] / max(1, self._n["at_mask"]),
            "context_free_loss": total / n,
            "label_entropy_at_mask": float(-(share * np.log(share)).sum()),
        }


def _show(scores: dict[str, Any]) -> None:
    rows = [
        ["MLM loss at [MASK] positions", scores["mlm_loss_at_mask"], scores["unigram_loss_at_mask"]],
        ["MLM loss at all masked positions", scores["mlm_loss"], scores["context_free_loss"]],
        ["MLM accuracy at [MASK] positions", scores["mlm_accuracy_at_mask"], None],
        ["MLM accuracy", scores["mlm_accuracy"], None],
    ]
    if "rop_loss" in scores:
        rows += [["ROP loss", scores["rop_loss"], float(np.log(2))], ["ROP accuracy", scores["rop_accuracy"], 0.5]]
    cells = [[name, f"{value:.3f}", "" if other is None else f"{other:.3f}"] for name, value, other in rows]
    cli.table(["score (losses in nats)", "model", "without context"], cells)


def _compare_with_sample(scores: dict[str, Any], path: str) -> str:
    """How far the model has come from word frequencies to the generator's own entropy (sample.json)."""
    entropy = storage.read_json(path)["nats_per_word"]
    start, model = scores["unigram_loss_at_mask"], scores["mlm_loss_at_mask"]
    shares = {name: (start - model) / (start - entropy[name]) for name in ("span", "perfect")}
    scores["share_of_the_way"] = shares
    return (
        f"at [MASK]: {start - model:.2f} nats under word frequencies; of the way to the generator's own entropy "
        f"{100 * shares['span']:.0f} % where a span is hidden ({entropy['span']:.2f} nats), "
        f"{100 * shares['perfect']:.0f} % where one word is ({entropy['perfect']:.2f} nats)"
    )


def _parser() -> argparse.ArgumentParser:
    made = cli.parser(
        "evaluate",
        "Score a model on a corpus' held-out split, or on raw pairs.",
        "twilbert-evaluate runs/tiny-1a2b3c4d corpus --json scores.json",
    )
    made.add_argument("model", metavar="MODEL", help="model folder, checkpoint, run folder or run name")
    made.add_argument(
        "data", metavar="DATA", help="corpus folder (its valid split), or raw pairs (TSV, CSV, JSONL, Parquet)"
    )
    made.add_argument("--json", metavar="FILE", help="also write the scores there")
    made.add_argument("--train", metavar="CORPUS", help="count word frequencies in this corpus' train split")
    made.add_argument("--sample", metavar="FILE", help="sample.json of generated data: compare with its entropy")
    made.add_argument("--masking", choices=["span", "token"], default="span", help="as in training (default: span)")
    made.add_argument("--max-len", type=int, metavar="N", help="cut texts at N tokens (default: the model's max_len)")
    made.add_argument("--seed", type=int, default=0, help="seed of the masks (default: 0)")
    return made


def _command(args: argparse.Namespace) -> str:
    scores = evaluate(
        args.model, args.data, train=args.train, masking=args.masking, max_len=args.max_len, seed=args.seed
    )
    _show(scores)
    if args.sample:
        print(_compare_with_sample(scores, args.sample))
    done = f"{scores['pairs']:,} pairs and {scores['singles']:,} single tweets of {scores['data']}"
    if args.json:
        storage.write_bytes_atomic(args.json, (json.dumps(scores, indent=1) + "\n").encode())
        return f"{done}; scores in {storage.absolute(args.json)}"
    return done


def main(argv: list[str] | None = None) -> int:
    """The command twilbert-evaluate."""
    return cli.run(_parser(), _command, argv)


if __name__ == "__main__":
    from twilbert.evaluate import main as _main

    raise SystemExit(_main())
