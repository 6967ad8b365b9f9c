"""Task files: where a labelled data set lies, how it reads, and by which metric it is judged.

A task is one YAML file: a registered one (recipes/tasks/*.yaml, named by its file) or a user's own. Nothing here opens
the data: `task_rows` reads it, `task_check` says whether it is sound.

The data of a registered task is looked for in DATA_DIR/FOLDER, where DATA_DIR is `tasks` under the working directory
unless given; that of a user's own task beside its YAML file. `twilbert-sample task NAME --out tasks` puts generated
data there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from twilbert import storage
from twilbert.errors import UsageError
from twilbert.model.problems import MULTI, REGRESSION, SINGLE, Problem
from twilbert.parsing import read_yaml
from twilbert.recipe.loading import explain, salvage, shipped_recipes
from twilbert.recipe.pretraining import Index, Section

DATA_DIR = "tasks"
_CLASS_METRICS = ("precision", "recall", "f1", "stance_f1")  # what class_metric can narrow
_OF_PROBLEM = {
    SINGLE: ("accuracy", "precision", "recall", "f1", "stance_f1", "pearson", "spearman", "mae"),
    MULTI: ("accuracy", "precision", "recall", "f1", "jaccard"),
    REGRESSION: ("pearson", "spearman", "mae"),
}


def _as_text(value: Any) -> Any:
    """Labels are compared as they stand in the file, so 0 in YAML is the label "0"."""
    if isinstance(value, bool | float) or value is None:
        example = "null" if value is None else str(value)
        raise ValueError(
            f'labels are compared as text: write it in quotes, as it stands in the files, e.g. "{example}"'
        )
    return str(value) if isinstance(value, int) else value


def _no_position(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError(
            "columns go by the names in the header, not by position; where a file has no header, put one above it"
        )
    return value


_NAMED_DELIMITERS = {
    "\\t": "\\t", "tab": "\\t", "comma": ",", "semicolon": ";", "pipe": "|", "bar": "|", "space": " ",
}  # fmt: skip


def _one_character(value: Any) -> Any:
    if isinstance(value, str) and (mark := _NAMED_DELIMITERS.get(value.lower())):
        raise ValueError(f'write delimiter: "{mark}", in double quotes, or leave it out: it is looked for')
    return value


Label = Annotated[str, BeforeValidator(_as_text), Field(min_length=1)]
Column = Annotated[str, BeforeValidator(_no_position)]


class Files(Section):
    train: str
    """Training file, relative to the task's folder: TSV, CSV, JSON lines, Parquet, Excel (.xlsx), TASS
    XML, or TweetEval's train_text.txt with its labels and mapping.txt beside it."""
    dev: str | None = None
    """Development file; null = drawn from train, see split."""
    test: str | None = None
    """Test file, with or without labels; null = none."""


class Columns(Section):
    id: Column | None = "ID"
    """Column of row identifiers; null = rows are numbered from 1."""
    text: Column = "TEXT"
    """Column of the text, or of the first of two."""
    text_b: Column | None = None
    """Column of the second text; null = one text."""
    label: Column | tuple[Column, ...] = "CLASS"
    """Column of the label; a list = one column of 0 and 1 for each label, in their order (multi-label)."""


class Split(Section):
    dev: float = Field(gt=0, lt=0.5)
    """Share of train that serves as dev, drawn by a hash of the cleaned text, the labels' shares kept; texts that are
    equal once cleaned stay together, whatever their labels."""
    seed: Index = 0
    """Which rows are drawn."""


