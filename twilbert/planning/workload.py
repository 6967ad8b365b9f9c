"""Typical steps: samples, tokens, masked positions, and the micro-batches that training cuts them into.

Lengths come from the encoded corpus where there is one, else from a stated distribution.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from functools import cached_property
from statistics import NormalDist

import numpy as np

from twilbert.data.stream.masking import span_budget
from twilbert.data.stream.partition import partitioner
from twilbert.data.stream.stream import least_accumulation, typical_steps
from twilbert.errors import UsageError
from twilbert.model.packing import LEAST_SHARE, LENGTH_STEP, ROW_STEP
from twilbert.recipe.pretraining import Recipe

SPREAD = 0.6  # standard deviation of the logarithm of a tweet's tokens, without a corpus
TWEET_TOKENS = 24  # median tokens of a tweet, likewise
_SPECIAL = 3  # [CLS] and two [SEP] of a pair
_DRAWN = 4096


@dataclass(frozen=True)
class Piece:
    """A micro-batch as a device computes it: padded, or packed (model/packing.py); or the sum of a step's."""

    samples: float
    longest: float
    """Tokens of its longest sample."""
    real: float
    """Tokens of all samples."""
    padded: float
    """Positions with every sample as long as the longest."""
    masked: float
    """Positions for the masked-LM head."""
    rows: float
    """Positions of norms and linear maps."""
    attended: float
    """Positions of attention."""
    square: float
    """The sum over samples of their positions in attention, squared."""


def piece_of(lengths: np.ndarray, masked: float, *, gpu: bool) -> Piece:
    """Return the micro-batch of samples of those lengths; on a CPU it is packed where the model packs it."""
    n, longest, real = len(lengths), int(lengths.max()), int(lengths.sum())
    padded = n * longest
    if gpu or padded - real < LEAST_SHARE * padded:
        return Piece(n, longest, real, padded, masked, rows=padded, attended=padded, square=padded * longest)
    grouped = np.minimum(-(-lengths // LENGTH_STEP) * LENGTH_STEP, longest).astype(float)
    rows = -(-real // ROW_STEP) * ROW_STEP
    return Piece(n, longest, real, padded, masked, rows, float(grouped.sum()), float((grouped**2).sum()))


@dataclass(frozen=True)
class Workload:
    """The typical steps of a training by `world` workers."""

    world: int
    accumulation: int
    pieces: tuple[Piece, ...]
    """The micro-batches of all surveyed steps and workers."""
    steps: float
    """Surveyed steps times workers."""

    @cached_property
    def step(self) -> Piece:
        """The mean step of one worker, micro-batches summed."""
        totals = {one.name: sum(getattr(piece, one.name) for piece in self.pieces) for one in fields(Piece)}
        longest = max(piece.longest for piece in self.pieces)
        return Piece(**{name: total / self.steps for name, total in totals.items()} | {"longest": longest})


def assumed_lengths(max_len: int, tweet_tokens: float = TWEET_TOKENS) -> np.ndarray:
    """Return ascending lengths, special tokens included, of pairs of log-normal tweets cut at `max_len` (int64).

    Even quantiles of the one tweet are paired with those of the other in an order of low discrepancy, without chance.
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
    """Return the steps of `recipe` as cut among `world` workers with GPUs or CPUs.

    `lengths`: ascending lengths of typical samples; `micro_batch_tokens` replaces the recipe's. UsageError when a
    sample is longer than a micro-batch may be.
    """
    training, lanes = recipe.training, recipe.corpus.lanes
    limit = micro_batch_tokens or training.micro_batch_tokens
    if lengths[-1] > limit:
        raise UsageError(
            f"training.micro_batch_tokens: {limit} is less than the longest sample's {lengths[-1]} tokens; raise it, "
            "or lower corpus.max_len"
        )
    if lanes % world:  # not possible with these reader groups: planned with readers of everything
        lanes = 1
    readers, steps = typical_steps(lengths, training.global_batch_size, world, lanes)
    accumulation = least_accumulation(readers, steps, limit)
    pieces: list[Piece] = []
    for step in steps:
        edges = partitioner(readers)(step, readers * accumulation)
        masked = span_budget(np.maximum(step - _SPECIAL, 1), recipe.objective.masked_lm.budget)
        for first, end in itertools.pairwise(edges.tolist()):
            if end > first:
                pieces.append(piece_of(step[first:end], float(masked[first:end].sum()), gpu=gpu))
    return Workload(world, accumulation, tuple(pieces), len(steps) * readers)
