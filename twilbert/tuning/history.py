"""A finished sweep as twilbert.tune.run returns it: results, dev scores of every trial, the studies' best models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from twilbert import storage
from twilbert.finetuning.final import Scores
from twilbert.parsing import read_checked
from twilbert.report.html import Page
from twilbert.train.history import Run
from twilbert.tuning import page
from twilbert.tuning.records import Status


@dataclass(frozen=True)
class _Trial:
    trial: int
    status: Status
    starts: int
    error: str | None
    settings: dict[str, Any]
    dev: float | None
    seconds: float | None
    evaluations: list[tuple[float, float | None]]


@dataclass(frozen=True)
class _Study:
    study: str
    task: str
    title: str
    model: str
    metric: str
    average: str | None
    class_metric: str | list[str] | None
    dev: Scores | None
    test: Scores | None
    best_trial: int | None
    best_settings: dict[str, Any] | None
    trials: Annotated[list[_Trial], Field(min_length=1)]


@dataclass(frozen=True)
class _Results:
    """results.json."""

    twilbert: str
    sweep: str
    studies: Annotated[list[_Study], Field(min_length=1)]


def read_results(path: str) -> dict[str, Any]:
    """What a sweep's results.json holds; TwilbertError where it is of another shape."""
    return read_checked(path, _Results)


@dataclass(frozen=True)
class Sweep(Run, Page):
    """A sweep; `metrics` has a curve "STUDY/TRIAL" for each trial, its score on dev over epochs."""

    results: Mapping[str, Any]
    """What results.json holds."""

    def html(self) -> str:
        """The page that lies in the folder as report.html."""
        return page.of_sweep(self.results)


def of_results(out: str, results: Mapping[str, Any]) -> Sweep:
    """The sweep in the folder `out`, whose results.json holds `results`."""
    curves = {}
    for study in results["studies"]:
        for trial in study["trials"]:
            points = [(epoch, score) for epoch, score in trial["evaluations"] if score is not None]
            curves |= {f"{study['study']}/{trial['trial']:03d}": points} if points else {}
    places = {study["study"]: storage.join(out, study["study"], "model") for study in results["studies"]}
    models = {study: place for study, place in places.items() if storage.exists(place)}
    return Sweep(out, curves, models, results)
