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
from twilbert.finetuning.encoders import Base, RivalBase, load_base, short_name
from twilbert.finetuning.run import Prepared, prepare
from twilbert.finetuning.test_scores import Scores
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


RESULTS, REPORT, SWEEP = "results.json", "report.html", "sweep.yaml"


def resolve(recipe: TuneRecipe) -> TuneRecipe:
    """Tasks and models named, every path absolute; UsageError where one cannot be."""
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
    """tuned/NAME-HASH: the same sweep again goes on in its own folder."""
    stems = [task.rsplit("/", 1)[-1].removesuffix(".yaml") for task in recipe.tasks]
    name = stems[0] if len(stems) == 1 else ("all" if stems == registered() else f"{len(stems)}-tasks")
    return storage.absolute(storage.join("tuned", f"{name}-{loading.short_hash(recipe.identity())}"))


def studies(recipe: TuneRecipe, out: str, trust_remote_code: bool = False) -> list[Study]:
    """Everything checked, read, encoded and drawn; UsageError with the faults of all tasks, before any trial.

    Code that a model's folder brings or names runs only with `trust_remote_code`, or where the recipe names that head.
    """
    labels = _labels(recipe.models)
    trust = trust_remote_code or search_space.named(recipe.settings(), "head.own")
    bases = {model: load_base(model, recipe.runs, trust) for model in recipe.models}
    for model, base in bases.items():
        if isinstance(base, RivalBase) and base.own_code:
            raise UsageError(f"{model}: its own code is not found by the processes of a sweep; use twilbert-finetune")
    made, faults = [], []
    for task in recipe.tasks:
        for model in recipe.models:
            try:
                made += _studies_of(recipe, out, task, model, labels[model], bases[model])
            except UsageError as error:
                faults.append(str(error))
                break  # the task's fault for every model
    if faults:
        raise UsageError("\n".join(dict.fromkeys(faults)))
    return made


def _studies_of(recipe: TuneRecipe, out: str, task: str, model: str, label: str, base: Base) -> list[Study]:
    several = len(recipe.models) > 1 or recipe.random_weights
    prepared, made = None, []
    for random in (False, True) if recipe.random_weights else (False,):
        settings = recipe.settings()
        settings["encoder"] = settings["encoder"] | {"random": random}
        named = {"task": task, "model": model, "data_dir": recipe.data_dir, "runs": recipe.runs}
        named |= {"seeds": recipe.final.seeds, "tracking": recipe.tracking}
        fixed = search_space.build(settings, {}).model_copy(update=named)
        prepared = prepared or prepare(fixed, base)
        told = f"{label}, random weights" if random else label
        stem = prepared.task.name
        name = f"{stem}--{label}{'--random' if random else ''}" if several else stem
        plans = _plans(recipe, settings, prepared, name, storage.join(out, name), named)
        made.append(Study(name, told, random, prepared, fixed, plans))
    return made


def _plans(
    recipe: TuneRecipe,
    settings: search_space.Settings,
    prepared: Prepared,
    name: str,
    folder: str,
    named: dict[str, Any],
) -> list[TrialPlan]:
    """A study's trials; draws that do not fit its task are left out, and told of."""
    task, n_layers = prepared.task, prepared.base.n_layers

    def fits(drawn: search_space.Drawn) -> list[str]:
        faults = search_space.recipe_faults(settings, drawn)
        return faults or task_faults(search_space.build(settings, drawn), task, n_layers)

    search = recipe.search
    found = search_space.dimensions(settings)
    drawn, left_out = search_space.trials(found, search.kind, search.trials, search.seed, task.name, fits)
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
    """A short name for each model: the last part of its path that says something."""
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
    """Search and final scoring of a resolved recipe in OUT; returns what OUT/results.json holds.

    A finished sweep is read. Interrupted where the user ended it; the same call goes on. TwilbertError where a study
    came to nothing.
    """
    folder, results = claim(recipe, out), storage.join(out, RESULTS)
    if (before := folder.record(SWEEP)) is not None and storage.exists(results):
        folder.require_same(before)
        finished = read_results(results)
        if all(study["dev"] for study in finished["studies"]):  # else it failed, and does so again
            cli.say(f"{out}: this sweep is finished; these are its results")
            return finished
    made = studies(recipe, out, trust_remote_code)
    plans = [plan for study in made for plan in study.plans]
    threads = recipe.cluster.cpus_per_trial
    with folder.held(lambda: any(records.read(plan.folder).evaluations for plan in plans)):
        folder.begin(SWEEP)
        with ray_session.ensure_ray(max(recipe.cluster.num_cpus or 0, threads), recipe.cluster.address):
            found = search_and_score(recipe, made, out)
        return _write(recipe, made, found, out)


