"""Line and bar charts as inline SVG for the pages of report.py: drawn here, coloured by report.css, no script.

Each chart is a figure with its title, a legend where there are several series, and the numbers folded under it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from twilbert.report import Html, fold, join, table, tag, text

_WIDTH, _HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 10, 12, 40
_DIGIT = 8  # a digit's width, at most
_MOST_MARKED = 40  # points of a series that are still drawn one by one
_MOST_LISTED = 200  # rows of the folded table
_FEW = 30  # cases under which a bar is drawn hollow
N_COLOURS = 6


@dataclass(frozen=True)
class Series:
    """A line: its points and name; `reference` draws it thin and dashed, as something to compare with."""

    name: str
    points: Sequence[tuple[float, float]]
    reference: bool = False
    colour: int | None = None
    """From 1 to N_COLOURS, for a thing that has one colour in all charts of a page; None = the next in turn."""


@dataclass(frozen=True)
class _Scale:
    """A range and the distance of its ticks."""

    low: float
    high: float
    step: float

    @classmethod
    def over(cls, values: Sequence[float], fixed: tuple[float, float] | None = None) -> _Scale:
        """The range of `values` out to the next ticks, or the `fixed` one."""
        low, high = fixed or _span(values)
        step = _step(low, high)
        if fixed is None:
            low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        return cls(low, high, step)

    @property
    def ticks(self) -> list[float]:
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [i * self.step for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Axes:
    x_low: float
    x_high: float
    y_scale: _Scale

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        scale = self.y_scale
        return _HEIGHT - _BOTTOM - (value - scale.low) / (scale.high - scale.low) * (_HEIGHT - _TOP - _BOTTOM)


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Html:
    """Lines over a common x; points that are no numbers are left out. Ranges default to the data's."""
    drawn = [replace(s, points=[p for p in s.points if all(map(math.isfinite, p))]) for s in series]
    drawn = [s for s in drawn if s.points]
    if not drawn:
        return _figure(title, tag("p", "no points", kind="note"), [], ["", ""], [])
    x_low, x_high = x_range or _span([x for s in drawn for x, _ in s.points])
    axes = _Axes(x_low, x_high, _Scale.over([y for s in drawn for _, y in s.points], y_range))
    colours = _colours(drawn)
    shapes = [_grid(axes, _Scale(x_low, x_high, _step(x_low, x_high)).ticks, x_label, y_label)]
    shapes += [_line(s, colour, axes) for s, colour in zip(drawn, colours, strict=True)]
    rows = [[s.name, _number(x), _number(y)] for s in drawn if not s.reference for x, y in s.points]
    return _figure(
        title,
        _svg(title, shapes),
        [(s.name, colour) for s, colour in zip(drawn, colours, strict=True)] if len(series) > 1 else [],
        ["", x_label, y_label],
        rows,
    )


