"""Search spaces and the trials drawn from them: pure functions of settings and seed.

A setting of finetune.yaml is searched where a mapping stands in the place of its value: {choice: [a, b]},
{uniform: [low, high]} or {log_uniform: [low, high]}.
"""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twilbert.errors import UsageError
from twilbert.recipe import finetuning, loading
from twilbert.recipe.finetuning import FinetuneRecipe

SECTIONS = ("text", "encoder", "head", "loss", "training")
KINDS = ("choice", "uniform", "log_uniform")
_MOST_DRAWS = 100  # draws for one trial
_MOST_GRID = 10_000  # combinations that are still a sweep

Settings = Mapping[str, Mapping[str, Any]]
Drawn = dict[str, Any]  # dotted setting → value


@dataclass(frozen=True)
class Dimension:
    """One searched setting."""

    path: str
    kind: str
    values: tuple[Any, ...]
    """The choices; or the lowest and the highest value."""

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a value: choices with equal probability, numbers to three digits."""
        if self.kind == "choice":
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "uniform":
            return float(f"{rng.uniform(low, high):.3g}")
        return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.3g}")


def dimensions(settings: Settings) -> list[Dimension]:
    """Return the searched settings, by path; UsageError for one that cannot be drawn from."""
    searched = [
        _dimension(f"{section}.{key}", value)
        for section, entries in settings.items()
        for key, value in entries.items()
        if isinstance(value, Mapping)
    ]
    return sorted(searched, key=lambda dimension: dimension.path)


def _dimension(path: str, value: Mapping[str, Any]) -> Dimension:
    kind = next(iter(value), None)
    if len(value) != 1 or kind not in KINDS:
        raise UsageError(f"{path}: expected a value, or one of {', '.join(KINDS)}, e.g. {{choice: [1, 2]}}; {value}")
    values = value[kind]
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise UsageError(f"{path}.{kind}: expected a list of values, found {values!r}")
    if kind != "choice":
        is_range = len(values) == 2 and all(isinstance(v, int | float) for v in values) and values[0] < values[1]
        if not is_range or (kind == "log_uniform" and values[0] <= 0):
            positive = ", above 0" if kind == "log_uniform" else ""
            raise UsageError(f"{path}.{kind}: expected [lowest, highest] number{positive}, found {list(values)}")
    return Dimension(path, str(kind), tuple(values))


def named(settings: Settings, path: str) -> frozenset[str]:
    """Return the names that a setting has or may be drawn to have."""
    section, _, key = path.partition(".")
    fixed = [settings[section].get(key)]
    drawn = [value for dimension in dimensions(settings) if dimension.path == path for value in dimension.values]
    return frozenset(value for value in (*fixed, *drawn) if isinstance(value, str))


def setting_faults(settings: Settings) -> list[str]:
    """Return the faults of the fixed values, and of them with each choice and end of a range alone."""
    draws: list[Drawn] = [{}, *({d.path: value} for d in dimensions(settings) for value in d.values)]
    return list(dict.fromkeys(fault for drawn in draws for fault in recipe_faults(settings, drawn)))


def recipe_faults(settings: Settings, drawn: Drawn) -> list[str]:
    """Return the faults of the recipe of settings and a draw."""
    try:
        build(settings, drawn)
    except UsageError as error:
        return [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
    return []


def build(settings: Settings, drawn: Drawn) -> FinetuneRecipe:
    """Return finetune.yaml with the settings' fixed values and the drawn ones; UsageError where that is no recipe."""
    values = loading.read_values(finetuning.SHIPPED)
    for section, entries in settings.items():
        fixed = {key: value for key, value in entries.items() if not isinstance(value, Mapping)}
        chosen = {
            path.removeprefix(f"{section}."): value for path, value in drawn.items() if path.startswith(f"{section}.")
        }
        values[section] = (values.get(section) or {}) | fixed | chosen
    return loading.validated(values, (), "a trial", FinetuneRecipe, finetuning.cross_faults)


def trials(
    searched: Sequence[Dimension], kind: str, count: int, seed: int, study: str, check: Callable[[Drawn], list[str]]
) -> tuple[list[Drawn], int]:
    """Return the settings of a study's trials, and the number of draws that do not fit its task.

    random: `count` different draws, the same for every study of that name; grid: every combination. Draws for which
    `check` returns faults are left out. UsageError where none remains.
    """
    candidates = _grid(searched) if kind == "grid" else _draws(searched, count, seed, study)
    faults: dict[str, list[str]] = {}  # by draw
    drawn: list[Drawn] = []
    for candidate in candidates:
        key = json.dumps(candidate)
        if key in faults:
            continue
        faults[key] = check(candidate)
        if not faults[key]:
            drawn.append(candidate)
        if kind == "random" and len(drawn) == count:
            break
    if not drawn:
        lines = [f"  {fault}" for fault in next(iter(faults.values()))]
        raise UsageError("\n".join([f"{study}: no trial fits the task", *lines]))
    return drawn, len(faults) - len(drawn)


def _grid(searched: Sequence[Dimension]) -> Iterator[Drawn]:
    size = math.prod(len(dimension.values) for dimension in searched)
    if size > _MOST_GRID:
        raise UsageError(f"search.kind: a grid of {size:,} combinations; give fewer choices, or search.kind=random")
    for values in itertools.product(*(dimension.values for dimension in searched)):
        yield {dimension.path: value for dimension, value in zip(searched, values, strict=True)}


def _draws(searched: Sequence[Dimension], count: int, seed: int, study: str) -> Iterator[Drawn]:
    for number in range(count * _MOST_DRAWS):
        rng = np.random.default_rng((seed, zlib.crc32(study.encode()), number))
        yield {dimension.path: dimension.draw(rng) for dimension in searched}