def search_and_score(recipe: TuneRecipe, made: Sequence[Study], out: str) -> dict[str, dict[str, Any]]:
    """Every trial to its end, then the test sets, once: study → results of its best trial."""
    from twilbert.tuning.search import require_room, resources, search, told
    from twilbert.tuning.tracking import SweepLog

    needs = resources(recipe.cluster)
    require_room(needs)
    wait_for_room([{kind.upper(): amount for kind, amount in needs.items() if amount}])
    shared = share(made)
    # All studies' first trials come first, so that every study has something early.
    plans = sorted((plan for study in made for plan in study.plans), key=lambda plan: plan.number)
    cli.say(f"{len(made):,} studies, {len(plans):,} trials, each with {told(needs)}; in {out}")
    log = SweepLog(out, recipe.tracking, plans)
    cli.say(log.first_line)
    try:
        log.repair()
        search(plans, shared, recipe, log)
        unscored = [study for study in made if not storage.exists(storage.join(out, study.name, RESULTS))]
        if any([records.reopen_damaged(study.plans) for study in unscored]):  # all of them, and once
            search(plans, shared, recipe, log)
    finally:
        log.close()
    return final.score_all(made, shared, recipe, out)


def share(made: Sequence[Study]) -> dict[str, Shared]:
    """Weights and encoded rows put into Ray's shared memory, each once however many studies use it."""
    import ray

    put: dict[int, Any] = {}

    def once(thing: Any) -> Any:
        if id(thing) not in put:
            put[id(thing)] = ray.put(thing)
        return put[id(thing)]

    return {
        study.name: Shared(without_test(study.prepared.task), once(study.prepared.base), once(study.prepared.data))
        for study in made
    }


def _write(recipe: TuneRecipe, made: Sequence[Study], found: dict[str, dict[str, Any]], out: str) -> dict[str, Any]:
    results = {
        "twilbert": __version__,
        "sweep": out.rsplit("/", 1)[-1],
        "recipe": recipe.model_dump(mode="json"),
        "studies": [study_results(study, found.get(study.name)) for study in made],
    }
    storage.write_bytes_atomic(storage.join(out, REPORT), page.of_sweep(results).encode())
    storage.write_json_atomic(storage.join(out, RESULTS), results)  # last: with it the sweep is finished
    nothing = [study.name for study in made if study.name not in found]
    if nothing:
        errors = {records.read(plan.folder).error for study in made if study.name in nothing for plan in study.plans}
        raise TwilbertError(f"{', '.join(nothing)}: every trial failed ({'; '.join(map(str, errors)):.500}); see {out}")
    return results


def study_results(study: Study, best: dict[str, Any] | None) -> dict[str, Any]:
    """A study in results.json: its scores, and every trial, whatever became of it."""
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
        "dev": None if best is None else records.number(best.score),
        "seconds": round(state.evaluations[-1].seconds, 2) if state.evaluations else None,
        "evaluations": [[seen.epoch, records.number(seen.score)] for seen in state.evaluations],
    }
