"""What a step holds: samples, tokens, masked positions, and the micro-batches they are cut into for some workers.

Lengths come from the encoded corpus where there is one, else from a stated distribution; the cut is training's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from twilbert.data.stream.masking import span_budget
from twilbert.data.stream.partition import cut_for
from twilbert.data.stream.stream import least_accumulation, typical_steps
from twilbert.errors import UsageError
from twilbert.model.packing import LEAST_SHARE, LENGTH_STEP, ROW_STEP
from twilbert.recipe.pretraining import Recipe

SPREAD = 0.6  # standard deviation of the logarithm of a tweet's tokens, where no corpus tells
TWEET_TOKENS = 24  # median tokens of a tweet, likewise
_SPECIAL = 3  # [CLS] and two [SEP] of a pair
_DRAWN = 4096


@dataclass(frozen=True)
class Piece:
    """A micro-batch, as it is cut and as a device computes it: padded, or packed (model/packing.py)."""

    samples: float
    longest: float
    """Tokens of its longest sample."""
    real: float
    """Tokens of all samples."""
    masked: float
    """Positions for the masked-LM head."""
    rows: float
    """Positions of norms and linear maps."""
    attended: float
    """Positions of attention."""
    square: float
    """The sum over samples of their positions in attention, squared."""

    @property
    def padded(self) -> float:
        """Positions with every sample as long as the longest."""
        return self.samples * self.longest


def piece_of(lengths: np.ndarray, masked: float, *, gpu: bool) -> Piece:
    """The micro-batch of samples of those lengths; on a CPU it is packed where that is worth it."""
    n, longest, real = len(lengths), int(lengths.max()), int(lengths.sum())
    padded = n * longest
    if gpu or padded - real < LEAST_SHARE * padded:
        return Piece(n, longest, real, masked, rows=padded, attended=padded, square=padded * longest)
    grouped = np.minimum(-(-lengths // LENGTH_STEP) * LENGTH_STEP, longest).astype(float)
    rows = -(-real // ROW_STEP) * ROW_STEP
    return Piece(n, longest, real, masked, rows, float(grouped.sum()), float((grouped**2).sum()))


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
        """Positions of one worker's step, padding included."""
        return self.mean([piece.padded for piece in self.pieces])

    @property
    def rows(self) -> float:
        """Positions of norms and linear maps in one worker's step."""
        return self.mean([piece.rows for piece in self.pieces])

    @property
    def attended(self) -> float:
        """Positions of attention in one worker's step."""
        return self.mean([piece.attended for piece in self.pieces])

    @property
    def square(self) -> float:
        """`Piece.square` of one worker's step."""
        return self.mean([piece.square for piece in self.pieces])

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


def workload(
    recipe: Recipe, lengths: np.ndarray, world: int, micro_batch_tokens: int | None = None, *, gpu: bool
) -> Workload:
    """How a step of `recipe` is cut among `world` workers, and what their GPUs or CPUs compute of it.

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
        for first, end in itertools.pairwise(edges.tolist()):
            if end > first:
                pieces.append(piece_of(step[first:end], float(masked[first:end].sum()), gpu=gpu))
    return Workload(world, accumulation, tuple(pieces), len(steps) * sharers)
