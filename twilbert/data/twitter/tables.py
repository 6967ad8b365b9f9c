"""Tweets in tables: the CSV of rtweet, of twarc-csv and other Academic exports, by the names of their columns."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from twilbert.data.tables import layout
from twilbert.data.tables.blocks import Block
from twilbert.data.tables.layout import TableFile
from twilbert.data.tables.pairs import is_missing
from twilbert.errors import UsageError

_COLUMNS: dict[str, tuple[str, ...]] = {  # what a column holds: its names, the exactest first
    "id": ("id_str", "status_id", "tweet_id", "tweetid", "id"),
    "text": ("full_text", "tweet_text", "text", "tweet"),
    "reply_to": (
        "in_reply_to_status_id_str", "in_reply_to_status_id", "reply_to_status_id", "referenced_tweets.replied_to.id",
        "in_reply_to_tweet_id", "in_reply_to_tweetid",
    ),
    "retweet_id": (
        "retweeted_status_id_str", "retweeted_status_id", "retweet_status_id", "referenced_tweets.retweeted.id",
        "retweet_tweetid",
    ),
    "retweet_text": ("retweet_text",),
    "quoted_id": ("quoted_status_id_str", "quoted_status_id"),
    "quoted_text": ("quoted_text",),
    "source_type": ("sourcetweet_type",),
    "source_id": ("sourcetweet_id",),
    "source_text": ("sourcetweet_text",),
    "references": ("referenced_tweets",),
}  # fmt: skip
NAMES = tuple(name for names in _COLUMNS.values() for name in names)
_REFERENCE = re.compile(r"[{<][^{}<>]*")
_TYPE, _ID = re.compile(r"\btype\W+(\w+)"), re.compile(r"\bid\W+(\d+)")


def reading(file: TableFile) -> TableFile:
    """The file with the columns of tweets that it has; UsageError where it has no ids or texts."""
    folded = {name.strip().casefold(): name for name in reversed(file.names)} if file.has_header else {}
    columns = [next((folded[name] for name in names if name in folded), None) for names in _COLUMNS.values()]
    if columns[0] is None or columns[1] is None:
        raise UsageError(
            f"{file.name}: columns found: {layout.column_list(file)}; expected those of tweets: "
            f"{' or '.join(_COLUMNS['id'])}; {' or '.join(_COLUMNS['text'])}; for replies {_COLUMNS['reply_to'][0]} or "
            f"{_COLUMNS['reply_to'][3]}: rename yours, or leave out --format twitter where rows are pairs"
        )
    file = file.reading(columns)
    return dataclasses.replace(file, names=tuple(filter(None, columns))) if file.format == "parquet" else file


def has_replies(file: TableFile) -> bool:
    """Whether a table says which tweet a tweet replies to."""
    columns = dict(zip(_COLUMNS, file.columns, strict=True))
    return any(columns[name] for name in ("reply_to", "source_id", "references"))


def objects(block: Block, file: TableFile) -> Iterator[dict[str, Any]]:
    """The rows of a table as objects of the API."""
    for row in block.records(file.columns):
        (own, text, reply_to, retweet, retweet_text, quoted, quoted_text, source_type, source, source_text, listed) = (
            row
        )
        references = [
            {"type": kind, "id": number} | ({} if is_missing(body) else {"text": body})
            for kind, number, body in (
                ("retweeted", retweet, retweet_text),
                ("quoted", quoted, quoted_text),
                (source_type, source, source_text),
            )
            if not _is_none(number)
        ]  # fmt: skip
        for part in _REFERENCE.findall(listed) if isinstance(listed, str) and listed else ():
            kind, number = _TYPE.search(part), _ID.search(part)
            if kind and number:
                references.append({"type": kind[1], "id": number[1]})
        yield {
            "id": own,
            "text": None if isinstance(text, str) and is_missing(text) else text,
            "in_reply_to_status_id": reply_to,
            "referenced_tweets": references,
        }


def _is_none(number: Any) -> bool:
    """Whether a cell of ids is empty, or has what data frames write there: NaN, 0."""
    return not number or number != number or (isinstance(number, str) and (is_missing(number) or number.strip() == "0"))
