"""Cleaning and drop rules, as the original program's."""

from __future__ import annotations

import random

import pytest

from twilbert.data.cleaning import FIRST, TWILBERT, chosen, named, of_model, recorded
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


PRESETS_OF = {
    "robertuito": [
        ("@perezjotaeme debería cambiar esto http://bit.ly/sarasa", "@usuario debería cambiar esto url"),
        ("no entiendo naaaaaaaadaaaaaaaa", "no entiendo naaadaaa"),
        ("jajajajajajaajjaaaaaajjjajjaja no lo creo", "jaja no lo creo"),
        ("esto es #UnaGenialidad", "esto es una genialidad"),
        ("🎉😂", "emoji cañón de confeti emoji emoji cara llorando de risa emoji"),
        ("año © #1", "año © #1"),
    ],
    "cardiff": [
        ("@ana mira https://t.co/x  ya @", "@user mira http ya @"),
        ("hola @ana, (http://x.es)", "hola @user (http://x.es)"),
        ("😂 httpd", "😂 http"),
    ],
    "bertweet": [
        ("@ana: mira https://t.co/x 😂", "@USER : mira HTTPURL :face_with_tears_of_joy:"),
        ("it’s www.x.es… fin", "it's HTTPURL fin"),
        ("so 👍🏽good", "so :thumbs_up_medium_skin_tone: good"),
    ],
    "none": [("@ana  &amp;\t…", "@ana &amp; …")],
}


@pytest.mark.parametrize(
    ("preset", "raw", "cleaned"), [(p, *case) for p, cases in PRESETS_OF.items() for case in cases]
)
def test_presets_are_what_the_encoders_users_feed_them(preset: str, raw: str, cleaned: str):
    assert named(preset)(raw) == cleaned == named(preset)(cleaned)
    assert named(preset)("\u200b \ufe0f") == ""
    assert recorded(named(preset).record) is named(preset)


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("pysentimiento/robertuito-base-uncased", "robertuito"), ("cardiffnlp/twitter-xlm-roberta-base", "cardiff"),
        ("vinai/bertweet-large", "bertweet"), ("/data/twitter-roberta-base/", "cardiff"),
        ("/bertweet/mine/beto", "none"), ("dccuchile/bert-base-spanish-wwm-cased", "none"),
    ],
)  # fmt: skip
def test_an_encoders_rules_go_by_its_name(model: str, preset: str):
    assert of_model(model) is named(preset)


def test_rules_are_chosen_by_preset_version_or_encoder():
    assert chosen("vinai/bertweet-base") is chosen("bertweet") is chosen("bertweet-1") and chosen(FIRST).name == FIRST
    with pytest.raises(UsageError, match="unknown; expected one of twilbert, robertuito, cardiff, bertweet, none"):
        chosen("dccuchile/beto")


def test_pairs_of_placeholders_alone_are_dropped_under_all_rules():
    assert named("cardiff").drop_reason("@user http @user", None) == "only_mentions_and_links"
    assert named("robertuito").drop_reason("@usuario url url", "url") == "only_mentions_and_links"
    assert named("bertweet").drop_reason("user url url", None) is None
