"""The search: runs all open trials on Ray Tune.

Ray Tune schedules, stops and restarts trials; their results are in `records`, so that an interrupted sweep resumes as a
new search over the trials that are still open. Ray's own snapshots lag by seconds and are pickles: not used.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from twilbert import cli, signals
from twilbert.cluster import ray_errors
from twilbert.credentials import hidden_from_ray_tune
from twilbert.errors import Interrupted, UsageError
from twilbert.recipe.tuning import Cluster, Scheduler, TuneRecipe
from twilbert.tuning import records
from twilbert.tuning.records import TrialPlan
from twilbert.tuning.tracking import SweepLog
from twilbert.tuning.trial import Place, Shared, oriented, run_trial


class StudySchedulers(FIFOScheduler):
    """Asynchronous successive halving (ASHA; Li et al. 2020), each study for itself."""

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
        """Count trials that ended in an earlier process: later ones are compared with them."""
        for plan in plans:
            past: Any = SimpleNamespace(trial_id=plan.key)
            scheduler: Any = self._of[plan.study]
            scheduler.on_trial_add(None, past)
            for evaluation in records.read(plan.folder).evaluations:
                score = oriented(plan.metric, evaluation.score)
                scheduler.on_trial_result(None, past, {"epoch": evaluation.epoch, "score": score})

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


_GPU_SHARE = 0.25  # of a GPU a trial, where the recipe does not say


def resources(cluster: Cluster) -> dict[str, float]:
    """Return the logical CPUs and GPUs of one trial on the cluster."""
    import ray

    gpus = cluster.gpus_per_trial
    if gpus is None:
        gpus = _GPU_SHARE if ray.cluster_resources().get("GPU", 0) else 0
    return {"cpu": cluster.cpus_per_trial, "gpu": gpus}


def require_room(needs: Mapping[str, float]) -> None:
    """UsageError where no node has the resources of one trial: Ray would wait for ever, in silence."""
    import ray

    have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= needs["cpu"] and node.get("GPU", 0) >= needs["gpu"] for node in have):
        return
    most = {kind: max((node.get(kind, 0) for node in have), default=0) for kind in ("CPU", "GPU")}
    raise UsageError(
        f"cluster: a trial takes {as_text(needs)}, no node has that (at most {most['CPU']:g} CPU, {most['GPU']:g} GPU)"
        "; lower cluster.cpus_per_trial or cluster.gpus_per_trial, or add nodes"
    )


def as_text(needs: Mapping[str, float]) -> str:
    """Return e.g. 1 CPU and 0.25 GPU."""
    return f"{needs['cpu']:g} CPU" + (f" and {needs['gpu']:g} GPU" if needs["gpu"] else "")


def place(cluster: Cluster) -> Place:
    """Return the resources of a worker process."""
    return Place(cluster.cpus_per_trial, resources(cluster)["gpu"] > 0)


def search(plans: Sequence[TrialPlan], shared: Mapping[str, Shared], recipe: TuneRecipe, log: SweepLog) -> None:
    """Run all open trials to their end; Interrupted where the user stopped the search."""
    ended = [plan for plan in plans if records.read(plan.folder).status != "open"]
    still_open = [plan for plan in plans if plan not in ended]
    if not still_open:
        return
    if ended:
        cli.say(f"{len(ended):,} of {len(plans):,} trials have ended; resuming with {len(still_open):,}")
    scheduler = None
    if recipe.scheduler.kind == "asha":
        scheduler = StudySchedulers(recipe.scheduler, plans)
        scheduler.remember(ended)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # Watch reports failures, in a line
    # Ray's own files hold nothing that records do not.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # with verbose=0: silent
    folder = tempfile.mkdtemp(prefix="twilbert-tune-")
    try:
        # Ray Tune ends a search in good order at SIGINT alone.
        sigterm_as_ctrl_c = signals.handled(lambda *_: signal.raise_signal(signal.SIGINT), signal.SIGTERM)
        with sigterm_as_ctrl_c, hidden_from_ray_tune():
            _tuner(still_open, plans, shared, recipe, log, scheduler, folder).fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    left = sum(records.read(plan.folder).status == "open" for plan in plans)
    if left:
        raise Interrupted(
            f"interrupted; {len(plans) - left:,} of {len(plans):,} trials have ended; the same command resumes"
        )


def _tuner(
    still_open: Sequence[TrialPlan], plans: Sequence[TrialPlan], shared: Mapping[str, Shared], recipe: TuneRecipe,
    log: SweepLog, scheduler: Any, folder: str,
) -> Any:  # fmt: skip
    cluster = recipe.cluster
    trainable = tune.with_parameters(
        run_trial, plans={plan.key: plan for plan in still_open}, shared=dict(shared), place=place(cluster)
    )
    return tune.Tuner(
        tune.with_resources(trainable, resources(cluster)),
        param_space={"trial": tune.grid_search([plan.key for plan in still_open])},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            scheduler=scheduler,
            max_concurrent_trials=cluster.max_concurrent,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial"].replace("/", "-"),
            trial_dirname_creator=lambda trial: trial.config["trial"].replace("/", "-"),
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=folder,
            callbacks=[Watch(plans, log)],
            failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
            verbose=0,
        ),
    )


class Watch(tune.Callback):
    """The driver's side of a search: logs evaluations, records and reports how trials end."""

    def __init__(self, plans: Sequence[TrialPlan], log: SweepLog) -> None:
        self._plans = {plan.key: plan for plan in plans}
        self._log = log

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        from twilbert.finetuning.train import Evaluation

        self._log.row(self._plans[trial.config["trial"]], Evaluation(**result["evaluation"]))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        plan = self._plans[trial.config["trial"]]
        state = records.read(plan.folder)
        if state.status == "open":  # stopped by the scheduler, unless it was at its end
            whole = bool(state.evaluations) and state.evaluations[-1].epoch >= plan.recipe.training.epochs
            records.end(plan.folder, "finished" if whole else "stopped")
        self._end(plan)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        cli.say(f"{trial.config['trial']}: its process failed; it is started again")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        plan = self._plans[trial.config["trial"]]
        if records.read(plan.folder).status == "open":
            file = trial.pickled_error_file  # as Ray Tune has just written it; its storage gets it later
            reason = ray_errors.summary(pickle.loads(Path(file).read_bytes())) if file else "Ray Tune gave no reason"
            records.end(plan.folder, "failed", reason[:300])
        self._end(plan)

    def _end(self, plan: TrialPlan) -> None:
        study = [other for other in self._plans.values() if other.study == plan.study]
        records.drop_weights(study)
        self._log.end(plan)
        state, best = records.read(plan.folder), records.best_trial(study)
        top = state.best(plan.metric)
        summary = f"dev {plan.metric} {top.score:.4f} in {len(state.evaluations)} evaluations" if top else state.error
        ended = sum(records.read(other.folder).status != "open" for other in study)
        leader = f"; best so far: trial {best.number}" if best else ""
        cli.say(f"{plan.study} trial {plan.number} {state.status}: {summary} ({ended} of {len(study)} ended{leader})")
