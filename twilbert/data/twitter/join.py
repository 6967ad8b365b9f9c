"""Replies and their tweets, joined by id across all files of a dump in bounded memory.

    pieces ─ read ▸ spill by hash of the id ─▶ partitions of tweets, and of ids that are replied to  (spill_tweets)
    partitions ─ one tweet of equal ids ▸ spill replies by hash of the id they reply to ─▶ replies  (merge_tweets)
    tweets and replies of a partition ─▶ pairs, single tweets                                          (spill_joined)

Of equal ids the longest text is taken, of equally long ones the first in the order of the input, and the first id that
a copy replies to. A tweet is a single one where no pair holds it: nobody replies to it, and it replies to none or to
one that is absent. Rows are in the order of ids, so the result depends on the dump alone.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twilbert import storage
from twilbert.data.cleaning import Cleaning
from twilbert.data.corpus.spill import PieceResult, append_rejects, read_partition, spill_pairs, write_partitions
from twilbert.data.tables.blocks import Piece
from twilbert.data.tables.pairs import Pairs
from twilbert.data.twitter import dump
from twilbert.data.twitter.objects import FIRST_MADE_ID, Tweets

_TWEETS = pa.schema([("id", pa.uint64()), ("text", pa.string()), ("reply_to", pa.uint64())])
_MERGED = pa.schema([*_TWEETS, ("has_replies", pa.bool_())])
_SPILL_BYTES = 64 * 2**20  # tweets in memory before a spill
Each = Callable[[str, Callable[[int], Any], int], list[Any]]
_ROWS = 16_384  # pairs at a time
_MULTIPLIER, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)  # Fibonacci hashing: ids count milliseconds


@dataclass
class DumpResult:
    """Counts and files of a piece of a dump."""

    piece: int
    lines: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # of rejected records
    read: int = 0
    retweets: int = 0
    notices: int = 0
    spills: list[str] = field(default_factory=list)
    rejects: list[str] = field(default_factory=list)


@dataclass
class MergeResult:
    """How many different tweets a partition has, and how many of them are replies."""

    tweets: int
    replies: int


@dataclass
class JoinResult:
    """The rows of a partition, cleaned, and how many of its replies have their tweet and how many have not."""

    rows: PieceResult
    pairs: int
    absent: int


def _partition_of(ids: np.ndarray, partitions: int) -> np.ndarray:
    return ((ids * _MULTIPLIER) >> _SHIFT) % np.uint64(partitions)


def join_dump(
    pieces: list[Piece], folder: str, partitions: int, threshold: int, cleaning: Cleaning, each: Each
) -> tuple[list[DumpResult], list[PieceResult], dict[str, Any]]:
    """Join the pieces of a dump and spill the rows, cleaned, into `folder` as `spill_pairs` does.

    `each(what, work, count)` returns work(0) … work(count - 1), in any processes. Returns what the pieces and the
    partitions held, and corpus.json's entry.
    """
    read = each("read", functools.partial(spill_tweets, pieces, folder, partitions), len(pieces))
    spills = [name for result in read for name in result.spills]
    merged = each("equal ids merged", functools.partial(merge_tweets, folder, spills, partitions), partitions)
    spill = functools.partial(spill_joined, folder, partitions, threshold, cleaning)
    joined = each("joined and cleaned", spill, partitions)
    counts = {
        "tweets": sum(result.tweets for result in merged),
        "tweets_read": sum(result.read for result in read),
        "retweets": sum(result.retweets for result in read),
        "notices": sum(result.notices for result in read),
        "replies": sum(result.replies for result in merged),
        "pairs": sum(result.pairs for result in joined),
        "replies_without_tweet": sum(result.absent for result in joined),
    }
    return read, [result.rows for result in joined], {"twitter": counts}


def spill_tweets(pieces: list[Piece], folder: str, partitions: int, index: int) -> DumpResult:
    """Read a piece of a dump and spill its tweets into `folder`; TwilbertError when it cannot be read to its end."""
    result = DumpResult(index)
    unspilled: list[pa.Table] = []
    for tweets in dump.read(pieces[index]):
        result.lines += tweets.lines
        result.read += tweets.read
        result.retweets += tweets.retweets
        result.notices += tweets.notices
        if tweets.rejects:
            append_rejects(result, tweets.rejects, folder)
            result.reasons.update(reason for _, reason, _ in tweets.rejects)
        unspilled.append(_table(tweets))
        if sum(table.nbytes for table in unspilled) >= _SPILL_BYTES:
            _spill(unspilled, result, folder, partitions)
            unspilled = []
    if any(table.num_rows for table in unspilled):
        _spill(unspilled, result, folder, partitions)
    return result


def _table(tweets: Tweets) -> pa.Table:
    """The tweets, and for each id that is replied to a row without text."""
    parents = [parent for parent in tweets.reply_to if parent]
    columns = [
        pa.array(tweets.ids + parents, pa.uint64()),
        pa.array(tweets.texts + [None] * len(parents), pa.string()),
        pa.array(tweets.reply_to + [0] * len(parents), pa.uint64()),
    ]
    return pa.Table.from_arrays(columns, schema=_TWEETS)


def _spill(tables: list[pa.Table], result: DumpResult, folder: str, partitions: int) -> None:
    name = f"tweets-{result.piece:06d}-{len(result.spills):03d}.arrow"
    table = pa.concat_tables(tables).combine_chunks()
    write_partitions(storage.join(folder, name), table, _partition_of(table["id"].to_numpy(), partitions), partitions)
    result.spills.append(name)


def merge_tweets(folder: str, spills: list[str], partitions: int, partition: int) -> MergeResult:
    """Write one tweet of each id of a partition, and those that are replies for the next pass."""
    rows = read_partition(folder, spills, partition, _TWEETS)
    is_tweet = rows["text"].is_valid().to_numpy()
    has_replies = np.unique(rows["id"].to_numpy()[~is_tweet])
    rows = rows.filter(pa.array(is_tweet))
    ids, reply_to = rows["id"].to_numpy(), rows["reply_to"].to_numpy()
    shortness = -pc.call_function("utf8_length", [rows["text"]]).to_numpy().astype(np.int64)
    longest, firsts = _first_of_each(ids, shortness), _first_of_each(ids, reply_to == 0)
    tweets = pa.Table.from_arrays(
        [
            pa.array(ids[longest], pa.uint64()),
            rows["text"].take(pa.array(longest)),
            pa.array(reply_to[firsts], pa.uint64()),
            pa.array(np.isin(ids[longest], has_replies)),
        ],
        schema=_MERGED,
    )
    del rows
    write_partitions(storage.join(folder, _merged(partition)), tweets, np.zeros(tweets.num_rows), 1)
    replies = tweets.filter(pa.array(tweets["reply_to"].to_numpy() != 0))
    parents = _partition_of(replies["reply_to"].to_numpy(), partitions)
    write_partitions(storage.join(folder, _replies(partition)), replies, parents, partitions)
    return MergeResult(tweets.num_rows, replies.num_rows)


def _first_of_each(ids: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Of each id, in ascending order, the position of the row of lowest rank, of equal ones the first."""
    order = np.lexsort((rank, ids))
    ordered = ids[order]
    return order[np.append(True, ordered[1:] != ordered[:-1])] if len(ids) else order


