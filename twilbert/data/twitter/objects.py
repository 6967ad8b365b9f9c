"""Tweets in the JSON of Twitter's API: a record of a dump → tweets, each an id, a text and the id it replies to.

v1.1: `id_str`, `full_text` | `text`, `extended_tweet`, `in_reply_to_status_id_str`, `retweeted_status`, `quoted_status`
v2:   `id`, `text` | `note_tweet`, `referenced_tweets`; pages of `data` and `includes`; flattened by twarc2
both: {"tweet": …} of the archive, pages of `statuses`, control records between tweets
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from twilbert.data.tables import blocks
from twilbert.data.tables.pairs import LOST_DIGITS, NO_WHOLE_NUMBER, is_missing

FIRST_MADE_ID = 2**63
"""Ids from here on stand for retweeted texts whose own ids the dump does not give; Twitter's are below."""
_TEXTS = frozenset(("text", "full_text", "extended_tweet", "note_tweet"))
_LISTS = ("data", "statuses", "tweets")
_PAGES = {*_LISTS, "includes", "users"}
_NOTICES = {
    "delete", "scrub_geo", "limit", "disconnect", "warning", "status_withheld", "user_withheld", "event", "friends",
    "friends_str", "for_user", "control", "info", "errors", "meta", "tweet_delete", "tweet_withheld", "tweet_drop",
    "tweet_undrop", "tweet_edit", "user_delete", "user_undelete", "user_protect", "user_unprotect", "user_suspend",
    "user_unsuspend",
}  # fmt: skip
_RETWEET = re.compile(r"RT @\w+: ?")
_SHOWN_KEYS = 6


@dataclass
class Tweets:
    """Tweets of a stretch of a dump, three equal lists, and what became of the records that are not in them.

    `reply_to` is 0 where a tweet replies to none. `rejects` are (line within the piece counted from 0, reason, place).
    """

    lines: int  # physical lines (Parquet: rows) in this stretch
    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    reply_to: list[int] = field(default_factory=list)
    rejects: list[tuple[int, str, str]] = field(default_factory=list)
    read: int = 0  # objects: of data and includes, embedded ones, retweets
    retweets: int = 0
    notices: int = 0


class _FaultError(Exception):
    """Why an object is no tweet."""


def read_record(record: dict[str, Any], line: int, place: str, tweets: Tweets) -> None:
    """Append the tweets of a record to `tweets`, or why it has none; `place` says where in the line it is."""
    wrapped = record.get("tweet")
    if isinstance(wrapped, dict):
        record = wrapped
    for inner, item in _items(record):
        try:
            if not isinstance(item, dict):
                raise _FaultError("not a JSON object")
            if _is_notice(item):
                tweets.notices += 1
            else:
                _add(item, tweets)
        except (_FaultError, RecursionError) as fault:
            reason = str(fault) if isinstance(fault, _FaultError) else "JSON nested too deeply"
            tweets.rejects.append((line, reason, f"{place}, {inner}".strip(", ")))


