"""Recipes: every fault at once, the settings of a run identity, the shipped files, the original's settings."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.places import GOLDEN, TOP
from twilbert import parsing
from twilbert.errors import UsageError
from twilbert.model import config
from twilbert.model.config import EncoderConfig, ModelConfig, count_parameters
from twilbert.original.settings import ORIGINAL_SETTINGS
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Model, PkmParams, Recipe, run_identity

_OTHERS = ("finetune", "tune")  # recipes of other verbs, with their own schemas
SHIPPED = sorted(p for p in (TOP / "recipes").glob("*.yaml") if p.stem not in _OTHERS)


def test_five_faults_of_different_kinds_are_reported_together(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text(
        "trainin: {max_steps: 3}\n"
        "model: {n_headz: 4, hidden_size: 100, embedding_size: 64}\n"
        "training: {zero_stage: 0, precision: bf16, max_steps: many}\n"
    )
    with pytest.raises(UsageError) as caught:
        loading.load(str(path), ["objective.masked_lm.probs.mask=0.5", "nonsense"])
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "8 faults" in message
    for part in (
        "trainin: unknown key; did you mean training?",
        "model.n_headz: unknown key; did you mean model.n_heads?",
        "training.max_steps: 'many'",
        "model.attention_size: hidden_size 100 does not divide by n_heads 6",
        "model.embedding_size: 64 differs from hidden_size 100",
        "training.zero_stage: bf16 needs stage 1, 2 or 3",
        "objective.masked_lm.probs: mask 0.5",
        "nonsense: expected an override section.key=value",
    ):
        assert part in message, message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "line 1, column"),
        ("- 1\n- 2", "expected sections"),
        ("training: 3", "training"),
        ("run: {name: ../up}", "run.name"),
        ("corpus: {max_len: 0}", "corpus.max_len: 0"),
        ("corpus: {max_len: 90}\nmodel: {max_len: 64}", "corpus.max_len: 90 tokens need 183 positions"),
        ("training: {optimizer: lamb, trust_clip: -1}", "training.trust_clip"),
        (
            "training: {schedule: wsd, learning_rate: 0.001, warmup_steps: 90, max_steps: 100, decay_share: 0.2}",
            "training.warmup_steps: 90 leaves nothing of the 80 steps before the decay",
        ),
        ("training: {schedule: linear}", "training.learning_rate: a linear schedule needs"),
        ("model: {pkm: true}", "model.pkm_params.in_layers: [10] must name different layers from 0 to 5"),
        ("model: {pkm: true, pkm_params: {in_layers: [0], memory_size: 8}}", "model.pkm_params.knn: 32 is more than"),
        ("training: {max_steps: 1e-3}", "training.max_steps"),
        ("corpus: {lanes: 3}", "corpus.lanes: 3 must divide training.global_batch_size=2048"),
        (
            "corpus: {lanes: 8}\ncluster: {num_workers: [2, 4]}",
            "cluster.num_workers: 3 workers do not divide corpus.lanes=8; use 1, 2, 4, 8, or another",
        ),
    ],
)
def test_a_fault_names_its_place_and_the_remedy(text, message):
    with pytest.raises(UsageError, match=message.replace("[", r"\[").replace("]", r"\]")):
        loading.build(parsing.parse_yaml(text, "r.yaml"), where="r.yaml")


def test_overrides_follow_yaml_1_2():
    recipe = loading.build(
        {"run": {"name": "a"}},
        ["run.name=NO", "training.learning_rate=1e-4", "model.pkm_params.in_layers=[1,2]", "training.max_time=null"],
    )
    assert recipe.run.name == "NO"
    assert recipe.training.learning_rate == 1e-4
    assert recipe.model.pkm_params.in_layers == (1, 2)
    assert recipe.training.max_time is None


def test_a_recipe_survives_its_own_yaml():
    recipe = loading.load(str(SHIPPED[-1]), ["model.input_dropout=0.1"])
    assert loading.build(parsing.parse_yaml(loading.dump(recipe), "x")) == recipe


def test_every_field_has_a_description():
    def walk(section, path=""):
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if hasattr(type(value), "model_fields"):
                yield from walk(value, f"{path}{name}.")
            else:
                yield f"{path}{name}", field.description

    missing = [path for path, description in walk(Recipe()) if not description]
    assert missing == []


def test_a_models_sizes_are_declared_once():
    sizes = {field.name for field in dataclasses.fields(EncoderConfig)} - {"vocab_size"}
    assert set(Model.model_fields) - {"init_from"} == sizes
    assert set(PkmParams.model_fields) == {field.name for field in dataclasses.fields(config.PkmParams)}
    default = ModelConfig(attention_size=None)
    assert ModelConfig.from_dict(Recipe().architecture(default.vocab_size)) == default
    for faulty in ("model.hidden_size=0", "model.input_dropout=1", "model.pkm_params.knn=true", "model.pkm=1"):
        with pytest.raises(UsageError, match=f"{faulty.partition('=')[0]}: .*: input should be "):
            loading.build({}, [faulty])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_found_by_name(path, tmp_path, monkeypatch):
    here = loading.load(str(path))
    monkeypatch.chdir(tmp_path)
    assert loading.load(f"recipes/{path.name}") == here


def test_released_sizes_and_batches():
    base, large, xlarge = (loading.load(f"recipes/{name}.yaml") for name in ("base", "large", "xlarge"))
    totals = [count_parameters(ModelConfig.from_dict(r.architecture(30002)))["total"] for r in (base, large, xlarge)]
    assert totals == [81_747_508, 131_334_196, 89_306_036]
    assert (base.training.global_batch_size, large.training.global_batch_size) == (2048, 2048)
    assert base.training.warmup_steps == 8000
    for recipe in (large, xlarge):  # You et al. 2020, table 4, by the square root of the batch
        expected = 5 / 4000 * (recipe.training.global_batch_size / 2048) ** 0.5
        assert recipe.training.optimizer == "lamb" and recipe.training.learning_rate == pytest.approx(
            expected, rel=1e-3
        )


def test_free_settings_do_not_change_a_runs_identity():
    base = Recipe()
    same = loading.build(
        {},
        [
            "cluster.num_workers=4", "training.zero_stage=2", "training.micro_batch_tokens=100", "run.storage_path=/x",
            "training.eval_steps=7", "training.max_steps=5", "tracking.project=p", "corpus.path=/elsewhere",
        ],
    )  # fmt: skip
    assert run_identity(base, {}) == run_identity(same, {})
    assert "corpus.lanes" not in run_identity(base, {})  # runs from before there were lanes are found again


@pytest.mark.parametrize(
    "override",
    ["training.seed=1", "corpus.max_len=64", "training.learning_rate=1e-3", "training.global_batch_size=64",
     "objective.masked_lm.budget=0.2", "model.output_dropout=0.1", "corpus.lanes=8"],
)  # fmt: skip
def test_settings_that_change_results_change_a_runs_identity(override):
    assert run_identity(Recipe(), {}) != run_identity(loading.build({}, [override]), {})


def test_max_steps_is_part_of_the_identity_only_where_the_schedule_depends_on_it():
    def identity(*overrides):
        linear = ["training.schedule=linear", "training.learning_rate=1e-3", "training.warmup_steps=5"]
        return run_identity(loading.build({}, [*linear, *overrides]), {})

    assert identity("training.max_steps=100") != identity("training.max_steps=200")
    assert identity("training.max_steps=100") == identity("training.max_steps=200", "training.schedule_steps=100")


def test_every_original_setting_has_a_fate_that_exists():
    known = set(loading.known_paths(Recipe))
    assert len(ORIGINAL_SETTINGS) > 60
    for key, fate in ORIGINAL_SETTINGS.items():
        assert fate.recipe or fate.flag or fate.config or fate.why, key
        if fate.recipe:
            assert fate.recipe in known, (key, fate.recipe)


def test_no_key_of_the_originals_files_is_forgotten():
    assert set(json.loads((GOLDEN / "original_settings.json").read_text())) <= set(ORIGINAL_SETTINGS)


@pytest.mark.parametrize(
    "typed",
    ["corpus #1", "a: b", "2024", "1e5", "007", "true", "yes", "no", "@x", "*x", "&x", "- x", "[2020] tweets", "{x}",
     "it's", "ñandú", "%20", "a=b", "a,b", "|x", "!x", " with space"],
)  # fmt: skip
def test_an_override_of_a_path_or_name_arrives_as_typed(typed: str):
    assert loading.build({}, [f"corpus.path={typed}"]).corpus.path == typed
    assert loading.build({}, [f'corpus.path="{typed}"']).corpus.path == typed


def test_a_name_may_be_a_number_or_null():
    with pytest.raises(UsageError, match=r"corpus\.path: None"):
        loading.build({}, ["corpus.path=null"])
    assert loading.build({}, ["run.name=2024"]).run.name == "2024"
    assert loading.build({}, ["run.name=null"]).run.name is None
