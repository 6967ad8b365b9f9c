"""The page of a sweep: its tables, and that texts of users stay texts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.report.parsing import parsed, shows_texts_as_they_are
from twilbert.tuning import page


def study(name: str, text: str) -> dict[str, Any]:
    """A study of three trials, the second one the best and the third one failed."""
    score = {"mean": 0.75, "sd": None, "n": 1, "rows": 8, "interval": {"low": 0.5, "high": 1.0}}
    trials = [
        {"trial": 0, "status": "stopped", "starts": 2, "error": None, "dev": 0.5, "seconds": 1.0,
         "evaluations": [[1.0, 0.5]]},
        {"trial": 1, "status": "finished", "starts": 1, "error": None, "dev": 0.75, "seconds": 2.0,
         "evaluations": [[1.0, None], [2.0, 0.75]]},
        {"trial": 2, "status": "failed", "starts": 1, "error": text, "dev": None, "seconds": None, "evaluations": []},
    ]  # fmt: skip
    settings = {"training.learning_rate": 0.1, "loss.name": text}
    return {
        "study": f"{name}--{text}", "task": name, "title": text, "model": text, "metric": "f1", "average": "macro",
        "class_metric": None, "dev": score, "test": score, "best_trial": 1, "best_settings": settings,
        "trials": [trial | {"settings": settings} for trial in trials],
    }  # fmt: skip


def results(*studies: dict[str, Any], sweep: str = "s") -> dict[str, Any]:
    return {"twilbert": "1.0", "sweep": sweep, "studies": list(studies)}


def test_texts_of_users_are_shown_as_they_are():
    shows_texts_as_they_are(lambda text: page.of_sweep(results(study(text, text), sweep=text)), 12)
    shows_texts_as_they_are(lambda text: page.of_sweep(results(study("a", text), study("b", "beto"))), 9)


@pytest.mark.parametrize("name", ["javascript:alert(1)", "a b?c#d%e"])
def test_the_link_to_a_study_stays_in_the_folder(name):
    (target,) = [v for key, v in parsed(page.of_sweep(results(study(name, "x")))).attributes if key == "href"]
    assert target.startswith("./") and target.endswith("/report.html")
    assert not set(":?#& ") & set(target)


def test_the_best_trial_is_the_first_and_what_became_of_the_others_is_there():
    texts = parsed(page.of_sweep(results(study("a", "out of memory")))).texts
    assert "3: 1 finished, 1 stopped, 1 failed; 1 started again" in texts
    assert "learning_rate 0.1, name out of memory" not in texts and "learning_rate 0.1, loss out of memory" in texts
    assert texts.index("0.7500") < texts.index("0.5000") < texts.index("out of memory", texts.index("0.5000"))
    assert "trial 1, the best" in texts and "0.7500 [0.5000, 1.0000]" in texts


def test_several_models_stand_side_by_side():
    headers, rows = page.model_table([study("a", "x"), study("a", "y"), study("b", "y")])
    assert headers == ["task", "metric", "x", "y"]
    assert rows == [["a", "f1 macro", "0.7500", "0.7500"], ["b", "f1 macro", "–", "0.7500"]]


def test_verdicts_are_corrected_for_their_number_and_stay_with_their_study():
    def compared(name: str, score: float | None, difference: float, p: float) -> dict[str, Any]:
        yardstick = {"score": score, "difference": difference, "low": -1.0, "high": 1.0, "p": p}
        return study(name, "x") | {"yardsticks": [yardstick]}

    studies = [
        study("written by 0.2", "x"),
        compared("no score", None, 0.0, 0.9),
        compared("worse", 0.75, -0.2, 0.001),
        compared("corrected", 0.5, 0.1, 0.03),
        compared("better", 0.25, 0.3, 0.002),
        compared("corrected too", 0.125, 0.1, 0.026),
    ]
    column = page.HEADERS.index("yardstick")
    assert [tuple(row[column : column + 2]) for row in page.rows(studies)] == [
        ("–", "–"),
        ("–", "–"),
        ("0.7500", "behind"),
        ("0.5000", "not told apart"),
        ("0.2500", "ahead"),
        ("0.1250", "not told apart"),
    ]
