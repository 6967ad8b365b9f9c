"""Charts draw what they are given, inside their frame."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.report.parsing import parsed, shows_texts_as_they_are
from tests.report.test_html import part
from twilbert.report import charts
from twilbert.report.charts import Series


def line_chart(*args: Any, **settings: Any) -> str:
    """A line chart as it stands in a page."""
    return part("chart(c)", c=charts.line_chart(*args, **settings))


def bar_chart(*args: Any, **settings: Any) -> str:
    """A bar chart as it stands in a page."""
    return part("chart(c)", c=charts.bar_chart(*args, **settings))


def test_every_text_of_a_chart_is_shown_as_it_is():
    def both(text: str) -> str:
        lines = [Series(text, [(0, 1), (1, 2)]), Series(text, [(0, 0)]), Series(text, [(1, 1)], reference=True)]
        bars = bar_chart(text, [text, text], [1.0, None], text, text, counts=[5, 0])
        return line_chart(text, lines, text, text) + bars

    shows_texts_as_they_are(both, 20)


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
    numbers = re.findall(r'text-anchor="end"[^>]*>([^<]+)<', page)
    assert len(numbers) > 2
    assert len(set(numbers)) == len(numbers)
