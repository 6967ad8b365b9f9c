"""Draws the README's picture: three real tasks, a small pre-trained model, the same from random weights, a linear SVM.

    python tools/plot_tasks.py     # writes tools/tasks.svg and tools/tasks.es.svg

The figures are those of tools/README.md («Three real tasks»): test, mean and standard deviation of five seeds; the SVM
is one training. An SVG follows the reader's colour scheme and has its own background, so it is readable on any page.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, LINE, HEADING, MARGIN = 520, 200, 420, 22, 28, 12
LOW, HIGH = 0.5, 0.9
STYLE = """
text { font: 15px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: #1f2328;
  paint-order: stroke; stroke: #ffffff; stroke-width: 3px }
.page { fill: #ffffff } .grid { stroke: #d1d9e0 } .quiet { fill: #59636e; font-size: 13px } .best { font-weight: 600 }
.a { fill: #0969da; stroke: #0969da } .b { fill: #54a3ff; stroke: #54a3ff } .c { fill: #818b98; stroke: #818b98 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; stroke: #0d1117 } .page { fill: #0d1117 } .grid { stroke: #3d444d } .quiet { fill: #9198a1 }
  .a { fill: #4493f8; stroke: #4493f8 } .b { fill: #8fbcf5; stroke: #8fbcf5 } .c { fill: #9198a1; stroke: #9198a1 }
}"""


class Score(NamedTuple):
    """A test score; `sd` over five seeds, 0 where there was one training."""

    mean: float
    sd: float = 0.0


SCORES = (
    (Score(0.730, 0.017), Score(0.678, 0.009), Score(0.694)),
    (Score(0.643, 0.005), Score(0.555, 0.012), Score(0.618)),
    (Score(0.819, 0.008), Score(0.810, 0.008), Score(0.859)),
)
WORDS = {
    "tasks.svg": (
        ("pre-trained, 47 minutes", "random weights", "TF-IDF + linear SVM"),
        (
            ("Professions in tweets", "F1 of the positive class, 5,400 rows"),
            ("25 news accounts", "macro-F1, 27,220 rows"),
            ("Toxicity", "macro-F1, 3,500 rows"),
        ),
    ),
    "tasks.es.svg": (
        ("preentrenado, 47 minutos", "pesos aleatorios", "TF-IDF + SVM lineal"),
        (
            ("Profesiones en tuits", "F1 de la clase positiva, 5400 filas"),
            ("25 cuentas de noticias", "macro-F1, 27 220 filas"),
            ("Toxicidad", "macro-F1, 3500 filas"),
        ),
    ),
}


def x(score: float) -> float:
    """The pixel of a score."""
    return round(LEFT + (score - LOW) / (HIGH - LOW) * (RIGHT - LEFT), 1)


def rows(models: tuple[str, ...], scores: tuple[Score, ...], top: float) -> list[str]:
    """One task's three rows: the model's name, its score as a dot with its spread, and the number."""
    best = max(score.mean for score in scores)
    drawn = []
    for css, model, score, number in zip("abc", models, scores, range(len(models)), strict=True):
        y = top + LINE * number
        spread = f" ± {score.sd:.3f}" if score.sd else ""
        weight = ' class="best"' if score.mean == best else ""
        if score.sd:
            ends = f'x1="{x(score.mean - score.sd)}" x2="{x(score.mean + score.sd)}"'
            drawn.append(f'<line class="{css}" {ends} y1="{y}" y2="{y}" stroke-width="2"/>')
        drawn += [
            f'<text x="{LEFT - 14}" y="{y + 5}" text-anchor="end">{escape(model)}</text>',
            f'<circle class="{css}" cx="{x(score.mean)}" cy="{y}" r="6"/>',
            f'<text x="{x(score.mean + score.sd) + 12}" y="{y + 5}"{weight}>{score.mean:.3f}{spread}</text>',
        ]
    return drawn


def picture(models: tuple[str, ...], tasks: tuple[tuple[str, str], ...]) -> str:
    """The SVG in one language."""
    step = HEADING + LINE * len(models) + 8
    bottom = MARGIN + step * len(tasks)
    drawn = []
    for tick in (0.5, 0.6, 0.7, 0.8, 0.9):
        bands = range(MARGIN + HEADING, bottom, step)
        drawn += [f'<path class="grid" d="M{x(tick)} {top}v{LINE * len(models)}"/>' for top in bands]
        drawn.append(f'<text class="quiet" x="{x(tick)}" y="{bottom + 12}" text-anchor="middle">{tick:.1f}</text>')
    for number, ((name, metric), scores) in enumerate(zip(tasks, SCORES, strict=True)):
        top = MARGIN + step * number
        drawn.append(
            f'<text x="{MARGIN}" y="{top + 14}"><tspan class="best">{escape(name)}</tspan>'
            f'<tspan class="quiet" dx="10">{escape(metric)}</tspan></text>'
        )
        drawn += rows(models, scores, top + HEADING + LINE / 2)
    size = f'width="{WIDTH}" height="{bottom + 24}" viewBox="0 0 {WIDTH} {bottom + 24}"'
    page = f'<rect class="page" width="{WIDTH}" height="{bottom + 24}" rx="6"/>'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{STYLE}\n</style>", page, *drawn]
    ) + ("\n</svg>\n")


if __name__ == "__main__":
    for name, (models, tasks) in WORDS.items():
        (Path(__file__).parent / name).write_text(picture(models, tasks), encoding="utf-8")
