"""The end of a sweep: after all trainings, each study's best trial by dev is scored on test, once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twilbert import cli, storage
from twilbert.cluster.ray_errors import user_errors
from twilbert.finetuning.page import score_with_spread
from twilbert.finetuning.run import RESULTS, Prepared, read_results, score_and_write
from twilbert.finetuning.train import Outcome
from twilbert.recipe import loading
from twilbert.tasks.checks import Findings
from twilbert.tasks.task import Task
from twilbert.tuning import records
from twilbert.tuning.records import TrialPlan
from twilbert.tuning.trial import Place, Shared, train_seed

if TYPE_CHECKING:
    from twilbert.recipe.tuning import TuneRecipe
    from twilbert.tuning.records import Study


def score_all(
    studies: Sequence[Study], shared: dict[str, Shared], recipe: TuneRecipe, out: str
) -> dict[str, dict[str, Any]]:
    """Return study → results.json of its best trial, where it has one; studies that were scored before are read."""
    import ray

    from twilbert.tuning.search import place, resources

    needs, where = resources(recipe.cluster), place(recipe.cluster)
    options = {"num_cpus": needs["cpu"], "num_gpus": needs["gpu"], "max_retries": recipe.cluster.max_failures}
    results, running, extra = {}, {}, {}
    for study in studies:
        folder = storage.join(out, study.name)
        if storage.exists(storage.join(folder, RESULTS)):
            results[study.name] = read_results(folder)
            continue
        best = records.best_trial(study.plans)
        if best is None:
            continue
        first = best.recipe.training.seed
        seed_task = ray.remote(**options)(train_seed)
        extra[study.name] = [
            seed_task.remote(shared[study.name], best, seed, where)
            for seed in range(first + 1, first + recipe.final.seeds)
        ]
        running[study.name] = (study, best, folder)
    if recipe.final.seeds > 1 and running:
        cli.say(f"the best settings of {len(running)} studies are trained with {recipe.final.seeds - 1} more seeds")
        trainings = [reference for seeds in extra.values() for reference in seeds]
        ray.wait(trainings, num_returns=len(trainings), fetch_local=False)  # every training ends before any test
    scoring = {
        name: ray.remote(**options)(_score).remote(
            study.prepared.task, study.prepared.findings, shared[name], best, folder, extra[name], where
        )
        for name, (study, best, folder) in running.items()
    }
    for name, reference in scoring.items():
        with user_errors():
            results[name] = ray.get(reference)
        cli.say(f"{name}: test {score_with_spread(results[name].get('test'))}")
    return results


def _score(
    task: Task, findings: Findings, shared: Shared, best: TrialPlan, folder: str, extra: list[Any], place: Place
) -> dict[str, Any]:
    """Score a study's best trial and write its folder; the one function of tuning that gets the task's test file."""
    import ray

    base, data = shared.get()
    recipe = place.take(best.recipe)
    outcomes: list[Outcome] = [records.outcome(best), *ray.get(extra)]
    storage.write_bytes_atomic(storage.join(folder, "recipe.yaml"), loading.dump(best.recipe).encode())
    return score_and_write(Prepared(task, findings, base, data), recipe, folder, outcomes)
