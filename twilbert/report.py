"""Self-contained HTML pages: one file, no script, nothing from the network, for a phone, a wide screen and paper.

    page ◀─ section ◀─ tiles · table · confusion · token_strip · bars · figures (charts.py) · fold

Every function returns `Html`, and escapes whatever text it is given that is not `Html` already: texts of tweets,
tokens and file names can be passed as they are. The look is report.css; colours are its variables, so that light and
dark (the reader's own setting) and print come from one place.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Html(str):
    """Markup: put into a page as it is."""

    __slots__ = ()


Content = str | Html


def text(content: object) -> Html:
    """`content` as markup: `Html` unchanged, anything else escaped; what no HTML file may hold becomes U+FFFD."""
    if isinstance(content, Html):
        return content
    return Html(html.escape("".join(c if _is_allowed(c) else "\ufffd" for c in str(content))))


def _is_allowed(c: str) -> bool:
    code = ord(c)
    return (code >= 0x20 or c in "\t\n\r") and not 0x7F <= code < 0xA0 and not 0xD800 <= code < 0xE000


def join(parts: Iterable[Content], between: Content = "") -> Html:
    """Parts one after another."""
    return Html(text(between).join(text(part) for part in parts))


def tag(name: str, content: Content = "", *, kind: str = "", **attributes: str) -> Html:
    """`<name class=kind …>content</name>`; attributes' underscores become hyphens."""
    named = ({"class": kind} if kind else {}) | {key.replace("_", "-"): value for key, value in attributes.items()}
    written = "".join(f' {key}="{text(value)}"' for key, value in named.items())
    return Html(f"<{name}{written}>{text(content)}</{name}>")


def page(
    title: str,
    subtitle: Content,
    sections: Iterable[Html],
    footer: Content = "",
    language: str = "en",
    reload_seconds: float | None = None,
) -> str:
    """A whole HTML document, which loads itself again every so many seconds where they are given."""
    again = f'<meta http-equiv="refresh" content="{max(1, round(reload_seconds))}">\n' if reload_seconds else ""
    style = resources.files("twilbert").joinpath("report.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="{text(language)}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n{again}'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{tag('header', join([tag('h1', title), tag('p', subtitle, kind='subtitle')]))}\n"
        f"{tag('main', join(sections, Html(chr(10))))}\n{tag('footer', footer)}\n</body>\n</html>\n"
    )


def section(title: str, *bodies: Content, note: Content = "") -> Html:
    """A heading, a line on what is seen, and what there is to see."""
    return tag("section", join([tag("h2", title), tag("p", note, kind="note") if note else Html(), *bodies]))


@dataclass(frozen=True)
class Tile:
    """One figure to see first."""

    label: str
    value: str
    note: str = ""


def tiles(entries: Iterable[Tile]) -> Html:
    """Figures side by side, as many in a row as fit."""

    def one(entry: Tile) -> Html:
        parts = [tag("dt", entry.label), tag("dd", entry.value)]
        return tag("div", join([*parts, tag("dd", entry.note, kind="note")] if entry.note else parts), kind="tile")

    return tag("dl", join(map(one, entries)), kind="tiles")


def table(headers: Sequence[Content], rows: Iterable[Sequence[object]], caption: Content = "") -> Html:
    """Rows under headers; columns of numbers only (or nothing) go to the right. Scrolls sideways on a narrow screen."""
    cells = [list(row) for row in rows]
    right = [
        any(_is_number(row[i]) for row in cells) and all(_is_number(row[i]) or row[i] in ("", None) for row in cells)
        for i in range(len(headers))
    ]

    def line(name: str, row: Sequence[object]) -> Html:
        made = (
            tag(name, text("" if cell is None else cell), kind="number" if r else "")
            for cell, r in zip(row, right, strict=True)
        )
        return tag("tr", join(made))

    head = tag("thead", line("th", headers))
    body = tag("tbody", join(line("td", row) for row in cells))
    named = tag("caption", caption) if caption else Html()
    return tag("div", tag("table", join([named, head, body])), kind="scroll", tabindex="0")


def _is_number(cell: object) -> bool:
    if isinstance(cell, int | float):
        return True
    shown = re.sub("<[^>]*>", "", cell) if isinstance(cell, Html) else str(cell)
    digits = shown.replace(",", "").replace("−", "-").removesuffix("%").strip()
    try:
        float(digits)
    except ValueError:
        return False
    return True


