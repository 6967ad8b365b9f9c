"""What the users of well-known encoders of tweets fed them, after their authors' descriptions.

    robertuito   Pérez et al. 2022 (RoBERTuito), section 3; pysentimiento's `preprocess_tweet`
    cardiff      Barbieri et al. 2020 (TweetEval), 2022 (XLM-T), and their model cards
    bertweet     Nguyen et al. 2020 (BERTweet), section 2; words are not split from punctuation here

White space is single spaces, where the authors leave it as it was.
"""

from __future__ import annotations

import re

from twilbert.errors import UsageError

_LINK = re.compile(r"(?:https?://|www\.|pic\.twitter\.com/|(?<![\w.@-])t\.co/)\S+", re.IGNORECASE)
_HANDLE = re.compile(r"@[A-Za-z0-9_]{1,15}")
_REPEATED = re.compile(r"(.)\1{3,}")
_LAUGHTER = re.compile(r"[ja][ja]+aj[ja]+")
_HASHTAG = re.compile(r"\B#(\w*[a-zA-Z]+\w*)")
_CAPITALS = re.compile(r"([A-Z]+)")
_OPEN, _CLOSE = "\ue000", "\ue001"  # private characters around an emoji's name
_EMOJI = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")
_LATIN_1 = re.compile("[^\0-\xff]")  # no emoji without one, but ©, ® and digits with a variation selector


def robertuito(text: str) -> str:
    """@usuario, url, at most three equal characters in a row, emoji by their Spanish names, jaja, hashtags as words."""
    text = _LINK.sub("url", _HANDLE.sub("@usuario", " ".join(text.split())))
    text = _REPEATED.sub(r"\1\1\1", text)
    text = _EMOJI.sub(lambda name: f" emoji {name[1].replace('_', ' ')} emoji ", _named_emoji(text, "es"))
    text = _LAUGHTER.sub("jaja", text)
    text = _HASHTAG.sub(lambda tag: _CAPITALS.sub(r" \1", tag[1]).strip().lower(), text)
    return " ".join(text.split())


def cardiff(text: str) -> str:
    """@user for words that begin with @, http for those that begin with http."""
    words = ("@user" if word[0] == "@" and len(word) > 1 else word for word in text.split())
    return " ".join("http" if word.startswith("http") else word for word in words)


def bertweet(text: str) -> str:
    """@USER, HTTPURL, emoji by their English names between colons, ' and ... for ’ and …."""
    text = text.replace("’", "'").replace("…", "...")
    text = _LINK.sub(" HTTPURL ", _HANDLE.sub(" @USER ", text))
    return " ".join(_EMOJI.sub(r" :\1: ", _named_emoji(text, "en")).split())


def _named_emoji(text: str, language: str) -> str:
    if not _LATIN_1.search(text):
        return text
    try:
        import emoji
    except ImportError as error:
        raise UsageError("these rules name emoji, which needs the package emoji: pip install emoji") from error
    return emoji.demojize(text, language=language, delimiters=(_OPEN, _CLOSE))
