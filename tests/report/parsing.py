"""Checks of a page: well-formed, without script, self-contained, and every text of others shown as it is."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

HOSTILE = """<script>alert("x")</script><img src=x onerror='y'>&amp;"'</style></svg></title>{{ 7*7 }}{% raw %}{#"""
_VOID = {"meta", "line", "br", "img", "link", "input"}


class Parsed(HTMLParser):
    """A page's tags, attributes and texts; fails on what is not closed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        assert not (tag in ("p", "ol", "ul", "table", "div") and "p" in self.open), f"<{tag}> ends the <p> around it"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.texts.append(data)


def parsed(markup: str) -> Parsed:
    """`markup`, well-formed, without script, and without anything that a browser would fetch."""
    page = Parsed()
    page.feed(markup)
    page.close()
    assert page.open == []
    assert not {"script", "img", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on") and name not in ("src", "xlink:href", "srcset", "action"), name
        assert name != "href" or value.startswith("./"), value
        assert "url(" not in value and "//" not in value, value
    return page


def shows_texts_as_they_are(page_with: Callable[[str], str], least: int) -> None:
    """Assert that a hostile text changes no tag of a page, and stands there as often as a plain one, `least` times."""
    plain, hostile = parsed(page_with("plain")), parsed(page_with(HOSTILE))
    assert hostile.tags == plain.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]
    shown = sum(text.count("plain") for text in plain.texts)
    assert shown >= least, shown
    assert sum(text.count(HOSTILE) for text in hostile.texts) == shown
