"""What is done to a text before anything else sees it, and which pairs are too poor to learn from.

The rules are the original TWilBERT's. Python's `re` is used on purpose: Arrow's regular expressions know ASCII letters
only, and would turn @José into "useré".
"""

from __future__ import annotations

import html
import re

_URL = re.compile(r"https?://\S+")
_MENTION = re.compile(r"@+\w+")
_RETWEET = re.compile(r"\bRT\b")
_PLACEHOLDERS = frozenset({"user", "url"})
MIN_WORDS = 3  # a pair is kept when at least one side has this many

# Goes into corpus.json and tokenizer folders: what was done, readable without this file.
CLEANING: dict[str, str] = {
    "entities": "HTML entities unescaped once",
    "url": "https?://\\S+ -> url",
    "mention": "@+\\w+ -> user",
    "ellipsis": "U+2026 -> space",
    "space": "white space collapsed to single spaces, none at the ends",
}


def clean(text: str, remove_rt: bool = False) -> str:
    """`text` with entities unescaped, links as `url`, mentions as `user`, no `…`, single spaces; "" if nothing is left.

    With `remove_rt`, as in fine-tuning, the word RT goes too; the original also cut it out of words (PARTE, PA E).

    Cleaning twice changes nothing, but for entities that were escaped more than once (`&amp;lt;`): each pass undoes one
    level. Entities come first, so that `&#64;ana` and links that hold `&amp;` are seen as what they are.
    """
    if "&" in text:
        text = html.unescape(text)
    if "://" in text:
        text = _URL.sub("url", text)
    if "@" in text:
        text = _MENTION.sub("user", text)
    if "…" in text:
        text = text.replace("…", " ")
    if remove_rt and "RT" in text:
        text = _RETWEET.sub(" ", text)
    return " ".join(text.split())


def clean_as_original(text: str) -> str:
    """`text` as the original's evaluation applications cleaned it, to compare with figures they printed.

    Entities come last, so that escaped links and mentions stay, and RT is cut out of words too (DEPORTIVOS, DEPO IVOS).
    """
    text = _MENTION.sub("user", _URL.sub("url", text)).replace("…", " ").replace("RT", " ").strip()
    return " ".join(html.unescape(text).split())


def drop_reason(tweet: str, reply: str | None) -> str | None:
    """Why a cleaned pair (or, with no `reply`, a single tweet) is not worth keeping; None when it is.

    `empty_tweet`: the tweet has no text. `only_mentions_and_links`: neither side has a word but `user` and `url`.
    `too_short`: neither side has three words.
    """
    if not tweet:
        return "empty_tweet"
    if (
        tweet[0] == "u"
        and _PLACEHOLDERS.issuperset(tweet.split())
        and (reply is None or _PLACEHOLDERS.issuperset(reply.split()))
    ):
        return "only_mentions_and_links"
    # Cleaned text has one space between words, so spaces count words.
    if tweet.count(" ") < MIN_WORDS - 1 and (reply is None or reply.count(" ") < MIN_WORDS - 1):
        return "too_short"
    return None