def bar_chart(
    title: str,
    labels: Sequence[str],
    values: Sequence[float | None],
    x_label: str,
    y_label: str,
    *,
    counts: Sequence[int] | None = None,
    y_range: tuple[float, float] | None = None,
    as_percent: bool = False,
) -> Html:
    """A bar for each label; None is a gap.

    `counts`: how many cases each bar is over; they are listed with the numbers, and bars over few cases are hollow.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    axes = _Axes(0, max(1, len(labels)), _Scale.over([*known, 0.0], y_range))
    shown = (lambda v: f"{100 * v:.0f}") if as_percent else _number
    shapes = [_grid(axes, [], x_label, y_label, as_percent=as_percent)]
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle = axes.x(i + 0.5)
        shapes.append(_text(middle, _HEIGHT - _BOTTOM + 15, label, "middle"))
        if value is None or not math.isfinite(value):
            continue
        width = min(56.0, 0.74 * (axes.x(1) - axes.x(0)))
        top, ground = axes.y(max(value, 0)), axes.y(min(value, 0))
        few = " few" if counts and counts[i] < _FEW else ""
        shape = f'<rect class="c1{few}" x="{middle - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
        said = f"{label}: {shown(value)}" + (" %" if as_percent else "") + (f", n = {counts[i]:,}" if counts else "")
        shapes.append(Html(f'{shape}height="{max(0.0, ground - top):.1f}">{tag("title", said)}</rect>'))
        shapes.append(_text(middle, top - 4 if value >= 0 else ground + 12, shown(value), "middle", "value"))
    headers = [x_label, y_label, *(["n"] if counts else [])]
    cells = ["" if v is None else shown(v) for v in values]
    rows = [[label, cells[i], *([f"{counts[i]:,}"] if counts else [])] for i, label in enumerate(labels)]
    return _figure(title, _svg(title, shapes), [], headers, rows)


def _figure(
    title: str, drawing: Html, legend: Sequence[tuple[str, str]], headers: Sequence[str], rows: Sequence[Sequence[str]]
) -> Html:
    keys = [tag("span", join([tag("i", "", kind=colour), name])) for name, colour in legend]
    parts = [tag("figcaption", title), tag("p", join(keys), kind="legend") if keys else Html(), drawing]
    if rows:
        step = max(1, -(-len(rows) // _MOST_LISTED))
        said = "the numbers" if step == 1 else f"the numbers (one in {step})"
        parts.append(fold(said, table(headers, rows[::step])))
    return tag("figure", join(parts))


def _svg(title: str, shapes: Sequence[Html]) -> Html:
    opened = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(title)}">'
    return Html(f"{opened}{join(shapes)}</svg>")


def _grid(axes: _Axes, x_ticks: Sequence[float], x_label: str, y_label: str, *, as_percent: bool = False) -> Html:
    """Horizontal lines with their values, ticks under the x axis, the axes' names."""
    shapes = []
    said = _told_apart(axes.y_scale.ticks)
    for tick in axes.y_scale.ticks:
        y = axes.y(tick)
        shapes.append(Html(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'))
        shapes.append(_text(_LEFT - 5, y + 4, f"{100 * tick:.0f}" if as_percent else said[tick], "end"))
    for tick in x_ticks:
        label = _number(tick)
        at = min(axes.x(tick), _WIDTH - _DIGIT / 2 * len(label))  # the last may stand at the very edge
        shapes.append(_text(at, _HEIGHT - _BOTTOM + 15, label, "middle"))
    shapes.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_label, "middle", "axis"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'<text class="axis" text-anchor="middle" transform="translate(11 {middle:.0f}) rotate(-90)">'
    shapes.append(Html(f"{turned}{text(y_label)}</text>"))
    return join(shapes)


def _line(series: Series, colour: str, axes: _Axes) -> Html:
    points = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in series.points)
    shapes = [Html(f'<polyline class="{colour}" points="{points}"/>')]
    if not series.reference and len(series.points) <= _MOST_MARKED:
        for x, y in series.points:
            said = tag("title", f"{series.name}: {_number(x)}, {_number(y)}")
            shapes.append(
                Html(f'<circle class="{colour}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3">{said}</circle>')
            )
    return join(shapes)


def _text(x: float, y: float, content: str, anchor: str, kind: str = "") -> Html:
    return tag("text", content, kind=kind, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _colours(series: Sequence[Series]) -> list[str]:
    """A class of report.css for each: c1 … c6 in turn (each with its own dashes), "reference" for references."""
    names, used = [], 0
    for one in series:
        names.append("reference" if one.reference else f"c{one.colour or used % N_COLOURS + 1}")
        used += not one.reference
    return names


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _step(low: float, high: float) -> float:
    """The distance of ticks: 1, 2 or 5 times a power of ten, for four to seven of them."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough)


def _told_apart(ticks: Sequence[float]) -> dict[float, str]:
    """The ticks' numbers, with as many digits as it takes for no two to read the same."""
    short = {tick: _number(tick) for tick in ticks}
    for digits in range(4, 9):
        if len(set(short.values())) == len(ticks):
            break
        short = {tick: f"{tick:.{digits}g}" for tick in ticks}
    return short


def _number(value: float) -> str:
    """Short: 12,500 · 1.25M · 200G · 0.0005 · 3.0e-06."""
    if value == 0:
        return "0"
    for unit, sign in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{sign}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"