class TaskFile(Section):
    """A task file."""

    title: str = ""
    """One line that says what is classified."""
    folder: str | None = None
    """Folder of the data inside the data directory; null = the task's name. For registered tasks only."""
    files: Files
    delimiter: Annotated[str, BeforeValidator(_one_character), Field(min_length=1, max_length=1)] | None = None
    """One character between columns; null = a tab, or what the file's header shows."""
    quoting: Literal["none", "csv"] | None = None
    """none: quotes are text, as in the original's files; csv: RFC 4180, cells may be quoted and hold line ends; null =
    csv where delimiter is null and the header shows another separator than tabs, else none."""
    columns: Columns = Columns()
    header: tuple[str, ...] | None = None
    """All columns in the files' order, where there are more than those named; what is generated has them too."""
    missing_text: str | None = None
    """What stands in a text column where there is no text (read as empty)."""
    problem: Problem = SINGLE
    """What a model predicts: one of the labels, any of the labels, or a number."""
    labels: tuple[Label, ...] = Field(min_length=1)
    """All labels, as in the files; their order numbers them from 0. For regression the score's name."""
    label_format: Literal["flags", "names"] = "flags"
    """Multi-label in one column: flags = a 0 or 1 for each label in their order; names = those that hold."""
    label_separator: str = Field(default="|", min_length=1, max_length=1)
    """One character between flags or names."""
    test_labelled: bool | None = None
    """Whether test has labels; null = it has when it has the label column."""
    metric: Literal["accuracy", "precision", "recall", "f1", "stance_f1", "jaccard", "pearson", "spearman", "mae"] = (
        "f1"
    )
    """What is maximised (mae: minimised) on dev and reported on test; see twilbert.tasks.metrics."""
    average: Literal["macro", "micro", "weighted"] | None = None
    """Averaging of precision, recall and f1 over labels; null = macro, unless class_metric is given."""
    class_metric: Label | tuple[Label, ...] | None = None
    """Label, or labels whose mean is taken, that precision, recall or f1 looks at; null = all.

    stance_f1: the two labels it means; null = AGAINST and FAVOR."""
    remove_rt: bool = True
    """Remove RT as a word when texts are cleaned for the model (twilbert.data.cleaning.clean)."""
    split: Split | None = None
    """How dev is drawn from train when there is no dev file."""
    licence: str = ""
    """Licence or terms of the data."""
    ask: str = ""
    """Where to ask for the data."""
    unverified: str | None = None
    """What of this file could not be checked against real data; null = all of it was."""


class Task(TaskFile):
    """A checked task and where its data lies."""

    name: str
    """Name of the task: the file's."""
    root: str
    """Folder or URI that holds its files, absolute."""

    def path(self, split: Literal["train", "dev", "test"]) -> str | None:
        """Absolute path of a split's file; None where the task has no such file."""
        named = getattr(self.files, split)
        if named is None or storage.is_uri(named) or Path(named).expanduser().is_absolute():
            return named and storage.absolute(named)
        return storage.join(self.root, named)

    @property
    def metric_labels(self) -> tuple[int, ...] | None:
        """Numbers of the labels that the metric looks at; None = all."""
        named = (self.class_metric,) if isinstance(self.class_metric, str) else self.class_metric
        if named is None and self.metric == "stance_f1":
            named = ("AGAINST", "FAVOR")
        return None if named is None else tuple(self.labels.index(label) for label in named)

    @property
    def averaging(self) -> str | None:
        """How precision, recall and f1 are averaged; None for other metrics."""
        return self.average or "macro" if self.metric in ("precision", "recall", "f1") else None

    def needed_columns(self, split: Literal["train", "dev", "test"]) -> list[str]:
        """Columns that a split's file must have."""
        columns = self.columns
        needed = [name for name in (columns.id, columns.text, columns.text_b) if name is not None]
        if split != "test" or self.test_labelled:
            needed += [columns.label] if isinstance(columns.label, str) else columns.label
        return needed


def registered() -> list[str]:
    """Names of the tasks that come with the program, sorted."""
    return sorted(item.stem for item in (shipped_recipes() / "tasks").glob("*.yaml"))


def load_task(name: str, data_dir: str | None = None) -> Task:
    """The task of a registered name or a YAML file's path; UsageError that lists every fault of the file.

    `data_dir` holds the folders of registered tasks (null = `tasks` under the working directory), or replaces the
    folder of a user's YAML file as the one its relative paths start from.
    """
    names = registered()
    if name in names:
        path = str(shipped_recipes() / "tasks" / f"{name}.yaml")
        task_file = read_task_file(path)
        return _placed(task_file, name, storage.join(data_dir or DATA_DIR, task_file.folder or name))
    if not storage.exists(name):
        raise UsageError(f"{name}: no such task; give a YAML file, or one of the registered: {', '.join(names)}")
    path = storage.absolute(name)
    return _placed(read_task_file(path, where=name), Path(path).stem, data_dir or path.rpartition("/")[0])


def _placed(task_file: TaskFile, name: str, root: str) -> Task:
    return Task(
        **{key: getattr(task_file, key) for key in TaskFile.model_fields}, name=name, root=storage.absolute(root)
    )


