"""Rows of the encoded corpus in memory: the ids of many row groups in one flat array, and where each row's lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twilbert.data.encoded.format import EncodedCorpus, Split, read_row_group

_COLUMNS = ("orig_ids", "reply_ids", "orig_maskable", "reply_maskable")
_SPECIAL_OF_PAIR, _SPECIAL_OF_SINGLE = 3, 2  # [CLS] and a [SEP] after each text


@dataclass(frozen=True, eq=False)
class Rows:
    """R rows. All but `pool` are int64 [R]; a row without reply (a single tweet) has reply_len 0."""

    pool: np.ndarray  # uint16, the token ids of all texts
    orig_at: np.ndarray  # where the tweet begins in `pool`
    orig_len: np.ndarray
    reply_at: np.ndarray
    reply_len: np.ndarray
    maskable: np.ndarray  # maskable tokens of both texts
    number: np.ndarray  # the row's number in its split

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of a sample of each row, special ones counted; int64 [R]."""
        special = np.where(self.reply_len > 0, _SPECIAL_OF_PAIR, _SPECIAL_OF_SINGLE)
        return self.orig_len + self.reply_len + special

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """The directed samples in order of their ids: row (index into these rows) and direction, int64 each."""
        per_row = np.where(self.reply_len > 0, 2, 1)
        row = np.repeat(np.arange(len(per_row)), per_row)
        direction = np.zeros(len(row), np.int64)
        direction[1:] = row[1:] == row[:-1]
        return row, direction


def read_rows(encoded: EncodedCorpus, split: Split, row_groups: Sequence[int]) -> Rows:
    """The rows of the named row groups (numbers in file order) one after another.

    TwilbertError, naming the file, when one cannot be read.
    """
    first_rows = np.cumsum([0, *(group.rows for group in split.row_groups)])
    return concatenate([_read_one(encoded, split, number, int(first_rows[number])) for number in row_groups])


def read_lengths(encoded: EncodedCorpus, split: Split, row_groups: Sequence[int]) -> np.ndarray:
    """The tokens of every directed sample of the named row groups, special ones counted, int64; reads no ids."""
    lengths = []
    for number in row_groups:
        table = read_row_group(encoded, split.row_groups[number], ["orig_len", "reply_len"])
        orig, reply = (table.column(name).to_numpy().astype(np.int64) for name in ("orig_len", "reply_len"))
        paired = reply > 0
        pairs = orig[paired] + reply[paired] + _SPECIAL_OF_PAIR
        lengths += [pairs, pairs, orig[~paired] + _SPECIAL_OF_SINGLE]
    return np.concatenate(lengths)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Rows of several reads as one."""
    if len(parts) == 1:
        return parts[0]
    pool_at = np.cumsum([0, *(len(part.pool) for part in parts)])
    return Rows(
        pool=np.concatenate([part.pool for part in parts]),
        orig_at=np.concatenate([part.orig_at + at for part, at in zip(parts, pool_at, strict=False)]),
        orig_len=np.concatenate([part.orig_len for part in parts]),
        reply_at=np.concatenate([part.reply_at + at for part, at in zip(parts, pool_at, strict=False)]),
        reply_len=np.concatenate([part.reply_len for part in parts]),
        maskable=np.concatenate([part.maskable for part in parts]),
        number=np.concatenate([part.number for part in parts]),
    )


def _read_one(encoded: EncodedCorpus, split: Split, number: int, first_row: int) -> Rows:
    table = read_row_group(encoded, split.row_groups[number], _COLUMNS)
    orig, reply = (table.column(name).combine_chunks() for name in ("orig_ids", "reply_ids"))
    orig_len, reply_len = (column.value_lengths().to_numpy().astype(np.int64) for column in (orig, reply))
    orig_ids, reply_ids = (column.flatten().to_numpy() for column in (orig, reply))
    maskable = [table.column(name).to_numpy().astype(np.int64) for name in ("orig_maskable", "reply_maskable")]
    return Rows(
        pool=np.concatenate([orig_ids, reply_ids]),
        orig_at=np.cumsum(orig_len) - orig_len,
        orig_len=orig_len,
        reply_at=len(orig_ids) + np.cumsum(reply_len) - reply_len,
        reply_len=reply_len,
        maskable=maskable[0] + maskable[1],
        number=first_row + np.arange(table.num_rows),
    )
