"""Small files as users, killed processes and strangers leave them: a value of the expected shape, or one message."""

from __future__ import annotations

import os
import random
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pytest

from twilbert.errors import TwilbertError, UsageError
from twilbert.parsing import check_record, dump_yaml, parse_value, parse_yaml, read_record, read_yaml
from twilbert.recipe import loading
from twilbert.recipe.finetuning import load as load_finetuning
from twilbert.recipe.tuning import load as load_sweep
from twilbert.tasks.task import load_task

BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))

# ---- YAML ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "line 2, column 10: not valid YAML: *a0 refers to another value; write the value itself"),
        ("training: &a {b: *a}", "*a refers to another value"),
        ("[" * 200, "line 1, column 33: not valid YAML: nested more than 32 deep"),
        ("{a: " * 10_000, "nested more than 32 deep"),
        ("- " * 10_000 + "x", "nested more than 32 deep"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: not valid YAML: the key a is given twice"),
        ("a: {1: x, '1': y}", "the key 1 is given twice"),
        ("? [a]\n: 1", "a list or mapping as a key"),
        ("a: .inf", "line 1, column 4: not valid YAML: .inf is not a finite number"),
        ("a: -.INF", "not a finite number"),
        ("a: [1, .NaN]", "not a finite number"),
        ("a: 1e999", "not a finite number"),
        ("a: " + "9" * 5000, "a whole number of 5000 digits"),
        ("a: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !!int x", "the tag"),
        ("a: !!binary ''", "the tag"),
        ('a: "\\0"', "a character that no text has"),
        ('a: "\\ud83d"', "a character that no text has"),
        ("a\0b", "unacceptable character"),
        ("--- 1\n--- 2", "another document"),
    ],
)
def test_what_is_no_tree_of_plain_values_is_refused_by_every_reader_of_yaml(tmp_path, text, problem):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    tracemalloc.start()
    for read in (read_yaml, loading.load, load_finetuning, load_sweep, load_task):
        with pytest.raises(UsageError) as caught:
            read(str(path))
        assert problem in str(caught.value) and str(path) in str(caught.value)
        assert str(caught.value).count("\n") == 0
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()


def test_plain_scalars_are_those_of_yaml_1_2_and_keys_are_text():
    text = "[1, -2, +3, 2.5, 1e-4, 1e3, .5, 5., NO, on, ~, true, 007, 1_000, 1:30, 2020-01-01, 0x10, 0o7, =, '1']"
    expected = [1, -2, 3, 2.5, 1e-4, 1000.0, 0.5, 5.0, "NO", "on", None, True, "007", "1_000", "1:30", "2020-01-01"]
    assert parse_yaml(text, "x") == [*expected, "0x10", "0o7", "=", "1"]
    assert parse_yaml("NO: 1\n1e3: 2\n<<: {a: 3}\n~: 4", "x") == {"NO": 1, "1e3": 2, "<<": {"a": 3}, "~": 4}
    assert parse_yaml("", "x") is None


def test_what_is_dumped_reads_back_equal():
    texts = ["1e5", "007", "NO", "~", "", "2020-01-01", "1_0", "5.", "=", "<<", "*a", "&a", "!x", "a: b", "a #b"]
    texts += ["x\ny", "0o17", "+1", ".inf", "-.INF", " a", "\t", "1E+3", "[]", *"ñ😀%@|?'\"{"]
    for value in [*texts, 1, 1.5, 1e-5, 1e22, 5e-324, True, None, 10**17, [], {}, [[]], [{}]]:
        assert parse_yaml(dump_yaml({"a": value, "b": [value]}), "x") == {"a": value, "b": [value]}
    shared = [1]
    assert parse_yaml(dump_yaml([shared, shared]), "x") == [[1], [1]], "written out, not referred to"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("corpus #1", "corpus #1"), ("a: b", "a: b"), ("- 1", "- 1"), ("*a", "*a"), ("it's", "it's"), ("~/x", "~/x"),
        ("", None), ("null", None), (" 3 ", 3), ("1e3", 1000.0), ("NO", "NO"), ("[1, 2]", [1, 2]), ("'1'", "1"),
        ("{choice: [1, two]}", {"choice": [1, "two"]}), ('"a #1"', "a #1"),
    ],
)  # fmt: skip
def test_a_value_on_the_command_line_arrives_whole(text, value):
    assert parse_value(text, "x") == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1, 2] #3", "'#3' follows the value; put quotes around all of it"), ("'a' b", "expected"),
        ("'a", "unexpected end"), ("[a #1]", "line 1"), ("caf\udce9", "not UTF-8 text"), ("[.inf]", "not a finite"),
    ],
)  # fmt: skip
def test_a_value_that_would_not_arrive_whole_is_a_fault(text, problem):
    with pytest.raises(UsageError, match=problem):
        parse_value(text, "x")


# ---- what lies in a file's place -----------------------------------------------------------------------------------


