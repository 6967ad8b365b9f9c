"""The original's JSON configurations as recipes: every field has its place or is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.model.small import config
from tests.original.keras_files import finetuning_json, original_json
from tests.places import GOLDEN
from twilbert.data.cleaning import FIRST
from twilbert.errors import UsageError
from twilbert.model.classifier import HeadConfig
from twilbert.model.problems import MULTI
from twilbert.original.config import read_original_config, translate
from twilbert.original.settings import ORIGINAL_SETTINGS
from twilbert.recipe import loading
from twilbert.recipe.finetuning import FinetuneRecipe
from twilbert.recipe.pretraining import Section
from twilbert.recipe.tuning import TuneRecipe
from twilbert.tasks.task import TaskFile

SIZES = config("plain")
LARGE = {
    "dataset": {"file": "/data/pairs.tsv", "vocab_file": "/data/vocab"},
    "representation": {
        "max_len": 128, "bucket_min_a": 5, "bucket_min_b": 5, "bucket_max_a": 45, "bucket_max_b": 45, "bucket_steps": 5,
    },
    "model": {
        "factorize_embeddings": False, "cross_sharing": False, "embedding_size": 768, "hidden_size": 768,
        "n_encoders": 12, "n_heads": 12, "attention_size": None, "input_dropout": 0.0, "output_dropout": 0.1,
        "initializer_range": 0.02, "pkm": False,
        "masked_lm": {
            "type": "word", "max_span": 3, "budget": 0.15, "probs": {"mask": 0.7, "random": 0.2, "keep": 0.1},
        },
        "rop": {"use_rop": True, "n_hidden": 1, "hidden_size": 512},
    },
    "training": {
        "batch_size": 63, "epochs": 30, "optimizer": "adam", "noam_annealing": True, "warmup_steps": 10000,
        "accum_iters": 32, "use_gpu": True, "multi_gpu": True, "n_gpus": 2, "path_save_weights": "./weights/",
        "verbose": 1,
    },
}  # fmt: skip


def flat(value: dict, path: str = "") -> list[str]:
    out = []
    for key, item in value.items():
        whole = key in ("categories", "rev_categories", "class_weights")
        out += flat(item, f"{path}{key}.") if isinstance(item, dict) and not whole else [f"{path}{key}"]
    return out


def test_the_large_models_configuration_becomes_its_recipe(tmp_path: Path):
    original = translate(LARGE)
    path = tmp_path / "recipe.yaml"
    path.write_text(original.recipe_yaml())
    recipe = loading.load(str(path))
    assert recipe == original.recipe
    assert recipe.architecture(30002) | {"pkm_params": None} == {
        "vocab_size": 30002, "max_len": 128, "hidden_size": 768, "embedding_size": 768, "factorize_embeddings": False,
        "n_encoders": 12, "n_heads": 12, "attention_size": 64, "cross_sharing": False, "input_dropout": 0.0,
        "output_dropout": 0.1, "initializer_range": 0.02, "pkm": False, "pkm_params": None, "use_rop": True,
        "rop_n_hidden": 1, "rop_hidden_size": 512,
    }  # fmt: skip
    assert recipe.corpus.max_len == 40
    masked = recipe.objective.masked_lm
    assert (masked.type, masked.probs.mask, masked.probs.random, masked.probs.keep) == ("token", 0.7, 0.2, 0.1)
    training = recipe.training
    assert (training.optimizer, training.schedule, training.warmup_steps) == ("adam", "noam", 10_000)
    assert training.global_batch_size == 64 * 32  # odd batches were made even
    assert recipe.cluster.use_gpu and recipe.cluster.num_workers == 2


def test_every_key_is_mapped_or_named(tmp_path: Path):
    content = LARGE | {"novelty": {"depth": 3}}
    original = translate(content)
    fates = dict(original.fates)
    assert list(fates) == flat(content)
    assert fates["novelty.depth"].startswith("dropped: no setting of the original")
    assert fates["dataset.vocab_file"].startswith("now twilbert-convert --vocab")
    assert 'was "/data/pairs.tsv"' in fates["dataset.file"] and "corpus.path" in fates["dataset.file"]
    assert "ignored by the original" in fates["training.n_gpus"]
    assert fates["training.verbose"].startswith("dropped: ")
    assert all(fate for fate in fates.values())
    assert all(f"# {key}: " in original.recipe_yaml() for key in fates)


def test_configurations_of_the_originals_applications_are_read():
    for name in ("emb", "lm", "rop", "test"):
        original = read_original_config(str(GOLDEN / f"apps/{name}_config.json"))
        assert original.recipe.model.max_len == 128
        assert not original.is_finetuning and not original.untrained_norm
        assert original.recipe.objective.rop.use_rop


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"noam_annealing": False}, {"schedule": "constant", "learning_rate": 1e-4, "optimizer": "adam"}),
        ({"noam_annealing": False, "lr": 0.01}, {"schedule": "constant", "learning_rate": 0.01}),
        (
            {"optimizer": "lamb", "noam_annealing": False},
            {"optimizer": "lamb", "schedule": "constant", "learning_rate": 0.00176, "max_grad_norm": 1.0},
        ),
        (
            {"optimizer": "LAMB ", "noam_annealing": True},
            {"optimizer": "lamb", "schedule": "noam", "learning_rate": (768 * 10_000) ** -0.5},
        ),
        ({"optimizer": "adagrad"}, {"optimizer": "adam"}),
    ],
)
def test_optimisers_and_schedules(training: dict, expected: dict):
    recipe = translate(LARGE | {"training": LARGE["training"] | training}).recipe
    for name, value in expected.items():
        assert getattr(recipe.training, name) == value, name


@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_memorys_inverted_and_ignored_switches(batch_norm: bool):
    sizes = config("memory")
    content = original_json(sizes, batch_norm=batch_norm)
    content["model"]["pkm_params"]["factorize_embeddings"] = True
    original = translate(content)
    params = original.recipe.model.pkm_params
    assert not params.batch_norm and not params.factorize_embeddings and params.memory_size == 8
    assert original.untrained_norm is not batch_norm


def test_what_a_fine_tuned_model_needs_beside():
    head = HeadConfig(("NEG", "NEU", "POS"), pooling="avg", dropout=0.2)
    content = finetuning_json(SIZES, head)
    content["representation"] |= {"bucket_min": 5, "bucket_max": 30, "bucket_steps": 5, "preprocessing": True}
    original = translate(content)
    assert original.is_finetuning
    assert HeadConfig.from_dict(original.head(3)) == head
    assert original.text() == {"remove_rt": True, "max_len": 25, "cleaning": FIRST}
    with pytest.raises(UsageError, match=r"numbers its labels \[0, 1, 2\], the weight file has 4 outputs"):
        original.head(4)
    shuffled = translate(finetuning_json(SIZES, head, categories={"b": 1, "c": 2, "a": 0}))
    assert shuffled.head(3)["labels"] == ["a", "b", "c"]
    reverse = translate(finetuning_json(SIZES, head, categories=None, rev_categories={"1": "b", "0": "a"}))
    assert reverse.head(2)["labels"] == ["a", "b"]
    several = translate(finetuning_json(SIZES, head, multi_label=True, categories={"0": 0, "1": 1}))
    assert several.head(11)["problem"] == MULTI and several.head(11)["labels"][10] == "10"


def test_settings_of_fine_tuning_name_the_command_or_file_that_has_them_now():
    content = finetuning_json(SIZES, HeadConfig(("NEG", "POS")))
    content["finetuning"] |= {"lr": 1e-4, "path_load_weights": "w.hdf5"}
    content |= {"grid_search": {"lr": [1e-5], "runs": 3}, "dataset": {"aux_header": "B"}}
    fates = dict(translate(content).fates)
    assert fates["finetuning.lr"] == "now training.learning_rate of twilbert-finetune"
    assert fates["finetuning.path_load_weights"] == "now --model of twilbert-finetune"
    assert fates["grid_search.lr"] == "now training.learning_rate of twilbert-tune"
    assert fates["dataset.aux_header"].startswith("now columns.text_b of a task file")
    assert not [fate for fate in fates.values() if "version" in fate]


def dotted(section: type[Section]) -> set[str]:
    """Dotted names of a section's settings."""
    names = set()
    for name, field in section.model_fields.items():
        inner = field.annotation
        is_section = isinstance(inner, type) and issubclass(inner, Section)
        names |= {f"{name}.{one}" for one in dotted(inner)} if is_section else {name}
    return names


