"""Sweeps: the draws, no test row in a trial, nothing lost when processes die, and the results."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

import twilbert
from tests.make_models import make_pretrained
from tests.make_tasks import write_rows, write_task
from tests.read_wandb import series
from twilbert import finetune, tune
from twilbert.errors import TwilbertError, UsageError
from twilbert.recipe import search_space
from twilbert.recipe import tuning as recipes
from twilbert.tasks.rows import read_test
from twilbert.tasks.task import load_task
from twilbert.tuning import page, records, sweep
from twilbert.tuning.trial import without_test

TINY = [
    "search.trials=2", "training.epochs={choice: [1, 2]}", "training.batch_size=8", "tracking.mode=offline",
    "training.learning_rate={log_uniform: [1e-3, 1e-2]}", "loss.name=cross_entropy", "training.precision=fp32",
]  # fmt: skip


def make_task(folder: Path, name: str = "mine", **settings) -> str:
    """A task that a word decides: w1 is P, w2 is N."""
    folder.mkdir(exist_ok=True)
    for split, count in (("train", 24), ("dev", 8), ("test", 8)):
        rows = [(str(i), f"hola w{3 + i} w{1 + i % 2}", "NP"[i % 2]) for i in range(count)]
        write_rows(folder, f"{split}.tsv", rows)
    path = Path(write_task(folder, **settings))
    return str(path.rename(folder / f"{name}.yaml"))


def resolved(tmp_path: Path, *overrides: str, tasks: tuple[str, ...] | None = None):
    """A resolved recipe of a tiny task and a tiny model."""
    recipe = recipes.load("tune.yaml", [*TINY, *overrides])
    tasks = tasks or (make_task(tmp_path / "data"),)
    return sweep.resolve(recipe.model_copy(update={"tasks": tasks, "models": (make_pretrained(tmp_path),)}))


# ---- what is searched


def test_trials_are_drawn_from_the_ranges_alike_for_every_model_and_differ_between_tasks():
    dimensions = search_space.dimensions(recipes.load("tune.yaml").settings())
    first, _ = search_space.trials(dimensions, "random", 8, 0, "a", lambda _: [])
    again, _ = search_space.trials(dimensions, "random", 8, 0, "a", lambda _: [])
    other, _ = search_space.trials(dimensions, "random", 8, 0, "b", lambda _: [])
    assert first == again != other
    assert len({json.dumps(drawn) for drawn in first}) == 8
    assert all(2e-5 <= drawn["training.learning_rate"] <= 5e-4 for drawn in first)
    assert {drawn["head.pooling"] for drawn in first} <= {"cls", "avg", "max", "concat"}


def test_a_grid_has_every_combination_and_refuses_ranges():
    values = {"training": {"epochs": {"choice": [1, 2]}, "batch_size": {"choice": [8, 16, 32]}}}
    grid, _ = search_space.trials(search_space.dimensions(values), "grid", 1, 0, "a", lambda _: [])
    assert sorted((d["training.epochs"], d["training.batch_size"]) for d in grid) == [
        (epochs, batch) for epochs in (1, 2) for batch in (8, 16, 32)
    ]
    with pytest.raises(UsageError, match="learning_rate: log_uniform is continuous"):
        recipes.load("tune.yaml", ["search.kind=grid"])


def test_all_faults_of_a_search_space_are_in_one_message():
    with pytest.raises(UsageError) as caught:
        recipes.load(
            "tune.yaml", ["head.poling=cls", "training.batch_size={choice: [0]}", "text.max_len={choice: [8]}"]
        )
    for part in ("did you mean head.pooling", "training.batch_size: 0", "text.max_len: texts are encoded once"):
        assert part in str(caught.value)
    with pytest.raises(UsageError, match="expected a value, or one of choice"):
        recipes.load("tune.yaml", ["training.epochs={chioce: [1]}"])


def test_a_loss_that_does_not_fit_the_task_is_not_drawn(tmp_path):
    recipe = resolved(tmp_path, "loss.beta={choice: [1.0, 2.0]}", "search.trials=6")
    [study] = sweep.studies(recipe, str(tmp_path / "out"))
    assert {plan.recipe.loss.beta for plan in study.plans} == {1.0}, "cross_entropy has no beta"
    assert len(study.plans) == 6


def test_a_broken_task_among_sound_ones_starts_nothing(tmp_path):
    sound, broken = make_task(tmp_path / "a", "sound"), make_task(tmp_path / "b", "broken")
    write_rows(tmp_path / "b", "dev.tsv", [("1", "hola", "X")])
    with pytest.raises(UsageError, match="task broken: 1 fault"):
        tune.run(resolved(tmp_path, tasks=(sound, broken)), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_a_model_the_message_has_the_commands_that_make_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tune.main(["--task", make_task(tmp_path / "data"), *TINY]) == 2
    assert "twilbert-pretrain recipes/tiny.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [tune, finetune])
def test_a_recipe_file_among_the_settings_is_refused_with_its_flag(capsys, verb):
    assert verb.main(["my.yaml", "--task", "stance17", "--model", "runs/a"]) == 2
    assert "my.yaml: a recipe file goes with --recipe: --recipe my.yaml" in capsys.readouterr().err


# ---- no test row before the final scoring


def test_a_trial_cannot_read_test_rows(tmp_path):
    task = load_task(make_task(tmp_path / "data"))
    assert read_test(task) is not None
    blind = without_test(task)
    assert read_test(blind) is None and blind.path("test") is None


@pytest.mark.ray
def test_search_runs_without_the_test_file_and_final_scoring_needs_it(ray_local, tmp_path):
    """The validator looks at test at the start; then the file is away until every trial is over."""
    recipe, out = resolved(tmp_path), str(tmp_path / "out")
    studies = sweep.studies(recipe, out)
    sweep.claim(recipe, out).begin(sweep.SWEEP)
    test = tmp_path / "data" / "test.tsv"
    content = test.read_bytes()
    test.unlink()
    with pytest.raises(Exception, match=r"test\.tsv"):
        sweep.search_and_score(recipe, studies, out)
    assert [records.read(plan.folder).status for plan in studies[0].plans] != ["open", "open"]
    assert all(records.read(plan.folder).evaluations for plan in studies[0].plans)
    test.write_bytes(content)
    results = tune.search(recipe, out)
    assert results["studies"][0]["test"]["rows"] == 8
    assert all(trial["starts"] == 1 for trial in results["studies"][0]["trials"])


@pytest.mark.ray
@pytest.mark.slow
def test_a_best_trial_whose_weights_are_damaged_is_named_and_trained_again(ray_local, tmp_path, capsys):
    """Before test is read; the other trial is over and stays so."""
    recipe, out = resolved(tmp_path), str(tmp_path / "out")
    studies = sweep.studies(recipe, out)
    sweep.claim(recipe, out).begin(sweep.SWEEP)
    test = tmp_path / "data" / "test.tsv"
    content = test.read_bytes()
    test.unlink()
    with pytest.raises(TwilbertError, match=r"test\.tsv"):
        sweep.search_and_score(recipe, studies, out)
    test.write_bytes(content)
    best = records.best_trial(studies[0].plans)
    assert best is not None
    file = Path(best.folder, "best.safetensors")
    file.write_bytes(file.read_bytes()[:-20])
    results = tune.search(recipe, out)
    assert f"{file}: missing or damaged" in capsys.readouterr().err
    assert results["studies"][0]["test"]["rows"] == 8
    starts = {trial["trial"]: trial["starts"] for trial in results["studies"][0]["trials"]}
    assert starts == {plan.number: 2 if plan is best else 1 for plan in studies[0].plans}


# ---- a sweep


@pytest.mark.ray
def test_a_sweep_over_tasks_and_models_loses_no_trial_when_a_process_is_killed(ray_local, tmp_path, monkeypatch):
    """Two tasks, trained and random weights; a trial's process is killed once; the results account for all."""
    tasks = (make_task(tmp_path / "a", "one"), make_task(tmp_path / "b", "two"))
    recipe = resolved(tmp_path, "random_weights=true", "final.seeds=2", tasks=tasks)
    out = str(tmp_path / "out")
    monkeypatch.setattr(sweep, "share", killing(sweep.share))
    results = tune.search(recipe, out)
    studies = results["studies"]
    assert [(s["task"], s["random_weights"]) for s in studies] == [
        ("one", False), ("one", True), ("two", False), ("two", True)
    ]  # fmt: skip
    trials = [trial for study in studies for trial in study["trials"]]
    assert len(trials) == 8 and {trial["status"] for trial in trials} <= {"finished", "stopped"}
    assert max(trial["starts"] for trial in trials) == 2
    for study in studies:
        assert study["test"]["n"] == 2 and study["test"]["sd"] is not None
    headers, rows = page.model_table(studies)
    assert len(headers) == 4 and [row[0] for row in rows] == ["one", "two"]

    html = Path(out, "report.html").read_text()
    assert "Models and tasks" in html and "http" not in html.replace("http-equiv", "")
    folder = Path(out, studies[0]["study"])
    assert twilbert.load(str(folder / "model")).predict("hola w1").label in ("N", "P")
    assert (folder / "model" / "README.md").exists()
    assert len(list(Path(out).glob("*/trials/*/best.safetensors"))) == 4, "only the weights of the best trials remain"
    for study in studies:
        for trial in study["trials"]:
            assert history_of(out, study["study"], trial["trial"]) == [e[1] for e in trial["evaluations"]]

    assert tune.search(recipe, out)["studies"] == studies, "a finished sweep is read, not run again"
    with pytest.raises(UsageError, match=r"search\.trials: was 2, now 3"):
        tune.run(recipe.model_copy(update={"search": recipes.Search(trials=3)}), out)


