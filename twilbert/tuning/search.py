"""The search: every trial that is not over runs on Ray Tune, in whatever order there is room for.

Ray Tune schedules, stops and restarts trials; what they came to is in `records`, so that a sweep goes on after any end
of any process: a new search over what is still open. Ray's own snapshots lag by seconds and are pickles: not used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from twilbert import cli
from twilbert.cluster.ray_errors import summary
from twilbert.credentials import hidden_from_ray_tune
from twilbert.errors import Interrupted, UsageError
from twilbert.recipe.tuning import Cluster, Scheduler, TuneRecipe
from twilbert.tuning import records
from twilbert.tuning.records import TrialPlan
from twilbert.tuning.tracking import SweepLog
from twilbert.tuning.trial import Place, Shared, oriented, run_trial


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


_GPU_SHARE = 0.25  # of a GPU a trial, where the recipe does not say


def resources(cluster: Cluster) -> dict[str, float]:
    """Logical CPUs and GPUs of one trial on the Ray that was joined."""
    import ray

    gpus = cluster.gpus_per_trial
    if gpus is None:
        gpus = _GPU_SHARE if ray.cluster_resources().get("GPU", 0) else 0
    return {"cpu": cluster.cpus_per_trial, "gpu": gpus}


def require_room(needs: Mapping[str, float]) -> None:
    """UsageError where no node of the Ray that was joined has what one trial takes: Ray waits in silence."""
    import ray

    have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= needs["cpu"] and node.get("GPU", 0) >= needs["gpu"] for node in have):
        return
    most = {kind: max((node.get(kind, 0) for node in have), default=0) for kind in ("CPU", "GPU")}
    raise UsageError(
        f"cluster: a trial takes {told(needs)}, no node has that (at most {most['CPU']:g} CPU, {most['GPU']:g} GPU); "
        "lower cluster.cpus_per_trial or cluster.gpus_per_trial, or add nodes"
    )


def told(needs: Mapping[str, float]) -> str:
    """1 CPU and 0.25 GPU."""
    return f"{needs['cpu']:g} CPU" + (f" and {needs['gpu']:g} GPU" if needs["gpu"] else "")


def place(cluster: Cluster) -> Place:
    """The same as processes are told of it."""
    return Place(cluster.cpus_per_trial, resources(cluster)["gpu"] > 0)


def search(plans: Sequence[TrialPlan], shared: Mapping[str, Shared], recipe: TuneRecipe, log: SweepLog) -> None:
    """Run all open trials to an end, each recorded; Interrupted where the user ended it."""
    over = [plan for plan in plans if records.read(plan.folder).status != "open"]
    still = [plan for plan in plans if plan not in over]
    if not still:
        return
    if over:
        cli.say(f"{len(over):,} of {len(plans):,} trials are over; going on with {len(still):,}")
    scheduler = None
    if recipe.scheduler.kind == "asha":
        scheduler = StudySchedulers(recipe.scheduler, plans)
        scheduler.remember(over)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is told by Watch, in a line
    # Ray's own files say nothing that records do not.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # with verbose=0: silent
    folder = tempfile.mkdtemp(prefix="twilbert-tune-")
    try:
        with _sigterm_as_ctrl_c(), hidden_from_ray_tune():
            _tuner(still, plans, shared, recipe, log, scheduler, folder).fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    left = sum(records.read(plan.folder).status == "open" for plan in plans)
    if left:
        raise Interrupted(f"{len(plans) - left:,} of {len(plans):,} trials are over; the same command goes on")


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Ray Tune ends a search in good order at SIGINT alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tuner(
    still: Sequence[TrialPlan], plans: Sequence[TrialPlan], shared: Mapping[str, Shared], recipe: TuneRecipe,
    log: SweepLog, scheduler: Any, folder: str,
) -> Any:  # fmt: skip
    cluster = recipe.cluster
    trainable = tune.with_parameters(
        run_trial, plans={plan.key: plan for plan in still}, shared=dict(shared), place=place(cluster)
    )
    return tune.Tuner(
        tune.with_resources(trainable, resources(cluster)),
        param_space={"trial": tune.grid_search([plan.key for plan in still])},
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
    """On the driver: logs evaluations, records how trials end, and tells of it."""

    def __init__(self, plans: Sequence[TrialPlan], log: SweepLog) -> None:
        self._plans = {plan.key: plan for plan in plans}
        self._log = log

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        from twilbert.finetuning.train import Evaluation

        self._log.row(self._plans[trial.config["trial"]], Evaluation(**result["evaluation"]))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        plan = self._plans[trial.config["trial"]]
        state = records.read(plan.folder)
        if state.status == "open":  # ended by the scheduler, unless it was at its end anyway
            whole = bool(state.evaluations) and state.evaluations[-1].epoch >= plan.recipe.training.epochs
            records.end(plan.folder, "finished" if whole else "stopped")
        self._over(plan)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        cli.say(f"{trial.config['trial']}: its process failed; it is started again")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        plan = self._plans[trial.config["trial"]]
        if records.read(plan.folder).status == "open":
            error = trial.get_pickled_error() or trial.get_error()
            records.end(plan.folder, "failed", summary(error)[:300])
        self._over(plan)

    def _over(self, plan: TrialPlan) -> None:
        study = [other for other in self._plans.values() if other.study == plan.study]
        records.drop_weights(study)
        self._log.end(plan)
        state, best = records.read(plan.folder), records.best_trial(study)
        seen = state.best(plan.metric)
        told = f"dev {plan.metric} {seen.score:.4f} in {len(state.evaluations)} evaluations" if seen else state.error
        ended = sum(records.read(other.folder).status != "open" for other in study)
        leads = f"; best so far: trial {best.number}" if best else ""
        cli.say(f"{plan.study} trial {plan.number} {state.status}: {told} ({ended} of {len(study)} over{leads})")
