"""What a recipe takes over from model.init_from, and what it may not contradict."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.small import config
from twilbert import parsing
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.data.tokenizer.wordpiece import save_wordpiece_folder
from twilbert.errors import UsageError
from twilbert.hub.folder import save_model_folder
from twilbert.model.classifier import ClassificationModel, HeadConfig
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.pretraining.initial_model import check_initial_model, inherit
from twilbert.recipe import loading

WORDS = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", *map(str, range(45))]


def tokenizer(folder: Path, words: list[str] = WORDS) -> str:
    folder.with_suffix(".vocab").write_text("\n".join(words) + "\n")
    save_wordpiece_folder(str(folder.with_suffix(".vocab")), str(folder))
    return str(folder)


def model(folder: Path, switch: str = "memory", **changes) -> str:
    sizes = config(switch, **changes)
    save_model_folder(
        str(folder / "model"), sizes, PretrainingModel(sizes).state_dict(), tokenizer(folder / "tokenizer")
    )
    return str(folder / "model")


def build(source: str | None, **sections):
    sections["model"] = {"init_from": source} | sections.get("model", {})
    return loading.build(sections)


@pytest.mark.parametrize("switch", ["plain", "factorised", "shared", "memory", "all", "no reply head"])
def test_a_recipe_that_says_nothing_has_the_models_architecture(switch: str, tmp_path: Path):
    source = model(tmp_path, switch)
    recipe = inherit(build(source))
    assert ModelConfig.from_dict(recipe.architecture(50)) == config(switch)
    assert recipe.corpus.tokenizer == source
    assert recipe.corpus.max_len == 16
    check_initial_model(recipe, Tokenizer.load(recipe.corpus.tokenizer))
    again = loading.build(parsing.parse_yaml(loading.dump(recipe), "dump"))
    assert inherit(again) == again == recipe


def test_without_init_from_nothing_changes():
    recipe = build(None)
    assert inherit(recipe) is recipe


def test_contradictions_are_listed_with_both_values(tmp_path: Path):
    recipe = build(
        model(tmp_path),
        model={
            "n_encoders": 2, "max_len": 32, "hidden_size": 32, "embedding_size": 32, "pkm": True,
            "pkm_params": {"knn": 8, "memory_size": 8, "in_layers": [1]},
        },
        objective={"rop": {"n_hidden": 3}},
    )  # fmt: skip
    with pytest.raises(UsageError) as caught:
        inherit(recipe)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    for line in (
        "model.n_encoders: 2 in the recipe, 3 in the model",
        "model.max_len: 32 in the recipe, 16 in the model",
        "model.pkm_params.knn: 8 in the recipe, 4 in the model",
        "objective.rop.n_hidden: 3 in the recipe, 1 in the model",
    ):
        assert line in message
    assert message.count(" in the recipe, ") == 4


def test_dropout_is_the_recipes(tmp_path: Path):
    source = model(tmp_path, output_dropout=0.1, input_dropout=0.2)
    recipe = inherit(build(source, model={"output_dropout": 0.3}))
    assert (recipe.model.output_dropout, recipe.model.input_dropout) == (0.3, 0.2)


def test_texts_longer_than_the_models_positions_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"corpus.max_len: 20 tokens need 43 positions"):
        inherit(build(model(tmp_path), corpus={"max_len": 20}))


def test_a_tokenizer_of_null_is_the_models(tmp_path: Path):
    source = model(tmp_path)
    overrides = [f"model.init_from={source}", "corpus.tokenizer=null"]
    recipe = loading.build({"corpus": {"tokenizer": "elsewhere"}}, overrides)
    assert inherit(recipe).corpus.tokenizer == source


def test_another_vocabulary_is_refused(tmp_path: Path):
    source = model(tmp_path)
    swapped, short = [*WORDS[:-2], WORDS[-1], WORDS[-2]], WORDS[:-1]
    for name, words, says in (("swapped", swapped, "is not the tokenizer that"), ("short", short, "has 49 entries")):
        recipe = inherit(build(source, corpus={"tokenizer": tokenizer(tmp_path / name, words)}))
        with pytest.raises(UsageError, match=says):
            check_initial_model(recipe, Tokenizer.load(recipe.corpus.tokenizer))


def test_a_folder_that_is_gone_stops_a_new_run_alone(tmp_path: Path):
    recipe = build(str(tmp_path / "gone"))
    assert inherit(recipe) == recipe
    with pytest.raises(UsageError, match="not a model folder"):
        check_initial_model(recipe, Tokenizer.load(tokenizer(tmp_path / "tokenizer")))


def test_a_fine_tuned_model_is_refused(tmp_path: Path):
    sizes, head = config("plain"), HeadConfig(("no", "sí"))
    state = ClassificationModel(sizes, head).state_dict()
    save_model_folder(str(tmp_path / "model"), sizes, state, head=head, text={"remove_rt": True, "max_len": 16})
    with pytest.raises(UsageError, match="is a fine-tuned model"):
        inherit(build(str(tmp_path / "model")))
