"""A sweep from its recipe to its folder.

OUT/  sweep.yaml  results.json  report.html  wandb/
      STUDY/  trials/000 … (records.py)  and the best trial as finetune writes a fine-tuning: model/ results.json …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from twilbert import __version__, cli, outputs, storage
from twilbert.cluster import ray_session
from twilbert.cluster.joining import wait_for_room
from twilbert.errors import TwilbertError, UsageError
from twilbert.finetuning.data import task_faults
from twilbert.finetuning.encoders import Base, ThirdPartyBase, load_base, short_name
from twilbert.finetuning.run import Prepared, prepare
from twilbert.finetuning.test_scores import Scores, number
from twilbert.parsing import read_checked
from twilbert.recipe import loading, search_space
from twilbert.recipe.tuning import TuneRecipe
from twilbert.report.html import Page
from twilbert.tasks.task import registered
from twilbert.tracking.history import Run, newest_run
from twilbert.tuning import final, page, records
from twilbert.tuning.records import Status, Study, TrialPlan
from twilbert.tuning.trial import Shared, without_test


@dataclass(frozen=True)
class _Trial:
    """A trial in results.json: the entries that are read."""

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
    """A study in results.json: the entries that are read."""

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
    """Return the content of a sweep's results.json; TwilbertError where it is of another shape."""
    return read_checked(path, _Results)


@dataclass(frozen=True)
class Sweep(Run, Page):
    """A sweep; `metrics` has a curve "STUDY/TRIAL" for each trial, its dev score over epochs."""

    results: Mapping[str, Any]
    """The content of results.json."""

    def html(self) -> str:
        """Return the page that is report.html in the folder."""
        return page.of_sweep(self.results)


def of_results(out: str, results: Mapping[str, Any]) -> Sweep:
    """Return the sweep in the folder `out`, whose results.json holds `results`."""
    curves = {}
    for study in results["studies"]:
        for trial in study["trials"]:
            points = [(epoch, score) for epoch, score in trial["evaluations"] if score is not None]
            curves |= {f"{study['study']}/{trial['trial']:03d}": points} if points else {}
    places = {study["study"]: storage.join(out, study["study"], "model") for study in results["studies"]}
    models = {study: place for study, place in places.items() if storage.exists(place)}
    return Sweep(out, curves, models, results)


RESULTS, REPORT, SWEEP = "results.json", "report.html", "sweep.yaml"


def resolve(recipe: TuneRecipe) -> TuneRecipe:
    """Return the recipe with its tasks and models named, every path absolute; UsageError where that cannot be."""
    if not recipe.tasks:
        raise UsageError(f"which tasks? --task NAME…, --task all, or task files; registered: {', '.join(registered())}")
    names = registered() if "all" in recipe.tasks else list(dict.fromkeys(recipe.tasks))
    tasks = [name if name in registered() else storage.absolute(name) for name in names]
    models = [storage.absolute(name) if storage.exists(name) else name for name in dict.fromkeys(recipe.models)]
    if not models:
        models = [newest_run(recipe.runs)]
        cli.say(f"model: {models[0]}, the newest finished run; --model names another")
    data_dir = storage.absolute(recipe.data_dir) if recipe.data_dir else None
    update = {"tasks": tuple(tasks), "models": tuple(models), "data_dir": data_dir}
    return recipe.model_copy(update=update)


def default_out(recipe: TuneRecipe) -> str:
    """Return tuned/NAME-HASH; the hash of the settings makes the same sweep resume in its folder."""
    stems = [task.rsplit("/", 1)[-1].removesuffix(".yaml") for task in recipe.tasks]
    name = stems[0] if len(stems) == 1 else ("all" if stems == registered() else f"{len(stems)}-tasks")
    return storage.absolute(storage.join("tuned", f"{name}-{loading.short_hash(recipe.identity())}"))