def test_the_settings_of_fine_tuning_that_took_the_places_exist():
    settings = {
        "twilbert-finetune": dotted(FinetuneRecipe) | {"--out", "--model"},
        "twilbert-tune": dotted(TuneRecipe) | dotted(FinetuneRecipe),
        "a task file, which twilbert-finetune --task takes": dotted(TaskFile),
    }
    named = [fate.flag.split(" of ", 1) for fate in ORIGINAL_SETTINGS.values() if fate.flag and " of " in fate.flag]
    assert len(named) == 30
    assert not [name for name, place in named if name.partition(":")[0] not in settings[place]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {}}, "model.hidden_size, model.embedding_size"),
        ({"representation": {}}, "representation.max_len missing"),
        ({"representation": {"max_len": "128"}}, "representation.max_len must be a whole number"),
        ({"model": LARGE["model"] | {"n_encoders": 0}}, "model.n_encoders: 0"),
        ({"model": LARGE["model"] | {"embedding_size": 64}}, "model.embedding_size: 64 differs"),
        ({"model": LARGE["model"] | {"n_heads": 7}}, "does not divide by n_heads 7"),
        ({"model": LARGE["model"] | {"n_encoders": 10**9}}, "model.n_encoders is 1,000,000,000"),
        ({"training": {"batch_size": 0}}, "training.batch_size must be"),
    ],
)
def test_faults_are_wrong_usage_and_named(change: dict, says: str, tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LARGE | change))
    with pytest.raises(UsageError, match=says):
        read_original_config(str(path))


def test_what_is_no_configuration_is_refused(tmp_path: Path):
    path = tmp_path / "config.json"
    for content, says in (("{", "not valid JSON"), ("[]", 'no section "model"'), ('{"model": 3}', "no section")):
        path.write_text(content)
        with pytest.raises(UsageError, match=says):
            read_original_config(str(path))
    with pytest.raises(UsageError, match="no such file"):
        read_original_config(str(tmp_path / "absent.json"))


def test_a_strange_key_does_not_reach_the_recipe(tmp_path: Path):
    original = translate(LARGE | {"x\nrun": {"a\u2028training": 'b"\n'}})
    path = tmp_path / "recipe.yaml"
    path.write_text(original.recipe_yaml())
    assert loading.load(str(path)) == translate(LARGE).recipe
