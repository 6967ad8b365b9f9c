"""Rows of the encoded corpus in memory: the ids of many row groups in one flat array, and where each row's lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from twilbert.data.encoded.format import EncodedCorpus, Split, read_row_group
from twilbert.data.tokenizer.template import Template


@dataclass(frozen=True, eq=False)
class Rows:
    """R rows. All but `template` and `pool` are int64 [R]; a row without reply (a single tweet) has reply_len 0."""

    template: Template
    pool: np.ndarray  # uint16 or uint32, the token ids of all texts
    orig_at: np.ndarray  # where the tweet begins in `pool`
    orig_len: np.ndarray
    reply_at: np.ndarray
    reply_len: np.ndarray
    maskable: np.ndarray  # maskable tokens of both texts
    number: np.ndarray  # the row's number in its split

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of a sample of each row, special ones included; int64 [R]."""
        special = np.where(self.reply_len > 0, self.template.of_pair, self.template.of_single)
        return self.orig_len + self.reply_len + special

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the directed samples in order of their ids: row (index into these rows) and direction, int64 each."""
        per_row = np.where(self.reply_len > 0, 2, 1)
        row = np.repeat(np.arange(len(per_row)), per_row)
        direction = np.zeros(len(row), np.int64)
        direction[1:] = row[1:] == row[:-1]
        return row, direction


def read_rows(encoded: EncodedCorpus, split: Split, row_groups: Sequence[int]) -> Rows:
    """Read row groups (numbers in file order), one after another; TwilbertError naming a file that cannot be read."""
    first_rows = np.cumsum([0, *(group.rows for group in split.row_groups)])
    return concatenate([_read_one(encoded, split, number, int(first_rows[number])) for number in row_groups])


def read_lengths(encoded: EncodedCorpus, split: Split, row_groups: Sequence[int]) -> np.ndarray:
    """Read the tokens of every directed sample of row groups, special ones included, int64; reads no ids."""
    lengths = []
    for number in row_groups:
        table = read_row_group(encoded, split.row_groups[number], ["orig_len", "reply_len"])
        orig, reply = (table.column(name).to_numpy().astype(np.int64) for name in ("orig_len", "reply_len"))
        paired = reply > 0
        pairs = orig[paired] + reply[paired] + encoded.template.of_pair
        lengths += [pairs, pairs, orig[~paired] + encoded.template.of_single]
    return np.concatenate(lengths)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Join rows of several reads."""
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0, *(len(part.pool) for part in parts)])
    joined = {}
    for name in (field.name for field in fields(Rows) if field.name != "template"):
        columns = [getattr(part, name) for part in parts]
        if name in ("orig_at", "reply_at"):
            columns = [column + offset for column, offset in zip(columns, offsets, strict=False)]
        joined[name] = np.concatenate(columns)
    return Rows(parts[0].template, **joined)


def _read_one(encoded: EncodedCorpus, split: Split, number: int, first_row: int) -> Rows:
    columns = ("orig_ids", "reply_ids", "orig_maskable", "reply_maskable")
    table = read_row_group(encoded, split.row_groups[number], columns)
    orig, reply = (table.column(name).combine_chunks() for name in columns[:2])
    orig_len, reply_len = (column.value_lengths().to_numpy().astype(np.int64) for column in (orig, reply))
    orig_ids, reply_ids = (column.flatten().to_numpy() for column in (orig, reply))
    orig_maskable, reply_maskable = (table.column(name).to_numpy().astype(np.int64) for name in columns[2:])
    return Rows(
        encoded.template,
        pool=np.concatenate([orig_ids, reply_ids]),
        orig_at=np.cumsum(orig_len) - orig_len,
        orig_len=orig_len,
        reply_at=len(orig_ids) + np.cumsum(reply_len) - reply_len,
        reply_len=reply_len,
        maskable=orig_maskable + reply_maskable,
        number=first_row + np.arange(table.num_rows),
    )
