"""Task files: those that come with the program, a user's own, and every fault told at once with its remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import places
from tests.make_tasks import write_task
from twilbert import sample, storage
from twilbert.errors import UsageError
from twilbert.model.problems import MULTI
from twilbert.tasks import task as tasks
from twilbert.tasks.checks import require
from twilbert.tasks.metrics import METRICS
from twilbert.tasks.rows import read_split
from twilbert.tasks.task import TaskFile, load_task, registered

NAMES = [
    "coset17", "gender17", "haha18", "haha19", "hateeval19", "irosva19_cu", "irosva19_es", "irosva19_mx",
    "multistance18", "semeval18_affect", "stance17", "tass19", "tass20_task1", "tass20_task2",
]  # fmt: skip
SAMPLES = places.SHARED / "data" / "seed_samples" / "downstream_tasks"
REAL = places.SHARED / "data" / "tasks"


def test_the_registered_tasks_are_those_of_the_original():
    assert registered() == NAMES
    for name in NAMES:
        task = load_task(name)
        assert task.metric in METRICS and task.title and task.licence and task.ask.startswith("http"), name
        assert task.files.test is not None and task.delimiter == "\t" and task.quoting == "none" and task.remove_rt
        assert task.root == storage.absolute(f"tasks/{task.folder or name}")
    chosen = {name: load_task(name).metric_labels for name in ("stance17", "haha19", "coset17")}
    assert chosen == {"stance17": (0, 2), "haha19": (1,), "coset17": None}
    affect, stance = load_task("semeval18_affect"), load_task("multistance18", "/data")
    assert affect.problem == MULTI and len(affect.labels) == 11 and affect.metric == "jaccard"
    assert stance.columns.text_b == "NEXT" and stance.path("dev") == "/data/multistance18/dev.csv"


def test_every_field_of_the_schema_says_what_it_is():
    for section in (TaskFile, tasks.Files, tasks.Columns, tasks.Split):
        for key, field in section.model_fields.items():
            assert field.description or key in ("files", "columns"), key


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the original's samples are not here")
def test_registered_layouts_are_those_of_the_originals_samples():
    read = []
    for name in NAMES:
        task = load_task(name, str(SAMPLES))
        for split in ("train", "dev"):
            path = task.path(split)
            if path is not None and Path(path).is_file():
                rows = read_split(task, split)
                data_lines = [line for line in Path(path).read_text().split("\n")[1:] if line]
                assert len(rows) == len(data_lines) and list(rows.columns) == list(task.header or rows.columns)
                assert [line.split("\t")[0] for line in data_lines] == rows.ids
                read.append(name)
    assert set(NAMES) - set(read) == {"irosva19_mx", "irosva19_cu", "tass20_task2"}
    for name in set(NAMES) - set(read):
        assert "assumed" in (load_task(name).unverified or ""), name
    assert all(load_task(name).unverified for name in ("tass20_task1", "irosva19_es"))
    stance = read_split(load_task("multistance18", str(SAMPLES)), "train")
    assert stance.texts_b is not None and "vacío" not in stance.texts_b
    affect = read_split(load_task("semeval18_affect", str(SAMPLES)), "dev")
    assert affect.labels is not None and affect.labels.shape == (19, 11) and affect.labels.dtype == np.float32


@pytest.mark.skipif(not REAL.is_dir(), reason="the real tasks are not here")
@pytest.mark.parametrize(
    ("name", "labels", "rows", "settings"),
    [
        ("profner_7a", ["0", "1"], (5400, 600, 2000), {"class_metric": "1"}),
        ("toxicity_textdetox_es", ["0", "1"], (3500, 750, 750), {"average": "macro"}),
        ("newsaccount25", [f"C{i:02d}" for i in range(25)], (27220, 3024, 3361), {"average": "macro"}),
    ],
)
def test_a_users_own_task_file_covers_real_tasks(tmp_path: Path, name: str, labels, rows, settings):
    files = {split: str(REAL / name / f"{split}.tsv") for split in ("train", "dev", "test")}
    found = require(load_task(write_task(tmp_path, files=files, labels=labels, **settings)))
    assert tuple(found.counts[split]["rows"] for split in ("train", "dev", "test")) == rows
    assert found.test_labelled is True and found.faults == []


def test_all_faults_of_a_task_file_are_told_at_once(tmp_path: Path):
    path = write_task(tmp_path, delimeter=",", labels=["P"], metric="f2", columns={"txt": "TEXT"}, split={"dev": 0.9})
    with pytest.raises(UsageError) as error:
        load_task(path)
    told = str(error.value)
    for part in (
        "mine.yaml: 5 faults",
        "delimeter: unknown key; did you mean delimiter?",
        "metric: 'f2'",
        "columns.txt: unknown key; did you mean columns.text?",
        "split.dev: 0.9",
        "labels: ['P'] leaves nothing to choose",
    ):
        assert part in told, told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"files": {"dev": "d"}}, "files.train: missing"),
        ({"files": {"train": "t"}}, "files.dev: missing; name the file, or draw it from train with split"),
        ({"split": {"dev": 0.1}}, "split: files.dev is given"),
        ({"labels": ["P"]}, "leaves nothing to choose; give at least two"),
        ({"labels": ["P", "N", "P"]}, "['P'] given twice"),
        ({"labels": ["P", True]}, "labels.1: True: labels are compared as text: write it in quotes"),
        ({"metric": "jaccard"}, "jaccard does not fit single_label_classification; use accuracy"),
        ({"metric": "stance_f1"}, "AGAINST, FAVOR not among labels (N, P)"),
        ({"class_metric": "Q"}, "class_metric: Q not among labels"),
        ({"metric": "accuracy", "class_metric": "P"}, "class_metric: accuracy looks at all labels"),
        ({"metric": "accuracy", "average": "macro"}, "average: accuracy has none"),
        ({"class_metric": "P", "average": "micro"}, "micro would ignore it"),
        ({"problem": "regression", "metric": "mae"}, "regression has one score"),
        ({"columns": {"label": ["a", "b"]}}, "several columns need problem: multi_label_classification"),
        ({"problem": "multi_label_classification", "columns": {"label": ["a"]}}, "1 columns for 2 labels"),
        ({"columns": {"text": "A", "text_b": "A"}}, "columns: A serves twice"),
        ({"header": ["ID", "CLASS"]}, "header: TEXT of columns missing"),
        ({"files": {"train": "t", "dev": "d"}, "test_labelled": True}, "there is no files.test"),
        ({"delimiter": "::"}, "delimiter: '::'"),
    ],
)
def test_a_fault_of_a_task_file_names_its_place_and_the_remedy(tmp_path: Path, settings: dict, message: str):
    with pytest.raises(UsageError) as error:
        load_task(write_task(tmp_path, **settings))
    assert "mine.yaml: 1 fault\n" in str(error.value) and message in str(error.value), error.value


def test_names_and_files_that_are_not_tasks(tmp_path: Path):
    with pytest.raises(UsageError, match="stance18: no such task; give a YAML file, or one of the registered: coset17"):
        load_task("stance18")
    (tmp_path / "a.yaml").write_text("- 1\n")
    with pytest.raises(UsageError, match="expected keys such as files"):
        load_task(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("labels: [N, NO\n")
    with pytest.raises(UsageError, match=r"b.yaml, line 2, column 1: not valid YAML"):
        load_task(str(tmp_path / "b.yaml"))
    (tmp_path / "c.yaml").write_bytes(b"title: se\xf1al\n")
    with pytest.raises(UsageError, match=r"c.yaml: not UTF-8"):
        load_task(str(tmp_path / "c.yaml"))
    # YAML 1.2: NO is a label, not a boolean; numbers are labels as they are written.
    (tmp_path / "d.yaml").write_text("files: {train: t, dev: d}\nlabels: [SI, NO, 0]\n")
    assert load_task(str(tmp_path / "d.yaml")).labels == ("SI", "NO", "0")


@pytest.mark.parametrize("name", NAMES)
def test_generated_data_of_every_registered_task_is_sound(tmp_path: Path, name: str):
    sample.sample_task(name, str(tmp_path), rows=200)
    task = load_task(name, str(tmp_path))
    found = require(task)
    assert {split: counts["rows"] for split, counts in found.counts.items()} == {"train": 120, "dev": 40, "test": 40}
    assert found.test_labelled is True
    assert (read_split(task, "train").texts_b is not None) == (name == "multistance18")


def test_the_schema_knows_the_metrics_there_are():
    assert set(TaskFile.model_fields["metric"].annotation.__args__) == set(METRICS)