def killing(share):
    """`share` whose first study kills the process that reads it, once."""

    def wrapped(studies):
        shared = share(studies)
        name = next(iter(shared))
        marker = Path(studies[0].plans[0].folder).parent / "killed"
        kind = type(shared[name])
        shared[name] = Deadly(kind(shared[name].task, shared[name].base, shared[name].data), str(marker))
        return shared

    return wrapped


class Deadly:
    """What a study's trials share; the process that reads it first dies as by SIGKILL."""

    def __init__(self, shared, marker):
        self.shared, self.task, self.marker = shared, shared.task, Path(marker)

    def get(self):
        if not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.shared.get()


def history_of(out: str, study: str, number: int) -> list[float]:
    """The dev scores in the W&B run of a trial, of which there must be one."""
    name = f"{Path(out).name}/{study}/{number:03d}"
    [file] = [f for f in Path(out).glob("wandb/wandb/offline-run-*/*.wandb") if run_name(f) == name]
    return [row["valid/score"] for row in series(file)]


def run_name(file: Path) -> str:
    from tests.read_wandb import records as read

    return next(r.run.display_name for r in read(file) if r.WhichOneof("record_type") == "run")


@pytest.mark.ray
def test_a_study_whose_trials_all_die_is_reported_and_the_others_are_scored(ray_local, tmp_path, monkeypatch):
    tasks = (make_task(tmp_path / "a", "one"), make_task(tmp_path / "b", "two"))
    recipe = resolved(tmp_path, "cluster.max_failures=0", "tracking.mode=disabled", "search.trials=1", tasks=tasks)
    monkeypatch.setattr(sweep, "share", killing(sweep.share))
    out = tmp_path / "out"
    with pytest.raises(TwilbertError, match="one: every trial failed"):
        tune.run(recipe, str(out))
    one, two = json.loads((out / "results.json").read_bytes())["studies"]
    assert one["test"] is None and [trial["status"] for trial in one["trials"]] == ["failed"]
    assert one["trials"][0]["error"].startswith("ActorDiedError: The actor died unexpectedly")
    assert two["test"]["rows"] == 8
    with pytest.raises(TwilbertError, match="one: every trial failed"):  # the same command again is no success
        tune.run(recipe, str(out))
