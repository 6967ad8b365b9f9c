"""Predictors that know how often each word occurs and nothing of its neighbours: what any model must beat."""

from __future__ import annotations

import numpy as np

from twilbert.data.microbatch import MicroBatch
from twilbert.data.objectives import MASK, N_SPECIAL, MaskingSettings


class Frequencies:
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
