"""Scores of a model on held-out pairs by sample, by word and by position, finer than the sums of scoring.py.

    micro-batches ─ network.score ─▶ PairScores ─▶ sums · samples · by_token · by_position
    a few samples ─ predict_masked ─▶ SamplePredictions: the masked words, top predictions beside the truth

Letters as in model/heads.py: B samples, T positions, V vocabulary, K masked positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from twilbert.data import batches as sequences
from twilbert.data.batches import Sequences
from twilbert.data.stream.masking import ROP_NONE, ROP_REPLY_SECOND, MaskingSettings
from twilbert.data.stream.micro_batch import MicroBatch
from twilbert.data.tokenizer.template import Template
from twilbert.errors import TwilbertError
from twilbert.evaluation import scoring
from twilbert.model.heads import PretrainingModel


class Frequencies:
    """Losses of predictors that use the words' frequencies alone, and nothing of a word's neighbours.

    At [MASK] the best guess is the frequency u(y) itself. Elsewhere the visible token x was kept or drawn at random:
    p(y | x) = u(y) (keep·[x = y] + random/W) / (keep·u(x) + random/W), W the ordinary words.
    """

    def __init__(self, counts: np.ndarray, settings: MaskingSettings, template: Template) -> None:
        ordinary = np.zeros(len(counts))
        ordinary[template.ordinary] = counts[template.ordinary] + 1  # a word that never occurs still has a chance
        self._share = ordinary / ordinary.sum()
        self._settings, self._template = settings, template
        self._sums = {"at_mask": 0.0, "elsewhere": 0.0}
        self._n = {"at_mask": 0, "elsewhere": 0}
        self._labels = np.zeros(len(counts), np.int64)

    def counted(self, batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
        """Yield `batches` unchanged, adding up their masked positions."""
        for batch in batches:
            self._add(batch)
            yield batch

    def _add(self, batch: MicroBatch) -> None:
        label, shown = batch.masked_labels, batch.input_ids.reshape(-1)[batch.masked_index]
        known = self._share[np.minimum(label, len(self._share) - 1)] > 0
        known &= label < len(self._share)
        at_mask = (shown == self._template.mask) & known
        self._labels += np.bincount(label[at_mask], minlength=len(self._labels))
        self._sums["at_mask"] -= float(np.log(self._share[label[at_mask]]).sum())
        self._n["at_mask"] += int(at_mask.sum())
        rest = (shown != self._template.mask) & known
        y, x = label[rest], shown[rest]
        chance = self._settings.random / self._template.n_ordinary
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


@dataclass(frozen=True)
class SampleScores:
    """n directed samples in order of their ids; arrays [n]."""

    ids: np.ndarray  # int64: 2 · row + direction (1 for (reply, tweet))
    tokens: np.ndarray  # int64, special ones counted
    masked: np.ndarray  # int64
    correct: np.ndarray  # int64, of the masked ones
    mlm_loss_sum: np.ndarray  # float64, nats
    rop_labels: np.ndarray  # int64: 1 (tweet, reply), 0 (reply, tweet), -100 single tweet
    reply_second: np.ndarray  # float64: the model's probability that the second text is the reply; NaN without a head
    rop_loss: np.ndarray  # float64, nats; NaN without a head, without meaning for single tweets

    @property
    def is_scored(self) -> np.ndarray:
        """Which samples have a reply order and a prediction of it, bool [n]."""
        return (self.rop_labels != ROP_NONE) & ~np.isnan(self.reply_second)

    @property
    def rop_correct(self) -> np.ndarray:
        """Whether the predicted order is right, bool [n]; only where `is_scored`."""
        return (self.reply_second > 0.5) == (self.rop_labels == ROP_REPLY_SECOND)


class PairScores:
    """Scores of all samples of an evaluation, gathered micro-batch by micro-batch."""

    def __init__(self, vocab_size: int, n_positions: int) -> None:
        self._samples: list[tuple[np.ndarray, ...]] = []
        # Of the positions that show [MASK]: how many, and how many are predicted right.
        self.by_token = np.zeros((2, vocab_size + 1), np.int64)
        self.by_position = np.zeros((2, n_positions), np.int64)
        self._loss_at_mask = 0.0
        self._padded_tokens = 0

    @torch.no_grad()
    def run(self, network: PretrainingModel, batches: Iterable[MicroBatch], device: torch.device) -> PairScores:
        """Score every one of `batches` with `network`, in eval mode on `device`, and add the scores."""
        for batch in batches:
            self._add(batch, network, device)
        return self

    def _add(self, batch: MicroBatch, network: PretrainingModel, device: torch.device) -> None:
        ids, segments, lengths, index, labels, _ = scoring.tensors(batch, device)
        assert ids is not None and segments is not None and index is not None and labels is not None
        out = network.score(ids, segments, lengths, index, labels)
        nll, at_mask = out.mlm_nll_K.double().cpu().numpy(), out.at_mask_K.cpu().numpy()
        correct = out.mlm_prediction_K.cpu().numpy() == batch.masked_labels
        row, position = np.divmod(batch.masked_index, batch.input_ids.shape[1])
        n = len(batch.lengths)
        reply_second, rop_loss = np.full((2, n), np.nan)
        if out.rop_log_probs_B2 is not None:
            log_probs = out.rop_log_probs_B2.double().cpu().numpy()
            reply_second = np.exp(log_probs[:, ROP_REPLY_SECOND])
            rop_loss = -log_probs[np.arange(n), np.maximum(batch.rop_labels, 0)]
        self._samples.append(
            (
                batch.sample_ids.copy(),
                batch.lengths.astype(np.int64),
                np.bincount(row, minlength=n),
                np.bincount(row[correct], minlength=n),
                np.bincount(row, weights=nll, minlength=n),
                batch.rop_labels.astype(np.int64),
                reply_second,
                rop_loss,
            )
        )
        for counts, at in ((self.by_token, batch.masked_labels), (self.by_position, position)):
            counts[0] += np.bincount(at[at_mask], minlength=counts.shape[1])
            counts[1] += np.bincount(at[at_mask & correct], minlength=counts.shape[1])
        self._loss_at_mask += float(nll[at_mask].sum())
        self._padded_tokens += batch.padded_tokens

    @property
    def sums(self) -> list[float]:
        """The sums in the order of `scoring.zero_sums`."""
        s = self.samples()
        n_at_mask, correct_at_mask = self.by_token.sum(1)
        named = {
            "mlm_loss_sum": s.mlm_loss_sum.sum(),
            "mlm_correct": s.correct.sum(),
            "n_masked": s.masked.sum(),
            "mlm_loss_sum_at_mask": self._loss_at_mask,
            "mlm_correct_at_mask": correct_at_mask,
            "n_at_mask": n_at_mask,
            "rop_loss_sum": s.rop_loss[s.is_scored].sum(),
            "rop_correct": s.rop_correct[s.is_scored].sum(),
            "n_rop": s.is_scored.sum(),
            "real_tokens": s.tokens.sum(),
            "padded_tokens": self._padded_tokens,
            "samples": len(s.ids),
        }
        return scoring.sums_named(named)

    def samples(self) -> SampleScores:
        """Return all samples in order of their ids."""
        columns = [np.concatenate(parts) for parts in zip(*self._samples, strict=True)]
        order = np.argsort(columns[0])
        return SampleScores(*(column[order] for column in columns))


@dataclass(frozen=True)
class MaskedWord:
    """One masked position of a sample, and the model's predictions there."""

    position: int  # from [CLS], which is 0
    truth: int
    shown: int  # the input token there
    top: tuple[tuple[int, float], ...]  # the likeliest ids and their probabilities, best first
    truth_probability: float
    truth_rank: int  # 1 = the best


