"""Clean texts and drop poor pairs, by the original TWilBERT's rules.

Python's `re` instead of Arrow's regular expressions, whose word characters are ASCII: @José would become "useré".
"""

from __future__ import annotations

import html
import re

_URL = re.compile(r"https?://\S+")
_MENTION = re.compile(r"@+\w+")
_RETWEET = re.compile(r"\bRT\b")
_PLACEHOLDERS = frozenset({"user", "url"})
MIN_WORDS = 3  # a pair is kept when at least one side has this many

# The rules as documentation in corpus.json and tokenizer folders.
CLEANING: dict[str, str] = {
    "entities": "HTML entities unescaped once",
    "url": "https?://\\S+ -> url",
    "mention": "@+\\w+ -> user",
    "ellipsis": "U+2026 -> space",
    "space": "white space collapsed to single spaces, none at the ends",
}


def clean(text: str, remove_rt: bool = False) -> str:
    """Unescape entities, replace links by `url` and mentions by `user`, remove `…`, collapse white space.

    `remove_rt`, as in fine-tuning, removes the word RT too (the original also removed it inside words: PARTE, PA E).
    Cleaning is idempotent, except for entities escaped more than once (`&amp;lt;`). Entities come first, so that
    `&#64;ana` is a mention and `&amp;` part of a link.
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
    """Clean `text` as the original's evaluation applications did, to compare with the figures they printed.

    Entities come last, so that escaped links and mentions stay, and RT is removed inside words too (DEPORTIVOS).
    """
    text = _MENTION.sub("user", _URL.sub("url", text)).replace("…", " ").replace("RT", " ").strip()
    return " ".join(html.unescape(text).split())


def drop_reason(tweet: str, reply: str | None) -> str | None:
    """Return why a cleaned pair (or, without `reply`, a single tweet) is dropped; None when it is kept.

    `empty_tweet`: the tweet has no text. `only_mentions_and_links`: both sides are `user` and `url` alone. `too_short`:
    neither side has three words.
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