def read_task_file(path: str, where: str | None = None) -> TaskFile:
    """The checked contents of a task file; UsageError that lists every fault."""
    where = where or path
    values = read_yaml(path, where)
    if not isinstance(values, dict):
        raise UsageError(f"{where}: expected keys such as files, columns, labels and metric, found {values!r:.60}")
    try:
        task_file = TaskFile.model_validate(values)
        faults = _cross_faults(task_file)
    except ValidationError as error:
        faults, task_file = _explained(error), salvage(values, error, TaskFile)
        if task_file is not None:  # a field at its default is told of no second time
            faulty = {str(fault["loc"][0]) for fault in error.errors()}
            faults += [
                fault for fault in _cross_faults(task_file) if fault.replace(":", ".").partition(".")[0] not in faulty
            ]
    if faults or task_file is None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise UsageError(f"{where}: {count}\n" + "\n".join(f"  {fault}" for fault in faults))
    return task_file


def _explained(error: ValidationError) -> list[str]:
    """Each fault once: pydantic tells those of `a | b` for each side."""
    found: dict[str, str] = {}
    for fault in error.errors():
        if fault["type"] == "too_short" and any(fault["loc"] == other["loc"][:-1] for other in error.errors()):
            continue  # of a list of faulty values
        key = ".".join(str(part) for part in fault["loc"][:2] if part != "constrained-str")
        found.setdefault(key, explain(fault, TaskFile))
    return list(found.values())


def _cross_faults(task: TaskFile) -> list[str]:
    """Faults that take more than one field to see."""
    faults = []
    labels = list(task.labels)
    if len(set(labels)) < len(labels):
        faults.append(f"labels: {sorted({x for x in labels if labels.count(x) > 1})} given twice; name each label once")
    if task.problem == SINGLE and len(labels) < 2:
        faults.append(f"labels: {labels} leaves nothing to choose; give at least two, or problem: {REGRESSION}")
    if task.problem == REGRESSION and len(labels) != 1:
        faults.append(f"labels: regression has one score, so one name, e.g. [score]; found {len(labels)}")
    faults += _column_faults(task) + _metric_faults(task)
    if task.files.dev is None and task.split is None:
        faults.append("files.dev: missing; name the file, or draw it from train with split: {dev: 0.1}")
    if task.files.dev is not None and task.split is not None:
        faults.append("split: files.dev is given, so nothing is drawn from train; remove one of the two")
    if task.test_labelled is not None and task.files.test is None:
        faults.append("test_labelled: there is no files.test; name the file, or remove test_labelled")
    return faults


def _column_faults(task: TaskFile) -> list[str]:
    columns, faults = task.columns, []
    if not isinstance(columns.label, str):
        if task.problem != MULTI:
            faults.append(f"columns.label: several columns need problem: {MULTI}; this is {task.problem}")
        elif len(columns.label) != len(task.labels):
            faults.append(
                f"columns.label: {len(columns.label)} columns for {len(task.labels)} labels; give one for each"
            )
    named = [columns.id, columns.text, columns.text_b]
    named += [columns.label] if isinstance(columns.label, str) else columns.label
    twice = sorted({name for name in named if name is not None and named.count(name) > 1})
    if twice:
        faults.append(f"columns: {', '.join(twice)} serves twice; give each its own column")
    absent = [name for name in named if name is not None and name not in (task.header or named)]
    if absent:
        faults.append(f"header: {', '.join(absent)} of columns missing; name every column, or remove header")
    return faults


def _metric_faults(task: TaskFile) -> list[str]:
    faults = []
    if task.metric not in _OF_PROBLEM[task.problem]:
        faults.append(f"metric: {task.metric} does not fit {task.problem}; use {', '.join(_OF_PROBLEM[task.problem])}")
    if task.average is not None and task.metric not in ("precision", "recall", "f1"):
        faults.append(f"average: {task.metric} has none; remove it, or use metric: f1")
    chosen = (task.class_metric,) if isinstance(task.class_metric, str) else task.class_metric
    if chosen is None and task.metric == "stance_f1":
        chosen = ("AGAINST", "FAVOR")
    elif chosen is not None and task.metric not in _CLASS_METRICS:
        faults.append(f"class_metric: {task.metric} looks at all labels; remove it, or use {', '.join(_CLASS_METRICS)}")
    unknown = [label for label in chosen or () if label not in task.labels]
    if unknown:
        faults.append(
            f"class_metric: {', '.join(unknown)} not among labels ({', '.join(task.labels)}); name some of them"
        )
    if task.class_metric is not None and task.average not in (None, "macro"):
        faults.append(f"average: class_metric already chooses labels, {task.average} would ignore it; remove one")
    return faults