def _items(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The objects of a page, each with its place; of any other record itself."""
    if _has_text(record) or _PAGES.isdisjoint(record):
        yield "", record
        return
    includes = record.get("includes")
    lists = [(name, record.get(name)) for name in _LISTS]
    lists.append(("includes.tweets", includes.get("tweets") if isinstance(includes, dict) else None))
    for name, items in lists:
        if isinstance(items, list):
            yield from ((f"{name} {number}", item) for number, item in enumerate(items, start=1))
        elif isinstance(items, dict):
            yield name, items


def _has_text(item: dict[str, Any]) -> bool:
    return not _TEXTS.isdisjoint(item)


def _is_notice(item: dict[str, Any]) -> bool:
    return not _has_text(item) and not _NOTICES.isdisjoint(item)


def _add(item: dict[str, Any], tweets: Tweets) -> None:
    """Append a tweet and those that are embedded in it; of a retweet the tweet it repeats."""
    if not _has_text(item):
        keys = ", ".join(map(repr, list(item)[:_SHOWN_KEYS]))
        raise _FaultError(f"neither a tweet nor a page of tweets (keys: {keys or 'none'})")
    original = item.get("retweeted_status")
    if isinstance(original, dict) and _has_text(original):
        tweets.read += 1
        tweets.retweets += 1
        _add(original, tweets)
        return
    references = item.get("referenced_tweets")
    by_kind = {str(r.get("type")): r for r in references if isinstance(r, dict)} if isinstance(references, list) else {}
    text = _text(item)
    own = _id_of(item)
    if not own:
        raise _FaultError("a tweet without id (expected id or id_str)")
    reply_to = _parent_of(item, by_kind.get("replied_to"))
    retweeted = by_kind.get("retweeted")
    tweets.read += 1
    if retweeted is not None:
        tweets.retweets += 1
        if not _has_text(retweeted):  # the whole text may stand elsewhere, and is longer
            _append(tweets, _id_of(retweeted), _RETWEET.sub("", text, count=1), 0)
    elif not reply_to and text.startswith("RT @") and (prefix := _RETWEET.match(text)):
        tweets.retweets += 1
        text = text[prefix.end() :]
        made = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        _append(tweets, FIRST_MADE_ID | made, text, 0)
    else:
        _append(tweets, own, text, 0 if reply_to == own else reply_to)
    for embedded in (item.get("quoted_status"), *by_kind.values()):
        if isinstance(embedded, dict) and _has_text(embedded):
            _add(embedded, tweets)


def _append(tweets: Tweets, own: int, text: str, reply_to: int) -> None:
    if not own:
        raise _FaultError("a reference to a tweet without its id")
    tweets.ids.append(own)
    tweets.texts.append(text)
    tweets.reply_to.append(reply_to)


def _text(item: dict[str, Any]) -> str:
    """The fullest text of a tweet."""
    for holder, name in (("extended_tweet", "full_text"), ("note_tweet", "text")):
        if holder in item and isinstance(item[holder], dict) and isinstance(item[holder].get(name), str):
            return _usable(item[holder][name])
    for name in ("full_text", "text"):
        if name in item and isinstance(item[name], str):
            return _usable(item[name])
    raise _FaultError("a tweet without text")


def _usable(text: str) -> str:
    fault = None if text.isascii() and "\0" not in text else blocks.text_fault(text)
    if fault:
        raise _FaultError(fault)
    return text


def _id_of(item: dict[str, Any]) -> int:
    """A tweet's id, 0 where there is none; the text form first: other programs may have made the number a float."""
    return _first_id(item.get("id_str"), item.get("id"))


def _parent_of(item: dict[str, Any], replied_to: dict[str, Any] | None) -> int:
    """The id of the tweet that a tweet replies to, 0: none."""
    if replied_to is not None:
        return _id_of(replied_to)
    return _first_id(item.get("in_reply_to_status_id_str"), item.get("in_reply_to_status_id"))


def _first_id(*values: Any) -> int:
    for value in values:
        if value is not None and (number := tweet_id(value)):
            return number
    return 0


def tweet_id(value: Any) -> int:
    """An id as an exact integer; 0: it is missing. Text may begin with the x that rtweet writes before ids."""
    if isinstance(value, str) and len(value) < 19 and value.isascii() and value.isdigit():
        return int(value)  # nearly all
    if isinstance(value, dict):
        value = value.get("$numberLong")  # MongoDB
    if isinstance(value, float) and math.isnan(value):
        return 0
    if isinstance(value, str):
        value = value.strip()
        if is_missing(value):
            return 0
        digits = value.removeprefix("x")
        if digits.isascii() and digits.isdigit() and len(digits) < 20:
            value = int(digits)
        elif NO_WHOLE_NUMBER.fullmatch(value):
            raise _FaultError(LOST_DIGITS)
    if isinstance(value, float):
        raise _FaultError(LOST_DIGITS)
    if type(value) is not int or not 0 <= value < FIRST_MADE_ID:
        raise _FaultError("an id that is no whole number of up to 63 bits")
    return value