def test_a_file_in_name_alone_is_one_message(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(2**30)  # without a block on the disk
    (tmp_path / "latin").write_bytes(b'{"a": "\xf1"}')
    expected = {
        "folder": "this is a folder", "pipe": "this is a pipe", "loop": "no such file", "zero": "pipe or device",
        "large": "larger than 67,108,864 bytes", "latin": "invalid unicode", "nothing": "no such file",
    }  # fmt: skip
    for name, problem in expected.items():
        with pytest.raises(TwilbertError, match=problem) as caught:
            read_record(str(tmp_path / name), dict)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    for name in expected:
        with pytest.raises(UsageError, match=name):
            read_yaml(str(tmp_path / name))


# ---- records -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    step: int
    best: dict[str, float] | None = None


@pytest.mark.parametrize(
    "text",
    ["", "\0\0\0", "{", "[]", "3", "null", '"x"', "{}", '{"step": []}', '{"step": "3"}', '{"step": 1.0}', "[" * 10_000,
     '{"step": true}', '{"step": 1, "best": []}', '{"step": 1, "best": {"a": "b"}}', '{"step": ' + "9" * 5000 + "}"],
)  # fmt: skip
def test_a_record_of_another_shape_is_one_message(text):
    with pytest.raises(TwilbertError, match=r"here.json: .*damaged, or of another program: restore it or make it anew"):
        check_record(text, Step, "here.json")


def test_a_record_keeps_what_it_holds(tmp_path):
    assert check_record('{"step": 3, "later": 1, "best": {"a": 2, "b": NaN}}', Step, "x").step == 3
    assert check_record("[1, 2]", list[int], "x") == [1, 2]


# ---- a recipe's values ---------------------------------------------------------------------------------------------


def faults(values: object, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        loading.build(values, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    "override",
    ["training.learning_rate=true", "training.learning_rate='1'", "training.max_steps=1.5", "training.max_steps='9'",
     "training.max_steps=true", "cluster.use_gpu=yes", "cluster.use_gpu=1", "training.zero_stage=true",
     "training.zero_stage=1.5", "cluster.num_workers=[1, true]", "model.pkm_params.in_layers=[a]",
     "training.seed=-1", "model.n_encoders=1000000000", "model.n_heads=1000000000", "model.hidden_size=1000000000",
     "model.max_len=1000000000", "model.pkm_params.memory_size=1000000000", "objective.rop.n_hidden=1000000000",
     "corpus.lanes=1000000000", "cluster.num_workers=[1, 1000000000000]", "training.hang_timeout=1e300",
     "training.max_steps.x=3", "training.micro_batch_tokens=1e18", "training.global_batch_size=1e9"],
)  # fmt: skip
def test_a_value_of_another_type_or_beyond_all_sizes_is_a_fault_that_names_its_key(override):
    assert f"\n  {override.partition('=')[0].removesuffix('.x')}" in faults({}, override)


def test_numbers_that_are_not_finite_are_faults_from_python_too():
    for value in (float("inf"), float("nan")):
        assert "training.learning_rate" in faults({"training": {"learning_rate": value}})


def test_whole_numbers_may_be_written_with_an_exponent():
    recipe = loading.build({}, ["training.max_steps=1e5", "model.n_encoders=3.0", "training.learning_rate=1"])
    assert (recipe.training.max_steps, recipe.model.n_encoders) == (100_000, 3)
    assert type(recipe.training.max_steps) is int and type(recipe.training.learning_rate) is float


@pytest.mark.parametrize("text", ["${oc.env:PLANTED}", "a-${oc.env:PLANTED}", "${training.seed}", "${oc.decode:x}"])
def test_nothing_is_filled_in_from_anywhere(tmp_path, monkeypatch, text):
    monkeypatch.setenv("PLANTED", "planted-secret")
    written = tmp_path / "mine.yaml"
    written.write_text(dump_yaml({"tracking": {"project": text}}))
    keys = {"training": {text: 1}}
    for attempt in (
        lambda: loading.load(str(written)),
        lambda: loading.load("tiny.yaml", [f"tracking.project={text}"]),
        lambda: loading.load("tiny.yaml", [f"model.pkm_params.in_layers=[0, '{text}']"]),
        lambda: load_finetuning(str(written)),
        lambda: load_sweep("tune.yaml", [f"head={{own: {{choice: ['{text}']}}}}"]),
        lambda: loading.build(keys),
    ):
        with pytest.raises(UsageError, match=r"holds a \$\{…\}, and nothing is filled in here") as caught:
            attempt()
        assert "planted-secret" not in str(caught.value)


def test_a_task_file_is_taken_literally(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED", "planted-secret")
    written = {"files": {"train": "t", "dev": "d"}, "labels": ["${oc.env:PLANTED}", "b"]}
    (tmp_path / "mine.yaml").write_text(dump_yaml(written))
    assert load_task(str(tmp_path / "mine.yaml")).labels[0] == "${oc.env:PLANTED}"


def test_a_recipe_with_a_few_bytes_changed_is_a_recipe_or_one_message(tmp_path):
    drawn = random.Random(15)
    shipped = Path(loading.locate("tiny.yaml")).read_bytes()
    pieces = [*b"&a |*a|[|{|!!set |.inf|\0|\xff|- |: |${x}|\n|'".split(b"|"), b"9" * 30]
    refused = 0
    for _ in range(150):
        content = bytearray(shipped)
        for _ in range(drawn.randint(1, 3)):
            at = drawn.randrange(len(content))
            content[at : at + drawn.randint(0, 3)] = drawn.choice(pieces)
        (tmp_path / "mine.yaml").write_bytes(content)
        try:
            loading.load(str(tmp_path / "mine.yaml"))
        except UsageError as error:
            refused += 1
            assert str(tmp_path / "mine.yaml") in str(error)
    assert refused > 20