def studies(recipe: TuneRecipe, out: str, trust_remote_code: bool = False) -> list[Study]:
    """Check, read and encode all tasks and models, and draw all trials; UsageError with the faults of all tasks.

    Code that a model's folder brings or names runs only with `trust_remote_code`, or where the recipe names that head.
    """
    labels = _labels(recipe.models)
    trust = trust_remote_code or search_space.named(recipe.settings(), "head.own")
    bases = {model: load_base(model, recipe.runs, trust) for model in recipe.models}
    for model, base in bases.items():
        if isinstance(base, ThirdPartyBase) and base.brings_code:
            raise UsageError(f"{model}: its own code is not found by the processes of a sweep; use twilbert-finetune")
    all_studies, faults = [], []
    for task in recipe.tasks:
        for model in recipe.models:
            try:
                all_studies += _studies_of(recipe, out, task, model, labels[model], bases[model])
            except UsageError as error:
                faults.append(str(error))
                break  # a task's fault is one for every model
    if faults:
        raise UsageError("\n".join(dict.fromkeys(faults)))
    return all_studies


def _studies_of(recipe: TuneRecipe, out: str, task: str, model: str, label: str, base: Base) -> list[Study]:
    several = len(recipe.models) > 1 or recipe.random_weights
    prepared, studies_of_task = None, []
    for random in (False, True) if recipe.random_weights else (False,):
        settings = recipe.settings()
        settings["encoder"] = settings["encoder"] | {"random": random}
        named = {"task": task, "model": model, "data_dir": recipe.data_dir, "runs": recipe.runs}
        named |= {"seeds": recipe.final.seeds, "tracking": recipe.tracking}
        fixed = search_space.build(settings, {}).model_copy(update=named)
        prepared = prepared or prepare(fixed, base)
        stem = prepared.task.name
        name = f"{stem}--{label}{'--random' if random else ''}" if several else stem
        plans = _plans(recipe, settings, prepared, name, storage.join(out, name), named)
        model_name = f"{label}, random weights" if random else label
        studies_of_task.append(Study(name, model_name, random, prepared, plans))
    return studies_of_task


def _plans(
    recipe: TuneRecipe,
    settings: search_space.Settings,
    prepared: Prepared,
    name: str,
    folder: str,
    named: dict[str, Any],
) -> list[TrialPlan]:
    """Draw a study's trials; draws that do not fit its task are left out, which is reported."""
    task, n_layers = prepared.task, prepared.base.n_layers

    def faults_of(drawn: search_space.Drawn) -> list[str]:
        faults = search_space.recipe_faults(settings, drawn)
        return faults or task_faults(search_space.build(settings, drawn), task, n_layers)

    search = recipe.search
    dimensions = search_space.dimensions(settings)
    drawn, left_out = search_space.trials(dimensions, search.kind, search.trials, search.seed, task.name, faults_of)
    if left_out:
        cli.say(f"{name}: {left_out} draws that do not fit the task were left out")
    return [
        TrialPlan(
            name, task.name, i, task.metric, storage.join(folder, "trials", f"{i:03d}"), one,
            search_space.build(settings, one).model_copy(update=named),
        )
        for i, one in enumerate(drawn)
    ]  # fmt: skip


def _labels(models: Sequence[str]) -> dict[str, str]:
    """Return a short, unique name for each model."""
    labels: dict[str, str] = {}
    for model in models:
        name = short_name(model)
        same = sum(other == name or other.startswith(f"{name}-") for other in labels.values())
        labels[model] = f"{name}-{same + 1}" if same else name
    return labels


def claim(recipe: TuneRecipe, out: str) -> outputs.Claim:
    """Return the claim of a resolved recipe on its folder; the record is SWEEP."""
    return outputs.Claim(out, "a sweep", recipe.identity(), "choose another --out")


def run(recipe: TuneRecipe, out: str, trust_remote_code: bool = False) -> dict[str, Any]:
    """Search and score a resolved recipe in OUT; return the content of OUT/results.json.

    An interrupted sweep is resumed, the results of a finished one are read. Interrupted where the user stops it.
    TwilbertError where all trials of a study failed.
    """
    folder, results = claim(recipe, out), storage.join(out, RESULTS)
    if (before := folder.record(SWEEP)) is not None and storage.exists(results):
        folder.require_same(before)
        finished = read_results(results)
        if all(study["dev"] for study in finished["studies"]):  # else it failed, and fails again
            cli.say(f"{out}: this sweep is finished; these are its results")
            return finished
    all_studies = studies(recipe, out, trust_remote_code)
    plans = [plan for study in all_studies for plan in study.plans]
    threads = recipe.cluster.cpus_per_trial
    with folder.held(lambda: any(records.read(plan.folder).evaluations for plan in plans)):
        folder.begin(SWEEP)
        with ray_session.ensure_ray(max(recipe.cluster.num_cpus or 0, threads), recipe.cluster.address):
            best = search_and_score(recipe, all_studies, out)
        return _write(recipe, all_studies, best, out)