def confusion(
    labels: Sequence[str], counts: Sequence[Sequence[int]], truth: str = "true", guess: str = "judged"
) -> Html:
    """counts[i][j] cases of class i taken for class j; shaded by the share of their row."""

    def cell(i: int, j: int, count: int) -> Html:
        share = count / max(1, sum(counts[i]))
        inner = join([tag("b", f"{count:,}"), tag("span", f"{100 * share:.0f}\u00a0%")])
        kind = "hit" if i == j else "miss"
        return tag("td", inner, kind=kind, style=f"--share:{100 * share:.0f}%")

    head = tag("tr", join([tag("th", f"{truth} ↓ {guess} →"), *(tag("th", label, scope="col") for label in labels)]))
    body = (
        tag("tr", join([tag("th", label, scope="row"), *(cell(i, j, n) for j, n in enumerate(counts[i]))]))
        for i, label in enumerate(labels)
    )
    return tag("div", tag("table", join([head, *body]), kind="confusion"), kind="scroll", tabindex="0")


@dataclass(frozen=True)
class Token:
    """One token of a strip. `kind` is a class of report.css: special, mask, random, kept, or nothing."""

    text: str
    kind: str = ""
    below: str = ""
    """A word under the token, e.g. what stood there instead."""
    mark: str = ""
    """A sign after `below`: ✓ or ✗."""
    note: str = ""
    """What a pointer resting on the token shows."""
    starts_word: bool = True
    shade: float | None = None
    """From 0 to 1: how strongly the token is coloured."""


def token_strip(tokens: Iterable[Token]) -> Html:
    """Tokens as running text; the pieces of a word touch and stay on one line where it holds them."""

    def one(token: Token) -> Html:
        kinds = ["token", token.kind, "" if token.starts_word else "joined"]
        attributes = {"title": token.note} if token.note else {}
        if token.shade is not None:
            kinds.append("shaded")
            attributes["style"] = f"--shade:{100 * min(1.0, max(0.0, token.shade)):.0f}%"
        below = tag("small", join([token.below, f" {token.mark}" if token.mark else ""])) if token.below else Html()
        return tag("span", join([tag("bdi", token.text), below]), kind=" ".join(filter(None, kinds)), **attributes)

    words: list[list[Html]] = []
    for token in tokens:
        if token.starts_word or not words:
            words.append([])
        words[-1].append(one(token))
    return tag("p", join(tag("span", join(pieces), kind="word") for pieces in words), kind="tokens")


@dataclass(frozen=True)
class Bar:
    """One line of a ranking; `value` from 0 to 1."""

    label: str
    value: float
    is_truth: bool = False


def bars(entries: Iterable[Bar]) -> Html:
    """A ranking with a bar for each share; the truth is set off by weight and a sign, not by colour alone."""

    def one(entry: Bar) -> Html:
        parts = [
            tag("bdi", f"{entry.label} ◂" if entry.is_truth else entry.label),
            tag("span", percent(entry.value), kind="value"),
        ]
        style = f"--share:{100 * min(1.0, max(0.0, entry.value)):.1f}%"
        return tag("li", join(parts), kind="truth" if entry.is_truth else "", style=style)

    return tag("ol", join(map(one, entries)), kind="bars")


def percent(share: float) -> str:
    """A share as per cent, its sign never on a new line, with the digits that say something: 93 %, 4.2 %, <0.01 %."""
    value = 100 * share
    if value >= 9.95:
        return f"{value:.0f}\u00a0%"
    if value >= 0.995:
        return f"{value:.1f}\u00a0%"
    return f"{value:.2f}\u00a0%" if value >= 0.005 or value == 0 else "<0.01\u00a0%"


def grid(parts: Iterable[Html], kind: str = "figures") -> Html:
    """Parts side by side where there is room: "figures" (wide), "cards" (narrow) or "columns" (two halves)."""
    return tag("div", join(parts), kind=kind)


def card(title: Content, *bodies: Content) -> Html:
    """A framed part with its own heading."""
    return tag("article", join([tag("h3", title), *bodies]), kind="card")


def fold(title: str, *bodies: Content) -> Html:
    """What is there when asked for."""
    return tag("details", join([tag("summary", title), *bodies]))
