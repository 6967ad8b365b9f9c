"""Each study's own scheduler under one sweep: scores of different tasks are never compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from twilbert.tuning import records
from twilbert.tuning.recipe import Scheduler
from twilbert.tuning.records import TrialPlan
from twilbert.tuning.trial import oriented


class StudySchedulers(FIFOScheduler):
    """Asynchronous successive halving (Li et al. 2020) of each study, in the order of the trials."""

    def __init__(self, settings: Scheduler, plans: Sequence[TrialPlan]) -> None:
        super().__init__()
        longest: dict[str, int] = {}
        for plan in plans:
            longest[plan.study] = max(longest.get(plan.study, settings.grace_epochs), plan.recipe.training.epochs)
        self._of = {
            study: ASHAScheduler(
                time_attr="epoch", metric="score", mode="max", max_t=epochs, grace_period=settings.grace_epochs,
                reduction_factor=settings.reduction, stop_last_trials=False,
            )
            for study, epochs in longest.items()
        }  # fmt: skip

    def remember(self, plans: Sequence[TrialPlan]) -> None:
        """Trials that ended before a restart: later ones are compared with them as if there had been none."""
        for plan in plans:
            past: Any = SimpleNamespace(trial_id=plan.key)
            scheduler: Any = self._of[plan.study]
            scheduler.on_trial_add(None, past)
            for seen in records.read(plan.folder).evaluations:
                score = oriented(plan.metric, seen.score)
                scheduler.on_trial_result(None, past, {"epoch": seen.epoch, "score": score})

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._scheduler(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        return self._scheduler(trial).on_trial_result(tune_controller, trial, dict(result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        self._scheduler(trial).on_trial_complete(tune_controller, trial, dict(result))

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._scheduler(trial).on_trial_remove(tune_controller, trial)

    def _scheduler(self, trial: Any) -> ASHAScheduler:
        return self._of[trial.config["trial"].rpartition("/")[0]]
