"""Cleaning and drop rules, as the original program's."""

from __future__ import annotations

import random

import pytest

from twilbert.data.cleaning import FIRST, TWILBERT, named
from twilbert.errors import UsageError

clean, drop_reason = TWILBERT, TWILBERT.drop_reason


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("mira https://t.co/XeoYxu3D2q ya", "mira url ya"),
        ("http://a.es/b?c=1&amp;d=2 fin", "url fin"),
        ("@ana @@luis_2 hola", "user user hola"),
        ("@José dice", "user dice"),  # the whole name, accent included
        ("correo ana@mail.com", "correo anauser.com"),  # as the original
        ("burla url user", "burla url user"),
        ("tú &amp; yo &lt;3 &quot;sí&quot;", 'tú & yo <3 "sí"'),
        ("así… que no…", "así que no"),
        ("https://t.co/abc… sigue", "url sigue"),
        ("  dos\u00a0\t espacios \u2003 ", "dos espacios"),
        ("&#64;ana", "user"),
        ("👩‍👩‍👧 🇪🇸 <3 #Fútbol", "👩‍👩‍👧 🇪🇸 <3 #Fútbol"),
        ("[MASK] [SEP]", "[MASK] [SEP]"),
        ("&nbsp;…\n", ""),
        ("", ""),
    ],
)
def test_cleaning(raw: str, cleaned: str):
    assert clean(raw) == cleaned


def test_cleaning_twice_changes_nothing():
    pieces = [*"@…<é#. \t", "ana", "https://", "t.co/x", "&amp;", "&lt;", "👏🏻", "user", "url"]
    rng = random.Random(0)
    for _ in range(2_000):
        once = clean("".join(rng.choices(pieces, k=rng.randint(0, 12))))
        if "&" not in once:  # an entity put together from pieces, or escaped twice, may unfold once more
            assert clean(once) == once


@pytest.mark.parametrize(
    ("tweet", "reply", "reason"),
    [
        ("", "una respuesta muy larga", "empty_tweet"),
        ("", None, "empty_tweet"),
        ("user url", "user", "only_mentions_and_links"),
        ("user user user url", None, "only_mentions_and_links"),
        ("user", "user ya lo sé", None),
        ("hola amigo", "sí claro", "too_short"),
        ("hola amigo", None, "too_short"),
        ("hola amigo mío", "sí", None),
        ("hola", "sí que lo es", None),
        ("usuario nuevo aquí", "user", None),
        ("un user url", "user", None),
    ],
)
def test_drop_rules(tweet: str, reply: str | None, reason: str | None):
    assert drop_reason(tweet, reply) == reason


def test_rt_goes_as_a_word_only_where_asked():
    assert clean("RT @ana: PARTE, RT!", remove_rt=True) == "user: PARTE, !"
    assert clean("RT @ana: RTL", remove_rt=True) == "user: RTL"
    assert clean("RT hola") == "RT hola"


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("hola @Jose\u0301 que\u0301", "hola user qué"),
        ("@q\u0301ue dice", "user dice"),  # an accent without a composed letter
        ("@ana\ufe0f hola", "user hola"),
        ("&#64;Jose&#769; dice", "user dice"),
        ("HTTPS://T.CO/AbC mira Http://x.es/a", "url mira url"),
        ("t.co/AbC, (t.co/x) pic.twitter.com/AbC", "url (url url"),
        ("vistopic.twitter.com/AbC1 PIC.TWITTER.COM/x", "vistourl url"),
        ("mira:https://t.co/abc.Gracias", "mira:url"),
        ("at.co/x es.t.co/x -t.co/x ana@t.co/x", "at.co/x es.t.co/x -t.co/x anauser.co/x"),
        ("t.co y pic.twitter.com/ solos", "t.co y pic.twitter.com/ solos"),
        ("\u200b\u200d \ufe0f", ""),
        ("\u00ad\u2060", ""),
        ("👍", "👍"),
        ("!", "!"),
    ],
)
def test_composed_characters_and_links_without_scheme(raw: str, cleaned: str):
    assert clean(raw) == cleaned == clean(cleaned)


def test_the_first_rules_stay_as_they_were():
    first = named(FIRST)
    assert first("HTTPS://x.es t.co/x Jose\u0301 \u200b") == "HTTPS://x.es t.co/x Jose\u0301 \u200b"
    assert first("@Jose\u0301 https://t.co/x") == "user\u0301 url"
    with pytest.raises(UsageError, match="cleaning 'twilbert-9': unknown; expected one of twilbert, "):
        named("twilbert-9")
