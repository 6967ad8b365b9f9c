"""Turn texts into the model's input for inference: clean, encode, add special tokens, batch by length.

    texts (pairs) ─ clean ▸ encode ▸ truncate ─▶ Sequences: [CLS] a [SEP] (b [SEP]) ─ sort by length ▸ pad ─▶ Batch …

Vectorised numpy; no Python for each token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from twilbert.data.cleaning import named
from twilbert.data.tokenizer.template import Template
from twilbert.data.tokenizer.tokenizer import Tokenizer, gather
from twilbert.model.special_tokens import PAD

LENGTH_STEP = 8


@dataclass(frozen=True)
class Sequences:
    """Ragged input: sequence i is ids[offsets[i]:offsets[i + 1]], its second segment begins at seconds[i]."""

    ids: np.ndarray
    """Of the tokenizer's type, [tokens]."""
    offsets: np.ndarray
    """int64 [sequences + 1]."""
    seconds: np.ndarray
    """int64 [sequences]: tokens of type 0, which come first."""
    blank: np.ndarray
    """int8 [sequences]: 1 where the first text has no token, 2 where only the second has none, else 0."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, int64."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Batch:
    """Some of the sequences, padded at the end."""

    rows: np.ndarray
    """int64 [B], numbers of the sequences; one may come twice."""
    input_ids: np.ndarray
    """int64 [B, T]."""
    segment_ids: np.ndarray
    """int64 [B, T]."""
    lengths: np.ndarray
    """int64 [B], real tokens."""


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    max_len: int,
    cleaning: str,
    remove_rt: bool = False,
) -> Sequences:
    """Encode texts, or texts and their `pairs`, cleaned by the rules `cleaning` and cut at `max_len` tokens each."""
    clean = named(cleaning)
    firsts = [clean(text, remove_rt) for text in texts]
    seconds = None if pairs is None else [clean(text, remove_rt) for text in pairs]
    return encode_clean(tokenizer, firsts, seconds, max_len=max_len)


def encode_clean(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_len: int
) -> Sequences:
    """Encode texts that have been cleaned already; else as `encode`."""
    first, first_offsets = tokenizer.encode_batch(texts, max_len)
    n_first = np.diff(first_offsets)
    parts, counts = [first], [n_first]
    if pairs is not None:
        second, second_offsets = tokenizer.encode_batch(pairs, max_len)
        parts.append(second)
        counts.append(np.diff(second_offsets))
    return _with_special_tokens(tokenizer.template, parts, counts)


def blanks(first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
    """Return `Sequences.blank` from which texts are empty, bool [sequences]."""
    return np.where(first, 1, 0 if second is None else np.where(second, 2, 0)).astype(np.int8)


def _with_special_tokens(template: Template, parts: list[np.ndarray], counts: list[np.ndarray]) -> Sequences:
    is_pair = len(parts) > 1
    around = (template.prefix, template.middle, template.end) if is_pair else (template.prefix, template.end)
    lengths = np.sum(counts, axis=0) + sum(map(len, around))
    offsets = np.zeros(len(counts[0]) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    ids = np.empty(int(offsets[-1]), template.dtype)
    start, seconds = offsets[:-1], lengths
    for number, special in enumerate(around):
        for place, token in enumerate(special):
            ids[start + place] = token
        start = start + len(special)
        if number == len(parts):
            break
        if number == 1 and template.has_types:
            seconds = start - offsets[:-1]
        part, count = parts[number], counts[number]
        within = np.arange(len(part)) - np.repeat(np.cumsum(count) - count, count)
        ids[np.repeat(start, count) + within] = part
        start = start + count
    return Sequences(ids, offsets, seconds, blanks(*(count == 0 for count in counts)))


def batches(sequences: Sequences, max_tokens: int) -> Iterator[Batch]:
    """Yield all sequences in batches of at most `max_tokens` padded tokens (or one sequence), the longest first.

    Batches have few different shapes, since matrix libraries cache something for each (bf16 on a CPU: some 500 MB in
    all): T is a multiple of 8, B as many as fit, and the rest of a length joins the longer ones. The last batch may
    repeat a sequence to fill its shape. A batch too large for the memory fails at once, as the longest come first.
    """
    lengths = sequences.lengths
    if not len(lengths):
        return
    order, longest = np.argsort(lengths, kind="stable"), int(lengths.max())
    tops = -(-lengths[order] // LENGTH_STEP) * LENGTH_STEP
    pieces: list[tuple[np.ndarray, int]] = []
    start = 0
    for top in np.unique(tops).tolist():
        end, size = int(np.searchsorted(tops, top, "right")), max(1, max_tokens // top)
        while end - start >= size:
            pieces.append((order[start : start + size], min(top, longest)))
            start += size
    if left := len(order) - start:
        filled = min(1 << (left - 1).bit_length(), max(1, max_tokens // int(tops[-1])))
        pieces.append((np.pad(order[start:], (0, filled - left), "edge"), longest))
    for rows, length in reversed(pieces):
        yield padded(sequences, rows, length)


def padded(sequences: Sequences, rows: np.ndarray, length: int) -> Batch:
    """Pad the sequences numbered `rows` to one batch of T = `length`, at least the longest."""
    lengths = sequences.lengths[rows]
    flat, _ = gather(sequences.ids, sequences.offsets[rows], lengths)
    position = np.arange(length)
    real = position < lengths[:, None]
    ids = np.full(real.shape, PAD, np.int64)
    ids[real] = flat
    segments = (real & (position >= sequences.seconds[rows][:, None])).astype(np.int64)
    return Batch(rows, ids, segments, lengths)
