"""Line and bar charts as data (axes, ticks, lines, bars, numbers), drawn as SVG by parts.html.jinja."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

_X_ENDS, _Y_ENDS = (58, 410), (200, 12)  # pixels of the axes' ends
_MOST_MARKED = 40  # points of a line that are still marked one by one
_MOST_LISTED = 200  # rows of the folded table
_FEW = 30  # cases under which a bar is drawn hollow
N_COLOURS = 6


@dataclass(frozen=True)
class Series:
    """A line: its points and name; `reference` draws it thin and dashed, for comparison."""

    name: str
    points: Sequence[tuple[float, float]]
    reference: bool = False
    colour: int | None = None
    """From 1 to N_COLOURS, to have one colour in all charts of a page; None = the next one."""

    @property
    def css_class(self) -> str:
        """Of style.css: c1 … c6 (each with its own dashes), or reference."""
        return "reference" if self.reference else f"c{self.colour}"

    @property
    def is_marked(self) -> bool:
        """Whether each of its points is marked."""
        return not self.reference and len(self.points) <= _MOST_MARKED


@dataclass(frozen=True)
class Bar:
    """One bar; a gap without a value. `count`: number of its cases."""

    label: str
    value: float | None
    count: int | None

    @property
    def is_over_few(self) -> bool:
        """Whether it has too few cases to mean much."""
        return self.count is not None and self.count < _FEW


@dataclass(frozen=True)
class Axis:
    """A range of values drawn between the pixels `ends`; `step`: distance of its ticks, 0 for none."""

    label: str
    low: float
    high: float
    step: float
    ends: tuple[int, int]

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        return round(self.ends[0] + (value - self.low) / (self.high - self.low) * (self.ends[1] - self.ends[0]), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and numbers of the ticks."""
        if not self.step:
            return []
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        values = [i * self.step for i in range(first, last + 1)]
        return list(zip(map(self.at, values), _distinct_numbers(values), strict=True))


@dataclass(frozen=True)
class Chart:
    """Lines or bars with their axes, and rows of their numbers; without rows there is nothing to draw."""

    title: str
    x: Axis
    y: Axis
    headers: Sequence[str]
    numbers: Sequence[Sequence[str]]
    lines: Sequence[Series] = ()
    bars: Sequence[Bar] = ()

    @property
    def every(self) -> int:
        """Interval of the numbers that are listed."""
        return max(1, -(-len(self.numbers) // _MOST_LISTED))

    @property
    def rows(self) -> Sequence[Sequence[str]]:
        """The numbers that are listed."""
        return self.numbers[:: self.every]


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Chart:
    """Return lines over a common x, without points that are not finite; ranges default to the data's."""
    lines: list[Series] = []
    for line in series:
        points = [point for point in line.points if all(map(math.isfinite, point))]
        if points:
            colour = line.colour or sum(not one.reference for one in lines) % N_COLOURS + 1
            lines.append(replace(line, points=points, colour=colour))
    low, high = x_range or _span([x for line in lines for x, _ in line.points])
    x_axis = Axis(x_label, low, high, _step(low, high), _X_ENDS)
    y_axis = _y_axis(y_label, [y for line in lines for _, y in line.points], y_range)
    cells = [
        (line.name, short_number(x), short_number(y)) for line in lines if not line.reference for x, y in line.points
    ]
    return Chart(title, x_axis, y_axis, ("", x_label, y_label), cells, lines=lines)


def bar_chart(
    title: str,
    labels: Sequence[str],
    values: Sequence[float | None],
    x_label: str,
    y_label: str,
    *,
    counts: Sequence[int] | None = None,
) -> Chart:
    """Return a bar for each label; None is a gap. Bars with low `counts` are drawn hollow."""
    finite = [value if value is not None and math.isfinite(value) else None for value in values]
    bars = list(map(Bar, labels, finite, counts or [None] * len(labels)))
    x_axis = Axis(x_label, 0, max(1, len(bars)), 0, _X_ENDS)
    heights = [bar.value for bar in bars if bar.value]
    y_axis = _y_axis(y_label, [0.0, *(heights or [1.0])])
    cells = [
        (
            bar.label,
            "" if bar.value is None else short_number(bar.value),
            *([] if bar.count is None else [f"{bar.count:,}"]),
        )
        for bar in bars
    ]
    return Chart(title, x_axis, y_axis, (x_label, y_label, *(["n"] if counts else [])), cells, bars=bars)


def _y_axis(label: str, values: Sequence[float], limits: tuple[float, float] | None = None) -> Axis:
    """Return an axis from the tick below the values to the one above, or of the given limits."""
    low, high = limits or _span(values)
    step = _step(low, high)
    if limits is None:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Axis(label, low, high, step, _Y_ENDS)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0), max(values, default=0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _step(low: float, high: float) -> float:
    """Return the distance of four to seven ticks: 1, 2 or 5 times a power of ten."""
    least = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def _distinct_numbers(values: Sequence[float]) -> list[str]:
    """Return the values with enough digits to be distinct."""
    texts = [short_number(value) for value in values]
    for digits in range(4, 9):
        if len(set(texts)) == len(values):
            break
        texts = [f"{value:.{digits}g}" for value in values]
    return texts


def short_number(value: float) -> str:
    """12,500 · 1.25M · 200G · 0.0005 · 3.0e-06."""
    if value == 0:
        return "0"
    for unit, sign in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{sign}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"
