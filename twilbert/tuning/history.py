"""A finished sweep as twilbert.tune.run returns it: results, dev scores of every trial, the studies' best models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twilbert import storage
from twilbert.train.history import Run
from twilbert.tuning import page


@dataclass(frozen=True)
class Sweep(Run):
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
            seen = [(epoch, score) for epoch, score in trial["evaluations"] if score is not None]
            curves |= {f"{study['study']}/{trial['trial']:03d}": seen} if seen else {}
    places = {study["study"]: storage.join(out, study["study"], "model") for study in results["studies"]}
    models = {study: place for study, place in places.items() if storage.exists(place)}
    return Sweep(out, curves, models, results)
