"""How the probabilities of a fine-tuned model are read: what was fitted on its dev rows and travels with its head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from twilbert.errors import TwilbertError


@dataclass(frozen=True)
class ConfidenceCut:
    """The confidence from which predictions are as precise as asked, and how many those are."""

    confidence: float
    precision: float
    """Share right of the dev rows of at least this confidence."""
    share: float
    """Those rows as a share of all."""


@dataclass(frozen=True)
class Calibration:
    """What `HeadConfig.calibration` holds; other tools can apply it: `config.json`, head.calibration."""

    temperature: float = 1.0
    """By which logits are divided before softmax or sigmoid (Guo et al. 2017)."""
    thresholds: tuple[float, ...] | None = None
    """Probability from which a label is predicted: of several labels each one's; of two classes the second's decides.
    None: 0.5, or the most probable class."""
    cuts: tuple[ConfidenceCut, ...] = ()
    """For single-label problems the confidences at which rows may be left out, from the surest on."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any, n_labels: int) -> Calibration:
        """The calibration that a file describes; TwilbertError where it is of another shape."""
        where = "classification head: calibration"
        known = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or not set(values) <= set(known):
            raise TwilbertError(f"{where} is {values!r:.80}; expected a mapping of {', '.join(known)}")
        temperature, thresholds = values.get("temperature", 1.0), values.get("thresholds")
        if not _is_number(temperature) or not 0 < temperature < math.inf:
            raise TwilbertError(f"{where}.temperature is {temperature!r:.80}; expected a number above 0")
        if thresholds is not None and not (_is_list(thresholds, n_labels) and all(map(_is_number, thresholds))):
            raise TwilbertError(f"{where}.thresholds is {thresholds!r:.80}; expected {n_labels} numbers")
        cuts = values.get("cuts", ())
        names = [field.name for field in fields(ConfidenceCut)]
        if not _is_list(cuts) or not all(
            isinstance(one, Mapping) and sorted(one) == sorted(names) and all(map(_is_number, one.values()))
            for one in cuts
        ):
            raise TwilbertError(f"{where}.cuts is {cuts!r:.80}; expected a list of {', '.join(names)}")
        return cls(
            float(temperature),
            None if thresholds is None else tuple(map(float, thresholds)),
            tuple(ConfidenceCut(**one) for one in cuts),
        )

    def cut(self, precision: float) -> ConfidenceCut | None:
        """Return the last cut whose dev rows were at least that precise; None where none were."""
        return next((one for one in reversed(self.cuts) if one.precision >= precision), None)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and not math.isnan(value)


def _is_list(value: Any, length: int | None = None) -> bool:
    return isinstance(value, list | tuple) and length in (None, len(value))
