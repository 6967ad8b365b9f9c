"""Micro-batches, and runs of them packed into flat columns that cross processes without a copy.

A row of a packed run is a micro-batch. Ragged columns are flat values and offsets (an Arrow LargeList), padded to the
micro-batch's [B, T] already, so that unpacking slices and reshapes views; arrays from other processes are read-only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

COUNTS = ("step", "epoch", "accumulation", "n_masked", "n_rop", "n_samples", "width")
VALUES = {
    "input_ids": np.uint16,  # uint32 where the vocabulary is larger
    "segment_ids": np.uint8,
    "lengths": np.int32,
    "masked_index": np.int64,
    "masked_labels": np.int64,
    "rop_labels": np.int64,
    "sample_ids": np.int64,
}
UNKNOWN = -1  # a count that only all workers together have


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """B samples padded at the end to T tokens. B may be 0, then T is 1 and K is 0. All fields numpy or int."""

    input_ids: np.ndarray  # uint16 or uint32 [B, T], masked; [PAD] at the end
    segment_ids: np.ndarray  # uint8 [B, T]: 1 for a second text, where the tokenizer has types
    lengths: np.ndarray  # int32 [B], special tokens counted
    masked_index: np.ndarray  # int64 [K], ascending, into the B·T flat positions
    masked_labels: np.ndarray  # int64 [K], the original ids there
    rop_labels: np.ndarray  # int64 [B]: 1 (tweet, reply), 0 (reply, tweet), -100 single tweet
    sample_ids: np.ndarray  # int64 [B]: 2 · row of the split + direction (1 for (reply, tweet))
    step: int
    epoch: int  # of the step's first sample
    accumulation: int  # which micro-batch of its worker's step
    # Of the whole step over all workers; None where it has to be reduced: under token masking, with reader groups.
    n_masked: int | None
    n_rop: int | None  # samples with a reply
    n_samples: int  # samples of the whole step, all workers

    @property
    def padded_tokens(self) -> int:
        """B·T."""
        return self.input_ids.size

    @property
    def real_tokens(self) -> int:
        """Tokens other than [PAD]."""
        return int(self.lengths.sum())


@dataclass(frozen=True, eq=False)
class Packed:
    """A run of n micro-batches: int64 [n] for each of COUNTS, (flat, int64 offsets [n + 1]) for each of VALUES."""

    counts: dict[str, np.ndarray]
    values: dict[str, tuple[np.ndarray, np.ndarray]]

    def to_table(self) -> pa.Table:
        """Return an Arrow table of one row a micro-batch that shares the flat values' memory."""
        columns = {name: pa.array(self.counts[name]) for name in COUNTS}
        for name in VALUES:
            flat, offsets = self.values[name]
            columns[name] = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table) -> Packed:
        """Unpack rows of `to_table`, sharing their memory where they lie in one chunk."""
        counts = {name: table.column(name).to_numpy() for name in COUNTS}
        values = {}
        for name in VALUES:
            column = table.column(name)
            array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
            # An array may be a slice: its offsets say where in the values its rows lie.
            values[name] = array.values.to_numpy(), array.offsets.to_numpy()
        return cls(counts, values)

    def micro_batches(self) -> Iterator[MicroBatch]:
        """Yield the micro-batches in order, as views of the flat values."""
        counts = {name: self.counts[name].tolist() for name in COUNTS}
        edges = {name: self.values[name][1].tolist() for name in VALUES}
        for row in range(len(counts["step"])):
            fields: dict[str, Any] = {
                name: None if values[row] == UNKNOWN else values[row] for name, values in counts.items()
            }
            fields |= {name: self.values[name][0][edges[name][row] : edges[name][row + 1]] for name in VALUES}
            shape = len(fields["lengths"]), fields.pop("width")
            fields |= {name: fields[name].reshape(shape) for name in ("input_ids", "segment_ids")}
            yield MicroBatch(**fields)