@dataclass(frozen=True)
class SamplePredictions:
    """One masked sample and the model's predictions."""

    sample_id: int
    ids: tuple[int, ...]  # before masking, special tokens counted
    words: tuple[MaskedWord, ...]
    rop_label: int
    reply_second: float | None  # probability that the second text is the reply; None without that head


@torch.no_grad()
def predict_masked(
    network: PretrainingModel, batch: MicroBatch, device: torch.device, top: int = 5
) -> list[SamplePredictions]:
    """Return every sample of `batch` with its masked words and `top` predictions for each, ordered by sample id."""
    ids, segments, lengths, index, labels, _ = scoring.tensors(batch, device)
    assert ids is not None and segments is not None and index is not None and labels is not None
    hidden_BTH = network.encoder(ids, segments, lengths)
    logits_KV = network.masked_lm(hidden_BTH.reshape(-1, hidden_BTH.shape[-1]).index_select(0, index)).float()
    probabilities_KV = logits_KV.softmax(-1)
    truth_K = probabilities_KV.gather(1, labels[:, None])[:, 0]
    rank_K = 1 + (probabilities_KV > truth_K[:, None]).sum(-1)
    best = probabilities_KV.topk(min(top, probabilities_KV.shape[1]), dim=-1)
    rop = None if network.reply_order is None else network.reply_order(hidden_BTH[:, 0]).float().softmax(-1)[:, 1]

    width = batch.input_ids.shape[1]
    original = batch.input_ids.reshape(-1).copy()
    original[batch.masked_index] = batch.masked_labels
    words: list[list[MaskedWord]] = [[] for _ in batch.lengths]
    inputs = batch.input_ids.reshape(-1)[batch.masked_index].tolist()
    per_word = zip(
        batch.masked_index.tolist(), batch.masked_labels.tolist(), inputs, best.indices.tolist(), best.values.tolist(),
        truth_K.tolist(), rank_K.tolist(), strict=True,
    )  # fmt: skip
    for at, truth, shown, guesses, shares, probability, rank in per_word:
        pairs = tuple(zip(guesses, shares, strict=True))
        words[at // width].append(MaskedWord(at % width, truth, shown, pairs, probability, rank))
    return [
        SamplePredictions(
            sample_id=int(batch.sample_ids[i]),
            ids=tuple(original[i * width : i * width + int(batch.lengths[i])].tolist()),
            words=tuple(words[i]),
            rop_label=int(batch.rop_labels[i]),
            reply_second=None if rop is None else float(rop[i]),
        )
        for i in np.argsort(batch.sample_ids).tolist()
    ]


@torch.no_grad()
def reply_second(network: PretrainingModel, texts: Sequences, device: torch.device, batch_tokens: int) -> np.ndarray:
    """Return the probability, float64 [n], that each pair's second text replies to the first; nothing is masked.

    TwilbertError for a model without a reply-order head.
    """
    if network.reply_order is None:
        raise TwilbertError("this model has no reply-order head; models trained with rop.use_rop have one")
    out = np.zeros(len(texts.lengths))
    for batch in sequences.batches(texts, batch_tokens):
        ids, segments = (torch.as_tensor(array, device=device) for array in (batch.input_ids, batch.segment_ids))
        hidden_BTH = network.encoder(ids, segments, torch.as_tensor(batch.lengths))
        out[batch.rows] = network.reply_order(hidden_BTH[:, 0]).double().softmax(-1)[:, ROP_REPLY_SECOND].cpu().numpy()
    return out


def choose_rows(samples: SampleScores, count: int, seed: int) -> list[int]:
    """Draw `count` rows with a reply (else any) without repetition, ascending."""
    paired = np.unique(samples.ids[samples.rop_labels != ROP_NONE] // 2)
    rows = paired if len(paired) else np.unique(samples.ids // 2)
    drawn = np.random.default_rng(seed).permutation(len(rows))[:count]
    return sorted(rows[drawn].tolist())


def binned(counts: np.ndarray, edges: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Sum counts [2, n] over [edges[i], edges[i + 1]): (how many, how many right)."""
    parts = [counts[:, low:high].sum(-1) for low, high in pairwise(edges)]
    stacked = np.array(parts, np.int64).reshape(-1, 2)
    return stacked[:, 0], stacked[:, 1]
