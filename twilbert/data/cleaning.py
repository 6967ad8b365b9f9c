"""Named rules by which texts are cleaned, and the rules by which poor pairs are dropped.

    raw text ─ Cleaning ─▶ what a model is fed: in prepare, and by the model's own record in finetune and predict

A corpus records its rules by name and version, and so does every model; what 0.2.0 wrote records none and has
`twilbert-1`. Rules that change what a text becomes get a new version beside the old one.

Python's `re` instead of Arrow's regular expressions, whose word characters are ASCII: @José would become "useré".
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from twilbert.data import encoder_cleaning
from twilbert.errors import UsageError

_SCHEME_LINK = re.compile(r"https?://\S+")
# Also without scheme, as Twitter's own clients and scrapers copy links: pic.twitter.com is often stuck to a word.
_LINK = re.compile(r"(?:https?://|pic\.twitter\.com/|(?<![\w.@-])t\.co/)\S+", re.IGNORECASE)
_MENTION = re.compile(r"@+\w+")
_MARKS = "\u0300-\u036f\ufe0e\ufe0f"  # combining accents, variation selectors
_MARKED_MENTION = re.compile(rf"@+\w[\w{_MARKS}]*")
_RETWEET = re.compile(r"\bRT\b")
_INVISIBLE = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf", "Mn", "Me"})  # Unicode categories
MIN_WORDS = 3  # a pair is kept when at least one side has this many
FIRST = "twilbert-1"
"""The rules of everything that records none."""


@dataclass(frozen=True)
class Cleaning:
    """Rules with a name; call it with a text."""

    name: str
    """With a version: what corpora and models record."""
    rules: Mapping[str, str]
    """What is done, in order, for readers of the record."""
    function: Callable[[str], str]
    placeholders: frozenset[str]
    """What mentions and links become."""
    empties_invisible: bool = True
    """Whether a text without a visible character becomes empty."""

    def __call__(self, text: str, remove_rt: bool = False) -> str:
        """Return the cleaned text, "" where nothing is left; `remove_rt`, as in fine-tuning, removes the word RT."""
        text = self.function(text)
        if remove_rt and "RT" in text:
            text = " ".join(_RETWEET.sub(" ", text).split())
        if self.empties_invisible and text and not text[0].isalnum() and _is_invisible(text):
            return ""
        return text

    @property
    def record(self) -> dict[str, str]:
        """Name and rules, as corpora and tokenizers write them."""
        return {"name": self.name, **self.rules}

    def drop_reason(self, tweet: str, reply: str | None) -> str | None:
        """Return why a cleaned pair (or, without `reply`, a single tweet) is dropped; None when it is kept.

        `empty_tweet`: the tweet has no text. `only_mentions_and_links`: both sides are placeholders alone.
        `too_short`: neither side has three words.
        """
        if not tweet:
            return "empty_tweet"
        if (
            tweet.partition(" ")[0] in self.placeholders
            and self.placeholders.issuperset(tweet.split())
            and (reply is None or self.placeholders.issuperset(reply.split()))
        ):
            return "only_mentions_and_links"
        # Cleaned text has one space between words, so spaces count words.
        if tweet.count(" ") < MIN_WORDS - 1 and (reply is None or reply.count(" ") < MIN_WORDS - 1):
            return "too_short"
        return None


def _is_invisible(text: str) -> bool:
    return all(unicodedata.category(character) in _INVISIBLE for character in text)


def _twilbert_1(text: str) -> str:
    """The original's rules. Idempotent, except for entities escaped more than once (`&amp;lt;`).

    Entities come first, so that `&#64;ana` is a mention and `&amp;` part of a link. Written out, sharing
    nothing with later versions: it stays as it is for what was made with it.
    """
    if "&" in text:
        text = html.unescape(text)
    if "://" in text:
        text = _SCHEME_LINK.sub("url", text)
    if "@" in text:
        text = _MENTION.sub("user", text)
    if "…" in text:
        text = text.replace("…", " ")
    return " ".join(text.split())


def _twilbert_2(text: str) -> str:
    """As `_twilbert_1`, of composed characters: a name's decomposed accents would stay behind its mention."""
    if "&" in text:
        text = html.unescape(text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if "://" in text:
        text = _SCHEME_LINK.sub("url", text)  # most links, and ten times as fast
    if "/" in text:
        text = _LINK.sub("url", text)
    if "@" in text:
        text = _MARKED_MENTION.sub("user", text)
    if "…" in text:
        text = text.replace("…", " ")
    return " ".join(text.split())


def _none(text: str) -> str:
    return " ".join(text.split())


_SPACE = {"space": "white space collapsed to single spaces, none at the ends"}
_BLANK = {"blank": "a text without a visible character is empty"}
_ORIGINAL = {
    "entities": "HTML entities unescaped once",
    "url": "https?://\\S+ -> url",
    "mention": "@+\\w+ -> user",
    "ellipsis": "U+2026 -> space",
    **_SPACE,
}
_COMPOSED = {
    "entities": "HTML entities unescaped once",
    "unicode": "NFC",
    "url": "(https?://|pic.twitter.com/|t.co/)\\S+ in any case -> url",
    "mention": "@+\\w+, with combining marks -> user",
    "ellipsis": "U+2026 -> space",
    **_SPACE,
    **_BLANK,
}
_ROBERTUITO = {
    "mention": "@[A-Za-z0-9_]{1,15} -> @usuario",
    "url": "links, with or without scheme -> url",
    "repeated": "a character more than three times in a row -> three times",
    "emoji": "-> emoji, its Spanish name, emoji",
    "laughter": "[ja][ja]+aj[ja]+ -> jaja",
    "hashtag": "#UnaPalabra -> una palabra",
    **_SPACE,
    **_BLANK,
}
_CARDIFF = {"mention": "words in @ -> @user", "url": "words in http -> http", **_SPACE, **_BLANK}
_BERTWEET = {
    "mention": "@[A-Za-z0-9_]{1,15} -> @USER",
    "url": "links, with or without scheme -> HTTPURL",
    "emoji": "-> its English name between colons",
    "punctuation": "U+2019 -> ', U+2026 -> ...",
    **_SPACE,
    **_BLANK,
}
_OURS = frozenset({"user", "url"})
_VERSIONS = (
    Cleaning(FIRST, _ORIGINAL, _twilbert_1, _OURS, empties_invisible=False),
    Cleaning("twilbert-2", _COMPOSED, _twilbert_2, _OURS),
    Cleaning("robertuito-1", _ROBERTUITO, encoder_cleaning.robertuito, frozenset({"@usuario", "url"})),
    Cleaning("cardiff-1", _CARDIFF, encoder_cleaning.cardiff, frozenset({"@user", "http"})),
    Cleaning("bertweet-1", _BERTWEET, encoder_cleaning.bertweet, frozenset({"@USER", "HTTPURL"})),
    Cleaning("none-1", {**_SPACE, **_BLANK}, _none, frozenset()),
)
_BY_NAME = {cleaning.name: cleaning for cleaning in _VERSIONS}
PRESETS = {cleaning.name.rpartition("-")[0]: cleaning for cleaning in _VERSIONS}
"""The newest version of each set of rules, by its name without version."""
TWILBERT = PRESETS["twilbert"]
_WELL_KNOWN = {  # parts of encoders' names, and what their users fed them
    "robertuito": "robertuito",
    "bertweet": "bertweet",
    "twitter-xlm-roberta": "cardiff",
    "twitter-roberta": "cardiff",
    "twilbert": "twilbert",
}


def named(name: str) -> Cleaning:
    """Return the rules of a preset ("twilbert": its newest version) or of a version ("twilbert-1"); UsageError."""
    cleaning = PRESETS.get(name) or _BY_NAME.get(name)
    if cleaning is None:
        raise UsageError(f"cleaning {name!r}: unknown; expected one of {', '.join([*PRESETS, *_BY_NAME])}")
    return cleaning


def of_model(*names: str) -> Cleaning:
    """Return what the users of an encoder fed it, by its folders' names or hub id: of one not well known, `none`."""
    return next(filter(None, map(_well_known, names)), PRESETS["none"])


def chosen(name: str) -> Cleaning:
    """Return the rules that a user names: a preset, a version, or a well-known encoder; UsageError otherwise."""
    return _well_known(name) or named(name)


def _well_known(name: str) -> Cleaning | None:
    last = name.rstrip("/").rpartition("/")[2].lower()
    if last in PRESETS or last in _BY_NAME:
        return None
    return next((PRESETS[preset] for part, preset in _WELL_KNOWN.items() if part in last), None)


def recorded(record: Mapping[str, str]) -> Cleaning:
    """Return the rules that a corpus or tokenizer records."""
    return named(record.get("name", FIRST))


def clean_as_original(text: str) -> str:
    """Clean `text` as the original's evaluation applications did, to compare with the figures they printed.

    Entities come last, so that escaped links and mentions stay, and RT is removed inside words too (DEPORTIVOS).
    """
    text = _MENTION.sub("user", _SCHEME_LINK.sub("url", text)).replace("…", " ").replace("RT", " ").strip()
    return " ".join(html.unescape(text).split())
