"""The three evaluations of twilbert-evaluate: of held-out pairs, of texts, of pairs in a given order.

    pairs  ─▶ evaluate_pairs   losses and accuracies beside the best predictor without context
    texts  ─▶ evaluate_texts   pseudo-log-likelihood, each token hidden in its turn
    orders ─▶ evaluate_orders  reply order, nothing masked

Each can also write every example with its scores to a file, and an HTML page.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
import torch

from twilbert import cli, outputs, storage
from twilbert.data import batches as sequences
from twilbert.data.cleaning import Cleaning, clean_as_original
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream.masking import ROP_NONE, MaskingSettings
from twilbert.data.stream.stream import evaluation_batches
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.devices import find_device
from twilbert.errors import UsageError
from twilbert.evaluation import data as heldout
from twilbert.evaluation import likelihood, page, pairs, scoring
from twilbert.evaluation.pairs import Frequencies
from twilbert.hub.folder import ModelFolder, find_model
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.tracking.metrics import METRICS_FILE, read_metrics

_MICRO_BATCH_TOKENS = 8192
SAMPLES = 12  # shown in a report
_ORDERS = ("tweet, reply", "reply, tweet")


@dataclass(frozen=True)
class _Model:
    """A model ready to evaluate: in eval mode on `device`."""

    folder: str
    config: ModelConfig
    network: PretrainingModel
    tokenizer: Tokenizer
    cleaning: Cleaning
    device: torch.device

    @classmethod
    def load(cls, name: str, device: str | None) -> _Model:
        folder, where = ModelFolder.open(find_model(name)), find_device(device)
        return cls(
            folder.path,
            folder.config,
            folder.load_pretrained().to(where).eval(),
            folder.tokenizer,
            folder.cleaning,
            where,
        )


def evaluate_pairs(
    model: str,
    data: str,
    *,
    train: str | None = None,
    masking: Literal["span", "token"] = "span",
    max_len: int | None = None,
    seed: int = 0,
    device: str | None = None,
    examples: str | None = None,
    report: str | None = None,
    n_samples: int = SAMPLES,
) -> dict[str, Any]:
    """Score `model` (folder, checkpoint or run) on `data` (a corpus' valid split, or raw pairs).

    Losses in nats a masked token, accuracies from 0 to 1; perplexity is the loss' exponential. `unigram_…` and
    `context_free_…` are the losses of predictors that use the words' frequencies alone: in the train split of corpus
    `train` (default: `data` where it is a corpus, else the evaluated pairs themselves); the second one also uses the
    input token at the position, where that is not [MASK]. Masks depend on `seed` alone. `examples`: a JSON lines file
    with a line for each sample; `report`: an HTML page with `n_samples` of the pairs.
    """
    loaded = _Model.load(model, device)
    settings = MaskingSettings(kind=masking)
    corpus = train or (data if storage.exists(storage.join(storage.absolute(data), "corpus.json")) else None)
    read = heldout.read_pairs(corpus or data, loaded.cleaning, "train" if corpus else "valid")
    counts = heldout.token_counts(read, loaded.tokenizer)
    with tempfile.TemporaryDirectory(prefix="twilbert-evaluate-") as scratch:
        encoded = heldout.encode_pairs(
            heldout.read_pairs(data, loaded.cleaning), loaded.tokenizer, max_len or loaded.config.max_len, scratch
        )
        split = encoded.split("valid")
        reference = Frequencies(counts, settings, loaded.tokenizer.template)
        batches = evaluation_batches(encoded, "valid", 0, 1, _MICRO_BATCH_TOKENS, settings, seed)
        gathered = pairs.PairScores(len(counts), loaded.config.n_positions)
        gathered.run(loaded.network, reference.counted(batches), loaded.device)
        samples = gathered.samples()
        predictions = _examples(loaded, encoded, samples, settings, seed, n_samples) if report else []
    sums = gathered.sums
    means = scoring.scores_of(sums)
    scores = {
        "model": loaded.folder,
        "data": storage.absolute(data),
        "frequencies": f"train split of {corpus}" if corpus else "the evaluated pairs",
        "pairs": split.pairs,
        "singles": split.singles,
        "tokens": split.tokens,
        **{name: int(count) for name, count in scoring.counts_of(sums).items()},
        **means,
        "mlm_perplexity": math.exp(means["mlm_loss"]),
        "mlm_perplexity_at_mask": math.exp(means["mlm_loss_at_mask"]),
        **reference.losses(),
    }
    if examples:
        with storage.new_file(examples) as out:
            _write_pairs(out, heldout.read_pairs(data, loaded.cleaning), samples)
    if report:
        evaluation = page.PairEvaluation(scores, gathered, samples, counts, predictions, _curves(loaded.folder))
        _write(report, page.of_pairs(evaluation, loaded.tokenizer.token))
    return scores


def _examples(
    loaded: _Model,
    encoded: EncodedCorpus,
    samples: pairs.SampleScores,
    settings: MaskingSettings,
    seed: int,
    count: int,
) -> list[pairs.SamplePredictions]:
    rows = pairs.choose_rows(samples, count, seed)
    if not rows:
        return []
    batch = heldout.chosen_samples(encoded, "valid", rows, settings, seed)
    return pairs.predict_masked(loaded.network, batch, loaded.device)


def _write_pairs(out: IO[bytes], texts: Iterator[heldout.Texts], samples: pairs.SampleScores) -> None:
    """Write a line for each sample, in order: its texts, how many tokens were masked, its scores."""
    rows = (pair for part in texts for pair in heldout.usable(part))
    row, pair = -1, ("", None)
    s = samples
    for i, sample_id in enumerate(s.ids.tolist()):
        if sample_id // 2 != row:
            row, pair = row + 1, next(rows)
        single, scored = s.rop_labels[i] == ROP_NONE, bool(s.is_scored[i])
        tweet, reply = pair
        line = {
            "row": row + 1,
            "order": "tweet" if single else _ORDERS[sample_id % 2],
            "first": reply if sample_id % 2 else tweet,
            "second": tweet if sample_id % 2 else reply,
            "tokens": int(s.tokens[i]),
            "masked": int(s.masked[i]),
            "correct": int(s.correct[i]),
            "mlm_loss": float(s.mlm_loss_sum[i] / s.masked[i]) if s.masked[i] else None,
            "reply_second": float(s.reply_second[i]) if scored else None,
            "rop_correct": bool(s.rop_correct[i]) if scored else None,
        }
        _write_line(out, line)


def evaluate_texts(
    model: str,
    data: str,
    *,
    cleaning: Literal["ours", "original"] = "ours",
    max_len: int | None = None,
    seed: int = 0,
    device: str | None = None,
    examples: str | None = None,
    report: str | None = None,
    n_samples: int = SAMPLES,
) -> dict[str, Any]:
    """Score the pseudo-log-likelihood of the lines of a text file, or the texts of a corpus' valid split or of pairs.

    Means as `likelihood.means` names them, in nats; texts that cleaning empties are counted as `empty` and take part in
    no mean (the original counted them as 0). Texts are cut at `max_len` tokens (default: the
    model's). `cleaning` "original": `clean_as_original`, which its printed figures need.
    """
    loaded = _Model.load(model, device)
    rng, sampled, sums, counts = np.random.default_rng(seed), [], [], []
    with ExitStack() as stack:
        out = stack.enter_context(storage.new_file(examples)) if examples else None
        for texts in heldout.read_texts(data, loaded.cleaning if cleaning == "ours" else clean_as_original):
            ids, offsets = loaded.tokenizer.encode_batch(texts, max_len or loaded.config.max_len)
            values = likelihood.token_log_likelihoods(
                loaded.network, ids, offsets, loaded.tokenizer.template, loaded.device, _MICRO_BATCH_TOKENS
            )
            done = sum(map(len, counts))
            scored = _text_lines(loaded, texts, ids, offsets, values, done)
            if out:
                for line in scored:
                    _write_line(out, line)
            sampled += [
                (key, line) for key, line in zip(rng.random(len(scored)), scored, strict=True) if line["tokens"]
            ]
            sampled = sorted(sampled, key=lambda one: one[0])[:n_samples]
            sums.append(np.array([line["pll"] for line in scored]))
            counts.append(np.diff(offsets))
            cli.say(f"{done + len(texts):,} texts")
        all_sums, all_counts = np.concatenate([*sums, []]), np.concatenate([*counts, np.zeros(0, np.int64)])
        if not all_counts.any():
            raise UsageError(f"{data}: no text to evaluate; expected one on each line")
    scores = {
        "model": loaded.folder,
        "data": storage.absolute(data),
        "texts": int((all_counts > 0).sum()),
        "empty": int((all_counts == 0).sum()),
        "tokens": int(all_counts.sum()),
        **likelihood.means(all_sums, all_counts, loaded.tokenizer.template.of_single),
    }
    if report:
        shown = [line for _, line in sorted(sampled, key=lambda one: one[1]["row"])]
        _write(report, page.of_texts(scores, all_sums, all_counts, shown, _curves(loaded.folder)))
    return scores


def _text_lines(
    loaded: _Model, texts: list[str], ids: np.ndarray, offsets: np.ndarray, values: np.ndarray, first_row: int
) -> list[dict[str, Any]]:
    lines = []
    for i, text in enumerate(texts):
        at = slice(int(offsets[i]), int(offsets[i + 1]))
        count, pll = at.stop - at.start, float(values[at].sum())
        lines.append(
            {
                "row": first_row + i + 1,
                "text": text,
                "tokens": count,
                "pll": pll,
                "per_token": pll / count if count else None,
                "original": pll / (count + loaded.tokenizer.template.of_single) if count else None,
                "pieces": [loaded.tokenizer.token(token) for token in ids[at]],
                "log_likelihoods": [round(value, 4) for value in values[at].tolist()],
            }
        )
    return lines


def evaluate_orders(
    model: str,
    data: str,
    *,
    cleaning: Literal["ours", "original"] = "ours",
    max_len: int | None = None,
    device: str | None = None,
    examples: str | None = None,
    report: str | None = None,
    n_samples: int = SAMPLES,
) -> dict[str, Any]:
    """Score the reply order of pairs whose file gives it (FIRST, SECOND, 1 or 0); nothing is masked."""
    loaded = _Model.load(model, device)
    rows = heldout.read_ordered(data, loaded.cleaning if cleaning == "ours" else clean_as_original)
    cut_at = max_len or loaded.config.max_len
    texts = sequences.encode_clean(loaded.tokenizer, rows.firsts, rows.seconds, max_len=cut_at)
    reply_second = pairs.reply_second(loaded.network, texts, loaded.device, _MICRO_BATCH_TOKENS)
    labels = np.array(rows.labels)
    correct = (reply_second > 0.5) == (labels == 1)
    chance = np.where(labels == 1, reply_second, 1 - reply_second)
    scores = {
        "model": loaded.folder,
        "data": storage.absolute(data),
        "rows": len(labels),
        "rop_correct": int(correct.sum()),
        "rop_accuracy": float(correct.mean()),
        "rop_loss": float(-np.log(np.maximum(chance, np.finfo(np.float64).tiny)).mean()),
    }
    lines = [
        {"row": i + 1, "first": first, "second": second, "label": label, "reply_second": share, "correct": right}
        for i, (first, second, label, share, right) in enumerate(
            zip(*rows, reply_second.tolist(), correct.tolist(), strict=True)
        )
    ]
    if examples:
        with storage.new_file(examples) as out:
            for line in lines:
                _write_line(out, line)
    if report:
        _write(report, page.of_orders(scores, labels, reply_second, lines[:n_samples], _curves(loaded.folder)))
    return scores


def _curves(folder: str) -> list[dict[str, float]]:
    """Return the rows of metrics.jsonl of the run that a model folder or checkpoint lies in; none outside a run."""
    for _ in range(2):
        folder = folder.rpartition("/")[0]
        path = storage.join(folder, METRICS_FILE)
        if folder and storage.exists(path):
            return read_metrics(path)
    return []


def _write_line(out: IO[bytes], line: dict[str, Any]) -> None:
    out.write((json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def _write(path: str, html: str) -> None:
    storage.write_bytes_atomic(path, outputs.marked_page(html, "evaluate"))
