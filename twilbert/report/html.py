"""Renders jinja2 templates to self-contained HTML pages: one file, no script, nothing from the network.

    page.html.jinja (beside the module that prepares its data)
      ├─ report/layout.html.jinja   head, style, title, footer
      └─ report/parts.html.jinja    tiles, table, confusion, fold, chart

Templates escape every value. The look is style.css, whose variables are the colours for light, dark and print.
"""

from __future__ import annotations

import html
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2

from twilbert import __version__
from twilbert.report.charts import short_number

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_FRAME = '<iframe srcdoc="{}" style="width:100%;height:38rem;border:0" sandbox></iframe>'

Tile = tuple[str, str, str]
"""A key figure: label, value, and a note or ""."""


class Page(ABC):
    """An object that notebooks show as an HTML page."""

    @abstractmethod
    def html(self) -> str:
        """Return its page, which needs no network."""

    def _repr_html_(self) -> str:
        return _FRAME.format(html.escape(self.html()))


def render(template: str, **values: Any) -> str:
    """Return the HTML of `template`, a path within the package, filled with `values`.

    Characters that no HTML file may hold become U+FFFD.
    """
    return _FORBIDDEN.sub("\ufffd", environment().get_template(template).render(values, version=__version__))


@cache
def environment() -> jinja2.Environment:
    """Return the package's templates with their filters."""
    templates = jinja2.Environment(
        autoescape=True,
        loader=jinja2.PackageLoader("twilbert", ""),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters |= {
        "numeric_columns": numeric_columns,
        "percent": percent,
        "short_number": short_number,
        "to": format,
    }
    return templates


def numeric_columns(rows: Sequence[Sequence[object]]) -> list[bool]:
    """Return whether each column has only numbers and gaps, and so is aligned to the right."""
    columns = zip(*rows, strict=True)
    return [
        any(map(_is_number, column)) and all(_is_number(c) or c in ("", None) for c in column) for column in columns
    ]


def _is_number(cell: object) -> bool:
    digits = str(cell).replace(",", "").removesuffix("%").strip()
    try:
        float(digits)
    except ValueError:
        return False
    return True


def percent(share: float) -> str:
    """Return a share as per cent with a no-break space and two significant digits: 93 %, 4.2 %, <0.01 %."""
    value = 100 * share
    if value >= 9.95:
        return f"{value:.0f}\u00a0%"
    if value >= 0.995:
        return f"{value:.1f}\u00a0%"
    return f"{value:.2f}\u00a0%" if value >= 0.005 or value == 0 else "<0.01\u00a0%"
