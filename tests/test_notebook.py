"""From Python and notebooks: pretrain.run, tune.run, what they return, and the notebook that shows them."""

from __future__ import annotations

import ast
import html
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.make_models import make_pretrained
from tests.places import TOP
from tests.report.parsing import parsed
from twilbert import pretrain, tune
from twilbert.errors import UsageError
from twilbert.inference.model import Model
from twilbert.recipe import loading
from twilbert.recipe import tuning as tune_recipes
from twilbert.tracking.metrics import read_metrics
from twilbert.tuning.sweep import of_results

NOTEBOOK = TOP / "recipes" / "first_steps.ipynb"

# ---- overrides -----------------------------------------------------------------------------------------------------


def test_two_underscores_stand_for_a_dot_and_values_stay_what_they_are():
    given = {
        "training__learning_rate": 1e-5,
        "run__name": "a: b #c",
        "training__max_time": None,
        "model__cross_sharing": True,
    }
    assert loading.as_overrides(given) == loading.as_overrides(
        {key.replace("__", "."): value for key, value in given.items()}
    )
    recipe = loading.build({}, loading.as_overrides({**given, "run__name": "NO"}))
    assert (recipe.training.learning_rate, recipe.run.name, recipe.training.max_time) == (1e-5, "NO", None)
    assert recipe.model.cross_sharing is True
    recipe = loading.build({}, loading.as_overrides({"cluster__num_workers": (2, 4), "corpus__path": Path("a")}))
    assert (recipe.cluster.num_workers, recipe.corpus.path) == ((2, 4), "a")


def test_an_unknown_setting_is_named_before_anything_starts():
    with pytest.raises(UsageError, match=r"training\.max_stepz: unknown key; did you mean training\.max_steps"):
        pretrain.run("tiny.yaml", training__max_stepz=3)
    with pytest.raises(UsageError, match=r"search\.trails: unknown key"):
        tune.run(tasks=["stance17"], search__trails=3)


# ---- pre-training --------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_run_has_its_curves_and_model(trained):
    rows = [row for row in read_metrics(f"{trained.path}/metrics.jsonl") if "train/loss" in row]
    assert trained.curve("train/loss") == [(row["step"], row["train/loss"]) for row in rows]
    assert [step for step, _ in trained.metrics["valid/mlm_loss"]] == [3, 6]
    model = trained.model(device="cpu")
    assert isinstance(model, Model) and len(model.fill_mask("hola [MASK]", top=2)[0]) == 2
    shown = trained._repr_html_()
    assert shown.startswith("<iframe") and "src=" not in shown
    page = html.unescape(shown.partition('srcdoc="')[2].partition('" style="width')[0])
    assert trained.name in parsed(page).texts


@pytest.mark.ray
def test_the_same_call_finds_the_finished_run(trained):
    recipe = str(Path(trained.path).parents[1] / "small.yaml")
    values = loading.read_values(recipe)
    settings = {"training.max_steps": 6, "training.optimizer": "lamb", "run.name": trained.name}
    again = pretrain.run(values, training__eval_steps=3, **settings)
    assert (again.path, again.metrics, again.state) == (trained.path, trained.metrics, "finished")
    assert pretrain.run(loading.build(values), training__eval_steps=3, **settings).path == trained.path


# ---- sweeps --------------------------------------------------------------------------------------------------------


def results_of(*studies: str) -> dict[str, Any]:
    """results.json of a sweep, as far as its reader goes; its second trial never saw dev."""
    trials = [{"trial": 0, "evaluations": [[1.0, 0.5], [2.0, 0.75]]}, {"trial": 1, "evaluations": [[1.0, None]]}]
    return {"studies": [{"study": study, "trials": trials} for study in studies]}


def test_a_sweep_has_the_trials_curves_and_the_best_model(tmp_path):
    folder = Path(make_pretrained(tmp_path))
    (tmp_path / "out" / "mine").mkdir(parents=True)
    folder.rename(tmp_path / "out" / "mine" / "model")
    sweep = of_results(str(tmp_path / "out"), results_of("mine"))
    assert sweep.metrics == {"mine/000": [(1.0, 0.5), (2.0, 0.75)]}
    assert sweep.curve("mine/000")[-1] == (2.0, 0.75)
    assert isinstance(sweep.model(device="cpu"), Model)
    several = replace(sweep, models={"a": "x", "b": "y"})
    with pytest.raises(UsageError, match=r"which model\? one of a, b"):
        several.model()
    with pytest.raises(UsageError, match="no model yet"):
        of_results(str(tmp_path / "out"), results_of("theirs")).model()


def test_tune_run_takes_recipe_and_overrides_as_the_command_does(monkeypatch, tmp_path):
    seen = []

    def search(recipe: tune_recipes.TuneRecipe, out: str | None, trust_remote_code: bool) -> dict[str, Any]:
        seen.append(recipe)
        return results_of("mine") | {"out": out}

    monkeypatch.setattr(tune, "search", search)
    sweep = tune.run(out=str(tmp_path), tasks=["mine.yaml"], models=["a"], search__trials=3, training__epochs=2)
    by_command = tune_recipes.load("tune.yaml", ["search.trials=3", "training.epochs=2"])
    assert seen == [by_command.model_copy(update={"tasks": ("mine.yaml",), "models": ("a",)})]
    assert sweep.path == str(tmp_path) and "mine/000" in sweep.metrics
    tune.run(seen[0], str(tmp_path))
    tune.run({"training": {"epochs": {"choice": [1, 2]}}}, str(tmp_path))
    assert seen[1] == seen[0] and seen[2].training == {"epochs": {"choice": [1, 2]}}


# ---- the notebook --------------------------------------------------------------------------------------------------


def cells() -> list[Any]:
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_kept_without_outputs_and_its_settings_are_sound():
    pytest.importorskip("nbformat", reason="pip install 'twilbert[dev]'")
    assert len(cells()) >= 5
    calls = {}
    for cell in cells():
        assert cell.outputs == [] and cell.execution_count is None
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pretrain.run", "tune.run"):
                calls[ast.unparse(node.func)] = node
    literal = {
        name: {k.arg: ast.literal_eval(k.value) for k in call.keywords if isinstance(k.value, ast.Constant)}
        for name, call in calls.items()
    }
    assert loading.load("tiny.yaml", loading.as_overrides(literal["pretrain.run"])).training.max_steps <= 100
    assert literal["tune.run"].pop("out").startswith("first_steps/")
    assert tune_recipes.load("tune.yaml", loading.as_overrides(literal["tune.run"])).search.trials == 2


@pytest.mark.slow
@pytest.mark.ray
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="pip install 'twilbert[dev]'")
    pytest.importorskip("ipykernel", reason="pip install 'twilbert[dev]'")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    results = [output.data for output in shown if output.output_type == "execute_result"]
    assert not [output for output in shown if output.output_type == "error"]
    assert "'finished', 60" in results[0]["text/plain"]
    assert "<iframe" in results[1]["text/html"]
    assert [step for step, _ in ast.literal_eval(results[2]["text/plain"])] == [20, 40, 60]
    assert "stance17/000" in results[4]["text/plain"]
    assert "Prediction(label=" in results[5]["text/plain"]
    assert {item.name for item in tmp_path.iterdir()} == {"first_steps"}, "nothing is written elsewhere"