def search_and_score(recipe: TuneRecipe, all_studies: Sequence[Study], out: str) -> dict[str, dict[str, Any]]:
    """Run all trials, then score the test sets, once; return study → results of its best trial."""
    from twilbert.tuning.search import as_text, require_room, resources, search
    from twilbert.tuning.tracking import SweepLog

    needs = resources(recipe.cluster)
    require_room(needs)
    wait_for_room([{kind.upper(): amount for kind, amount in needs.items() if amount}])
    shared = share(all_studies)
    # All studies' first trials come first, so that every study has a result early.
    plans = sorted((plan for study in all_studies for plan in study.plans), key=lambda plan: plan.number)
    cli.say(f"{len(all_studies):,} studies, {len(plans):,} trials, each with {as_text(needs)}; in {out}")
    log = SweepLog(out, recipe.tracking, plans)
    cli.say(log.first_line)
    try:
        log.repair()
        search(plans, shared, recipe, log)
        unscored = [study for study in all_studies if not storage.exists(storage.join(out, study.name, RESULTS))]
        if any([records.reopen_damaged(study.plans) for study in unscored]):  # a list: all of them are checked
            search(plans, shared, recipe, log)
    finally:
        log.close()
    return final.score_all(all_studies, shared, recipe, out)


def share(all_studies: Sequence[Study]) -> dict[str, Shared]:
    """Put base models and encoded rows into Ray's shared memory, each once however many studies use it."""
    import ray

    references: dict[int, Any] = {}

    def put(value: Any) -> Any:
        if id(value) not in references:
            references[id(value)] = ray.put(value)
        return references[id(value)]

    return {
        study.name: Shared(without_test(study.prepared.task), put(study.prepared.base), put(study.prepared.data))
        for study in all_studies
    }


def _write(
    recipe: TuneRecipe, all_studies: Sequence[Study], best: dict[str, dict[str, Any]], out: str
) -> dict[str, Any]:
    results = {
        "twilbert": __version__,
        "sweep": out.rsplit("/", 1)[-1],
        "recipe": recipe.model_dump(mode="json"),
        "studies": [_study_results(study, best.get(study.name)) for study in all_studies],
    }
    storage.write_bytes_atomic(storage.join(out, REPORT), page.of_sweep(results).encode())
    storage.write_json_atomic(storage.join(out, RESULTS), results)  # last: with it the sweep is finished
    failed = [study for study in all_studies if study.name not in best]
    if failed:
        names = ", ".join(study.name for study in failed)
        errors = {str(records.read(plan.folder).error) for study in failed for plan in study.plans}
        raise TwilbertError(f"{names}: every trial failed ({'; '.join(errors):.500}); see {out}")
    return results


def _study_results(study: Study, best: dict[str, Any] | None) -> dict[str, Any]:
    """A study in results.json: its scores, and every trial, failed ones too."""
    task = study.prepared.task
    chosen = records.best_trial(study.plans)
    return {
        "study": study.name,
        "task": task.name,
        "title": task.title,
        "model": study.model,
        "random_weights": study.random,
        "metric": task.metric,
        "average": task.averaging,
        "class_metric": task.class_metric,
        "dev": best and best["dev"],
        "test": best and best.get("test"),
        "yardsticks": best["yardsticks"] if best and "yardsticks" in best else [],
        "counts": study.prepared.findings.counts,
        "best_trial": None if chosen is None else chosen.number,
        "best_settings": None if chosen is None else chosen.drawn,
        "trials": [_trial(plan) for plan in study.plans],
    }


def _trial(plan: TrialPlan) -> dict[str, Any]:
    state = records.read(plan.folder)
    best = state.best(plan.metric)
    return {
        "trial": plan.number,
        "status": state.status,
        "starts": state.starts,
        "error": state.error,
        "settings": plan.drawn,
        "dev": None if best is None else number(best.score),
        "seconds": round(state.evaluations[-1].seconds, 2) if state.evaluations else None,
        "evaluations": [[one.epoch, number(one.score)] for one in state.evaluations],
    }
