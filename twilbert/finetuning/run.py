"""A fine-tuning from its recipe to its folder.

OUT/  recipe.yaml  seed-0/{metrics.jsonl, wandb/} …  model/  report.html  results.json (last; until then: resume.py)
      predictions-{dev,test}.jsonl  errors-{dev,test}.jsonl (the worst first)  confusion-{dev,test}.tsv
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twilbert import __version__, cli, storage
from twilbert.devices import find_device
from twilbert.errors import UsageError
from twilbert.finetuning import page, resume, test_scores
from twilbert.finetuning.data import TaskData, encode_task, task_faults
from twilbert.finetuning.encoders import Base, load_base, short_name
from twilbert.finetuning.predictions import SplitPredictions, row_record, worst_errors
from twilbert.finetuning.test_scores import AgainstYardstick, Scores
from twilbert.finetuning.train import Evaluation, Outcome, build_loss, new_network, resolve_precision, train
from twilbert.hub.card import code, plain
from twilbert.hub.folder import PAIRS
from twilbert.model.problems import SINGLE
from twilbert.parsing import read_checked
from twilbert.progress import Progress
from twilbert.recipe import loading
from twilbert.recipe.finetuning import FinetuneRecipe
from twilbert.tasks import metrics
from twilbert.tasks.checks import Findings, require
from twilbert.tasks.task import Task, load_task
from twilbert.tracking.metrics import Tracker
from twilbert.tracking.wandb_runs import Wandb

RESULTS = "results.json"
REPORT = "report.html"
_RECIPE = "recipe.yaml"
_MOST_ERRORS = 200  # in errors-*.jsonl
_SAY_SECONDS = 30.0  # between lines of progress where there is no terminal


@dataclass(frozen=True)
class Prepared:
    """The task, base model and encoded rows of a checked recipe, which any number of trainings share."""

    task: Task
    findings: Findings
    base: Base
    data: TaskData


def prepare(recipe: FinetuneRecipe, base: Base | None = None, *, trust_remote_code: bool = False) -> Prepared:
    """Check task, recipe and model against each other, then encode; UsageError before anything is trained.

    `base`: the model where it is loaded already; else code that its folder brings or names runs only with
    `trust_remote_code`, or where it is the head that the recipe names.
    """
    if recipe.task is None:
        raise UsageError("which task? --task NAME, or task: in the recipe")
    task = load_task(recipe.task, recipe.data_dir)
    findings = require(task)
    for notice in findings.notices:
        cli.say(f"{task.name}: {notice}")
    named = frozenset(filter(None, [recipe.head.own]))
    base = base or load_base(recipe.model, recipe.runs, trust_remote_code or named)
    faults = task_faults(recipe, task, base.n_layers)
    if faults:
        raise UsageError("\n".join([f"{task.name}: the recipe does not fit", *(f"  {fault}" for fault in faults)]))
    data = encode_task(base, task, recipe)
    cli.say(f"{task.name}: texts are cleaned by the rules {data.text['cleaning']}; text.cleaning names others")
    build_loss(recipe, task, data.train.labels)  # imports a user's own loss and, next, head: faults are reported now
    new_network(base, recipe, task, recipe.training.seed)
    return Prepared(task, findings, base, data)


def finetune(
    recipe: FinetuneRecipe, out: str, *, overwrite: bool = False, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Train every seed, score the test set once, write OUT; return the content of OUT/results.json.

    An interrupted fine-tuning is resumed: finished seeds are not trained again. The results of a finished one are read.
    """
    prepared = prepare(recipe, trust_remote_code=trust_remote_code)
    identity = resume.identity(recipe, prepared.task, prepared.base, prepared.data)
    task = prepared.task
    reads = filter(None, [recipe.task, prepared.base.name, *map(task.path, ("train", "dev", "test"))])
    with resume.claimed(out, identity, list(reads), overwrite=overwrite) as out:
        if storage.exists(storage.join(out, RESULTS)):
            cli.say(f"{out}: this fine-tuning is finished; these are its results")
            results = read_results(out)
        else:
            results = _train_and_score(prepared, recipe, out)
        for seed in _seeds(recipe):
            resume.drop_seed(_seed_folder(out, seed))
    return results


@dataclass(frozen=True)
class _Results:
    """results.json: the entries that are read."""

    task: str
    metric: str
    average: str | None
    class_metric: str | list[str] | None
    counts: dict[str, Any]
    dev: Scores
    test: Scores | None = None
    yardsticks: list[AgainstYardstick] = field(default_factory=list)  # none in those of 0.2


def read_results(out: str) -> dict[str, Any]:
    """Return the content of OUT/results.json; TwilbertError where it is of another shape."""
    return read_checked(storage.join(out, RESULTS), _Results)


def _train_and_score(prepared: Prepared, recipe: FinetuneRecipe, out: str) -> dict[str, Any]:
    storage.write_bytes_atomic(storage.join(out, _RECIPE), loading.dump(recipe).encode())
    wandb = Wandb(recipe.tracking.project, recipe.tracking.mode, cli.say)
    outcomes = [_one_seed(prepared, recipe, out, seed, wandb) for seed in _seeds(recipe)]
    return score_and_write(prepared, recipe, out, outcomes)


def _seeds(recipe: FinetuneRecipe) -> range:
    return range(recipe.training.seed, recipe.training.seed + recipe.seeds)


