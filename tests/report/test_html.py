"""Templates: what every page has, what the parts show, what becomes of characters that HTML forbids."""

from __future__ import annotations

import re
from typing import Any

import jinja2
import pytest

from tests.report.parsing import parsed
from twilbert.report import html

SMALL = {
    "results": {"sweep": "s", "twilbert": "1"},
    "studies": [],
    "n_trials": 0,
    "headers": [],
    "rows": [],
    "models": None,
}


def page(**values: Any) -> str:
    """The page of a sweep without studies."""
    return html.render("tuning/page.html.jinja", **SMALL | {"tiles": []} | values)


def part(call: str, **values: Any) -> str:
    """What a macro of the parts draws."""
    source = f'{{% import "report/parts.html.jinja" as parts %}}{{{{ parts.{call} }}}}'
    return html.environment().from_string(source).render(values)


def test_characters_that_html_forbids_become_replacement_characters():
    text = page(tiles=[("a\x00b\x1bc\ud83dd\x85e\tf\n", "1", "")])
    assert "<dt>a\ufffdb\ufffdc\ufffdd\ufffde\tf\n</dt>" in text
    text.encode()


def test_a_page_asks_nothing_of_the_network():
    text = page()
    parsed(text)
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style and "prefers-color-scheme: dark" in style[1] and "@media print" in style[1]
    assert not re.search(r"@import|url\(|https?:|//", style[1])
    assert 'name="viewport"' in text and not re.search(r"https?:", text)


def test_a_value_that_a_page_lacks_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="n_trials"):
        html.render(
            "tuning/page.html.jinja", **{key: value for key, value in SMALL.items() if key != "n_trials"}, tiles=[]
        )


def test_columns_of_numbers_go_to_the_right():
    rows = [["a", 1, "12 %", "–"], ["b", None, "3 %", "1"], ["7", 3, "4.5 %", "2"]]
    table = part('table(["name", "n", "share", "mixed"], rows)', rows=rows)
    first = re.search(r"<tbody>\s*<tr>(.*?)</tr>", table)
    assert first and first[1] == '<td>a</td><td class="number">1</td><td class="number">12 %</td><td>–</td>'
    assert "<td" not in part('table(["name"], [])')


def test_a_confusion_matrix_shades_by_share_of_its_row():
    matrix = part('confusion(["a", "b"], [[30, 10], [0, 0]])')
    assert re.findall(r'class="(\w+)" style="--share:(\d+)%"', matrix) == [
        ("hit", "75"),
        ("miss", "25"),
        ("miss", "0"),
        ("hit", "0"),
    ]


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1, "100\u00a0%"),
        (0.0995, "10\u00a0%"),
        (0.042, "4.2\u00a0%"),
        (0.0003, "0.03\u00a0%"),
        (1e-7, "<0.01\u00a0%"),
        (0, "0.00\u00a0%"),
    ],
)
def test_shares_have_the_digits_that_matter(share, text):
    assert html.percent(share) == text