def _merged(partition: int) -> str:
    return f"merged-{partition:05d}.arrow"


def _replies(partition: int) -> str:
    return f"replies-{partition:05d}.arrow"


def spill_joined(folder: str, partitions: int, threshold: int, cleaning: Cleaning, partition: int) -> JoinResult:
    """Join a partition's tweets with the replies to them, clean the rows and spill them."""
    tweets = read_partition(folder, [_merged(partition)], 0, _MERGED)
    replies = read_partition(folder, [_replies(number) for number in range(partitions)], partition, _MERGED)
    replies = replies.sort_by([("reply_to", "ascending"), ("id", "ascending")])
    ids, parents = tweets["id"].to_numpy(), replies["reply_to"].to_numpy()
    at = np.searchsorted(ids, parents)
    is_there = at < len(ids)
    is_there[is_there] = ids[at[is_there]] == parents[is_there]
    absent = replies.filter(pa.array(~is_there))
    singles = pa.concat_tables([tweets.filter(pa.array(tweets["reply_to"].to_numpy() == 0)), absent])
    singles = singles.filter(pa.array(~singles["has_replies"].to_numpy()))
    paired = replies.filter(pa.array(is_there))
    left = pa.concat_tables([tweets.take(pa.array(at[is_there])), singles])
    rows = spill_pairs(_stretches(left, paired), partition, folder, partitions, threshold, cleaning)
    return JoinResult(rows, paired.num_rows, absent.num_rows)


def _stretches(tweets: pa.Table, replies: pa.Table) -> Iterator[Pairs]:
    """The first tweets with the replies beside them, then those that are single, some thousands at a time."""
    for start in range(0, tweets.num_rows, _ROWS):
        left, right = tweets.slice(start, _ROWS), replies.slice(start, _ROWS)
        alone = [None] * (left.num_rows - right.num_rows)
        yield Pairs(
            0,
            [None if number >= FIRST_MADE_ID else str(number) for number in left["id"].to_pylist()],
            left["text"].to_pylist(),
            [str(number) for number in right["id"].to_pylist()] + alone,
            right["text"].to_pylist() + alone,
        )