def _seed_folder(out: str, seed: int) -> str:
    return storage.join(out, f"seed-{seed}")


def score_and_write(
    prepared: Prepared, recipe: FinetuneRecipe, out: str, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Score finished trainings and write all of OUT but recipe.yaml and the logs; return what results.json holds."""
    task, base = prepared.task, prepared.base
    final = test_scores.score(base, task, prepared.data, recipe, outcomes)
    device = find_device(recipe.training.device)
    results = {
        "task": task.name,
        "title": task.title,
        "model": base.name,
        "twilbert": __version__,
        "device": str(device),
        "precision": resolve_precision(recipe.training, device),
        **final.scores,
        "counts": prepared.findings.counts,
        "notices": prepared.findings.notices,
        "recipe": recipe.model_dump(mode="json"),
    }
    for split in final.splits:
        _write_split(task, out, split)
    network: Any = new_network(base, recipe, task, final.chosen.seed)
    network.load_state_dict(final.chosen.state)
    network.head = replace(network.head, calibration=final.calibration)
    text = {**prepared.data.text, PAIRS: task.columns.text_b is not None}
    base.save(storage.join(out, "model"), network, text, {"README.md": _card(results, pairs=text[PAIRS]).encode()})
    storage.write_bytes_atomic(storage.join(out, REPORT), page.of_run(task, results, final.splits).encode())
    storage.write_json_atomic(storage.join(out, RESULTS), results)
    return results


def _one_seed(prepared: Prepared, recipe: FinetuneRecipe, out: str, seed: int, wandb: Wandb) -> Outcome:
    task, folder = prepared.task, _seed_folder(out, seed)
    before = resume.read_seed(folder)
    if before is not None:
        cli.say(f"{task.name} seed {seed}: finished at an earlier start, dev {task.metric} {before.best.score:.4f}")
        return before
    resume.drop_seed(folder, logs=True)  # of a process that died while training it
    name = f"{storage.absolute(out).rsplit('/', 1)[-1].removesuffix(resume.NEW)}-seed-{seed}"
    config = recipe.model_dump(mode="json") | {"task": task.name, "model": short_name(prepared.base.name), "seed": seed}
    run_id = uuid.uuid5(uuid.NAMESPACE_URL, storage.absolute(out)).hex[:8] + uuid.uuid4().hex[:4]
    tracker = Tracker(folder, name, wandb, config, f"{run_id}-{seed}", 0)
    cli.say(tracker.first_line)

    def log(evaluation: Evaluation) -> None:
        tracker.log(evaluation.step, evaluation.row())
        progress.say(
            f"{task.name} seed {seed} epoch {evaluation.epoch:.2f} step {evaluation.step}: "
            f"loss {evaluation.train_loss:.4f}, dev {task.metric} {evaluation.score:.4f}, "
            f"{evaluation.samples_per_second:,.0f} samples/s"
        )

    progress = Progress(f"{task.name} seed {seed}: batch", every_s=_SAY_SECONDS, first_s=_SAY_SECONDS)
    try:
        with progress:
            outcome = train(prepared.base, prepared.data, task, recipe, seed, log, report=progress.show)
    finally:
        tracker.close()
    resume.write_seed(folder, outcome)
    return outcome


def _write_split(task: Task, out: str, split: SplitPredictions) -> None:
    def write(name: str, lines: Iterable[str]) -> None:
        storage.write_bytes_atomic(storage.join(out, name), "".join(f"{line}\n" for line in lines).encode())

    rows = [json.dumps(row_record(task, split, i), ensure_ascii=False) for i in range(len(split.rows))]
    write(f"predictions-{split.name}.jsonl", rows)
    if split.rows.labels is None:
        return
    write(f"errors-{split.name}.jsonl", [rows[i] for i in worst_errors(task, split)[:_MOST_ERRORS]])
    if task.problem == SINGLE:
        counts = metrics.confusion(split.truths(task), split.predicted(task), len(task.labels)).tolist()
        table = [["true\\predicted", *task.labels]]
        table += [[label, *map(str, row)] for label, row in zip(task.labels, counts, strict=True)]
        write(f"confusion-{split.name}.tsv", map("\t".join, table))


def _card(results: dict[str, Any], *, pairs: bool) -> str:
    texts = '"…", "…"' if pairs else '"…"'
    trust = ", trust_remote_code=True" if results["recipe"]["head"]["own"] else ""
    recipe = results["recipe"]
    training, head = recipe["training"], recipe["head"]
    return (
        f"---\nlanguage: es\nlibrary_name: twilbert\ntags: [text-classification]\n---\n# {plain(results['task'])}\n\n"
        f"Fine-tuned on {plain(results['title'] or results['task'])} with twilbert {results['twilbert']} from "
        f"{code(str(results['model']).rsplit('/', 1)[-1])}.\n\n"
        f"| split | {plain(results['metric'])} |\n|---|---|\n| dev | {page.score_with_spread(results['dev'])} |\n"
        f"| test | {page.score_with_spread(results.get('test'))} |\n\n"
        f"Pooling {head['pooling']}, {training['optimizer']} at {training['learning_rate']}, batches of "
        f"{training['batch_size']}, {training['epochs']} epochs at most; recipe.yaml of the run has all settings.\n\n"
        f'```python\nimport twilbert\n\nmodel = twilbert.load("model"{trust})\nprint(model.predict({texts}))\n```\n'
    )
