"""Pages: hostile texts stay texts, nothing comes from outside, charts draw what they are given."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from twilbert import report
from twilbert.charts import Series, bar_chart, line_chart
from twilbert.report import Bar, Html, Tile, Token

HOSTILE = """<script>alert("x")</script><img src=x onerror='y'>&amp;"'</style></svg></title>"""
_VOID = {"meta", "line", "br", "img", "link", "input"}


class _Checked(HTMLParser):
    """Fails on what is not closed, and keeps tags, attributes and the text a reader sees."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.seen.append(data)


def parsed(markup: str) -> _Checked:
    """`markup`, well-formed, without script, and without anything that a browser would fetch."""
    checked = _Checked()
    checked.feed(markup)
    checked.close()
    assert checked.open == []
    assert not {"script", "img", "link", "iframe", "object", "embed", "base", "form"} & set(checked.tags)
    for name, value in checked.attributes:
        assert not name.startswith("on") and name not in ("src", "href", "xlink:href", "srcset", "action"), name
        assert "url(" not in value and "//" not in value, value
    return checked


def everything(text: str) -> str:
    """A page with `text` in every place that takes one."""
    sections = [
        report.tiles([Tile(text, text, text)]),
        report.section(text, report.table([text, "n"], [[text, 1], [text, 2.5]], text), text, note=text),
        report.confusion([text, text], [[3, 1], [0, 0]], text, text),
        report.token_strip([Token(text, "mask", text, "✓", text), Token(text, starts_word=False, shade=0.4)]),
        report.bars([Bar(text, 0.5, True), Bar(text, 0.0)]),
        report.card(text, text),
        report.fold(text, text),
        report.grid([line_chart(text, [Series(text, [(0, 1), (1, 2)]), Series(text, [(0, 0)])], text, text)]),
        bar_chart(text, [text, text], [1.0, None], text, text, counts=[5, 0]),
    ]
    return report.page(text, text, sections, text, text)


def test_hostile_texts_are_shown_and_never_obeyed():
    plain, hostile = parsed(everything("plain")), parsed(everything(HOSTILE))
    assert hostile.tags == plain.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]
    shown = sum(part.count(HOSTILE) for part in hostile.seen)
    assert shown == sum(part.count("plain") for part in plain.seen) > 20


def test_characters_that_html_forbids_become_replacement_characters():
    page = report.text("a\x00b\x1bc\ud83dd\x85e\tf\n")
    assert page == "a\ufffdb\ufffdc\ufffdd\ufffde\tf\n"
    page.encode()


def test_a_page_asks_nothing_of_the_network():
    page = everything("x")
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style and "prefers-color-scheme: dark" in style[1] and "@media print" in style[1]
    assert not re.search(r"@import|url\(|https?:|//", style[1])
    assert 'name="viewport"' in page
    assert not re.search(r"https?:", page)


def test_markup_is_left_alone_and_text_escaped():
    assert report.text(Html("<b>")) == "<b>" and report.text("<b>") == "&lt;b&gt;"
    assert report.tag("p", report.join(["<", Html("<i></i>")]), kind="a b") == '<p class="a b">&lt;<i></i></p>'


def test_columns_of_numbers_go_to_the_right():
    made = report.table(["name", "n", "share"], [["a", 1, "12 %"], ["b", None, "3 %"], ["7", 3, "4.5 %"]])
    first = re.search(r"<tbody><tr>(.*?)</tr>", made)
    assert first and first[1] == '<td>a</td><td class="number">1</td><td class="number">12 %</td>'


def test_a_confusion_matrix_shades_by_share_of_its_row():
    made = report.confusion(["a", "b"], [[30, 10], [0, 0]])
    assert re.findall(r'class="(\w+)" style="--share:(\d+)%"', made) == [
        ("hit", "75"),
        ("miss", "25"),
        ("miss", "0"),
        ("hit", "0"),
    ]


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (1, "100\u00a0%"),
        (0.0995, "10\u00a0%"),
        (0.042, "4.2\u00a0%"),
        (0.0003, "0.03\u00a0%"),
        (1e-7, "<0.01\u00a0%"),
        (0, "0.00\u00a0%"),
    ],
)
def test_shares_have_the_digits_that_say_something(share, said):
    assert report.percent(share) == said


def _points(chart: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'<polyline class="\w+" points="([^"]*)"', chart)
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


def test_a_line_goes_where_its_numbers_say():
    chart = line_chart("t", [Series("s", [(0, 0), (5, 5), (10, 10)])], "x", "y", y_range=(0, 10))
    (a, b, c) = _points(chart)[0]
    assert b == pytest.approx(((a[0] + c[0]) / 2, (a[1] + c[1]) / 2))
    assert c[0] > a[0] and c[1] < a[1]  # up is less in SVG
    parsed(chart)


def test_points_that_are_no_numbers_are_left_out():
    chart = line_chart("t", [Series("s", [(0, 1), (1, float("nan")), (2, float("inf")), (3, 2)])], "x", "y")
    assert len(_points(chart)[0]) == 2 and "nan" not in chart
    assert "no points" in line_chart("t", [Series("s", [])], "x", "y")
    assert "no points" in line_chart("t", [Series("s", [(0, float("nan"))])], "x", "y")


@pytest.mark.parametrize("values", [[0.0, 0.0], [-3.0, 2.0], [1e-9, 2e-9], [1e12], [5.0, None], [None], []])
def test_bars_of_any_size_stay_inside(values):
    chart = bar_chart("t", [str(i) for i in range(len(values))], values, "x", "y")
    parsed(chart)
    known = [value for value in values if value is not None]
    rects = re.findall(r'<rect class="c1[^"]*" x="([\d.-]+)" y="([\d.-]+)" width="([\d.]+)" height="([\d.]+)"', chart)
    assert len(rects) == len(known)
    for x, y, width, height in (map(float, rect) for rect in rects):
        assert x >= 0 and y >= 0 and x + width <= 420 and y + height <= 240


def test_bars_over_few_cases_are_hollow():
    chart = bar_chart("t", ["a", "b"], [1, 1], "x", "y", counts=[29, 30])
    assert re.findall(r'<rect class="([^"]*)"', chart) == ["c1 few", "c1"]


def test_a_single_point_and_a_flat_line_have_axes():
    for points in ([(3, 3)], [(0, 7), (1, 7)]):
        chart = line_chart("t", [Series("s", points)], "x", "y")
        assert _points(chart) and "NaN" not in chart
        parsed(chart)


def test_long_curves_list_a_part_of_their_numbers():
    chart = line_chart("t", [Series("s", [(i, i) for i in range(1000)])], "x", "y")
    assert "one in 5" in chart and chart.count("<tr>") == 201


def test_ticks_that_lie_close_together_are_told_apart():
    page = line_chart("loss", [Series("run", [(1, 1.1012), (2, 1.0988)])], x_label="epoch", y_label="loss")
    numbers = re.findall(r'text-anchor="end"[^>]*>([^<]+)<', str(page))
    assert len(numbers) > 2
    assert len(set(numbers)) == len(numbers)
