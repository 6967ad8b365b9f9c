"""A run's folder: the same run identity resumes under its name, another is refused with the differences."""

from __future__ import annotations

import re

import pytest

from tests.pretraining.training_runs import small_recipe
from twilbert import storage
from twilbert.errors import UsageError
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Recipe, run_identity
from twilbert.tracking.run_folder import claim, default_name, find

DATA = {"data.corpus": "c0ffee", "data.tokenizer": "f00d"}


def identity(recipe: Recipe, data: dict[str, str] = DATA) -> dict[str, object]:
    return run_identity(recipe, data) | {"training.precision": "fp32"}


def in_folder(tmp_path, **training) -> Recipe:
    recipe = small_recipe(**training)
    run = recipe.run.model_copy(update={"storage_path": str(tmp_path)})
    return recipe.model_copy(update={"run": run})


def test_a_default_name_is_the_recipes_and_a_hash_of_the_identity():
    recipe = small_recipe()
    name = default_name("/x/recipes/tiny.yaml", identity(recipe))
    assert re.fullmatch("tiny-[0-9a-f]{8}", name)
    assert default_name("s3://bucket/tiny.yml", identity(recipe)) == name
    others = [
        identity(small_recipe(seed=1)),
        identity(recipe, DATA | {"data.corpus": "another"}),
        identity(recipe, DATA | {"data.tokenizer": "another"}),
        identity(recipe) | {"training.precision": "bf16"},
    ]
    assert len({name, *(default_name("tiny.yaml", other) for other in others)}) == 5


def test_the_same_identity_resumes_its_run(tmp_path):
    recipe = in_folder(tmp_path)
    assert find(recipe, "r", identity(recipe)) is None
    first = claim(recipe, "r", identity(recipe))
    again = in_folder(tmp_path, zero_stage=2, save_steps=5)
    assert find(again, "r", identity(again)) == first
    assert claim(again, "r", identity(again)) == first
    assert loading.load(storage.join(first.path, "recipe.yaml")) == again, "what runs now is what is written down"


def test_another_identity_is_refused_with_every_difference_and_both_remedies(tmp_path):
    recipe = in_folder(tmp_path)
    claim(recipe, "r", identity(recipe))
    before = storage.read_bytes(str(tmp_path / "r" / "recipe.yaml"))
    other = in_folder(tmp_path, seed=5, max_steps=40)
    with pytest.raises(UsageError) as caught:
        claim(other, "r", identity(other, DATA | {"data.corpus": "bada55"}))
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "training.seed: was 0, now 5" in message
    assert "data.corpus: was c0ffee, now bada55" in message
    assert "training.schedule_steps: was 20, now 40" in message
    assert "to train longer give training.schedule_steps its old value" in message
    assert "run.name=NAME" in message
    assert "undo these changes" in message
    assert storage.read_bytes(str(tmp_path / "r" / "recipe.yaml")) == before, "the refused run is untouched"


def test_a_longer_run_of_a_schedule_with_an_end_keeps_its_schedule_steps(tmp_path):
    recipe = in_folder(tmp_path)
    claim(recipe, "r", identity(recipe))
    longer = in_folder(tmp_path, max_steps=40, schedule_steps=20)
    assert find(longer, "r", identity(longer)) is not None


def test_the_published_model_says_how_far_the_run_had_come(tmp_path):
    recipe = in_folder(tmp_path)
    run = claim(recipe, "r", identity(recipe))
    assert run.trained_steps == 0
    for step in (4, 8):
        storage.write_bytes_atomic(f"{run.path}/checkpoint-{step:06d}/model/model.safetensors", f"{step}".encode())
    assert run.publish(4, trained_steps=4) == "checkpoint-000004"
    assert run.trained_steps == 4
    assert run.publish(4, trained_steps=8) == "checkpoint-000004"  # the best is still that of step 4
    assert run.trained_steps == 8
    assert storage.read_bytes(f"{run.model}/model.safetensors") == b"4"
