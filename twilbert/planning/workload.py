"""What a step holds: samples, tokens, masked positions, and the micro-batches they are cut into for some workers.

Lengths come from the encoded corpus where there is one, else from a stated distribution; the cut is training's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from twilbert.data.cut import cut_for, padded
from twilbert.data.objectives import span_budget
from twilbert.data.stream import least_accumulation, typical_steps
from twilbert.errors import UsageError
from twilbert.recipe import Recipe

SPREAD = 0.6  # standard deviation of the logarithm of a tweet's tokens, where no corpus tells
TWEET_TOKENS = 24  # median tokens of a tweet, likewise
_SPECIAL = 3  # [CLS] and two [SEP] of a pair
_DRAWN = 4096


@dataclass(frozen=True)
class Piece:
    """A micro-batch: `samples` of up to `length` tokens, `masked` positions for the masked-LM head."""

    samples: float
    length: float
    real: float
    masked: float

    @property
    def padded(self) -> float:
        """Positions that are computed."""
        return self.samples * self.length


@dataclass(frozen=True)
class Workload:
    """One worker's typical step among `world`; counts of a step are means."""

    world: int
    accumulation: int
    pieces: tuple[Piece, ...]
    """Of all surveyed steps and workers."""
    steps: float
    """How many steps and workers those are of."""

    def mean(self, of: Sequence[float]) -> float:
        """The sum of a figure of every piece, for one worker's step."""
        return float(sum(of)) / self.steps

    @property
    def real(self) -> float:
        """Real tokens of one worker's step."""
        return self.mean([piece.real for piece in self.pieces])

    @property
    def padded(self) -> float:
        """Computed positions of one worker's step."""
        return self.mean([piece.padded for piece in self.pieces])

    @property
    def masked(self) -> float:
        """Masked positions of one worker's step."""
        return self.mean([piece.masked for piece in self.pieces])


def assumed_lengths(max_len: int, tweet_tokens: float = TWEET_TOKENS) -> np.ndarray:
    """Ascending lengths of pairs of log-normal tweets of that median, each cut at `max_len` (int64, special ones in).

    Even quantiles of the one tweet meet those of the other in an order of low discrepancy: no chance in it.
    """
    first = (np.arange(_DRAWN) + 0.5) / _DRAWN
    second = (np.arange(_DRAWN) * 0.6180339887498949 + 0.5) % 1  # the golden ratio's multiples
    normal = NormalDist()

    def tweets(quantiles: np.ndarray) -> np.ndarray:
        drawn = tweet_tokens * np.exp(
            SPREAD * np.array([normal.inv_cdf(q) for q in np.clip(quantiles, 1e-6, 1 - 1e-6)])
        )
        return np.clip(np.rint(drawn), 1, max_len)

    return np.sort(tweets(first) + tweets(second)).astype(np.int64) + _SPECIAL


def workload(recipe: Recipe, lengths: np.ndarray, world: int, micro_batch_tokens: int | None = None) -> Workload:
    """How a step of `recipe` is cut among `world` workers.

    `lengths`: ascending lengths of typical samples; `micro_batch_tokens` replaces the recipe's. UsageError when one is
    longer than a micro-batch may be.
    """
    training, lanes = recipe.training, recipe.corpus.lanes
    limit = micro_batch_tokens or training.micro_batch_tokens
    if lengths[-1] > limit:
        raise UsageError(
            f"training.micro_batch_tokens: {limit} is less than the longest sample's {lengths[-1]} tokens; raise it, "
            "or lower corpus.max_len"
        )
    if lanes % world:  # such a size cannot be run with these lanes: planned as one reader of everything
        lanes = 1
    sharers, steps = typical_steps(lengths, training.global_batch_size, world, lanes)
    accumulation = least_accumulation(sharers, steps, limit)
    pieces: list[Piece] = []
    for step in steps:
        edges = cut_for(sharers)(step, sharers * accumulation)
        masked = span_budget(np.maximum(step - _SPECIAL, 1), recipe.objective.masked_lm.budget)
        costs, counts = padded(step, edges), np.diff(edges)
        for number, (cost, count) in enumerate(zip(costs.tolist(), counts.tolist(), strict=True)):
            inside = slice(int(edges[number]), int(edges[number + 1]))
            if count:
                real, hidden = float(step[inside].sum()), float(masked[inside].sum())
                pieces.append(Piece(count, cost / count, real, hidden))
    return Workload(world, accumulation, tuple(pieces), len(steps) * sharers)
