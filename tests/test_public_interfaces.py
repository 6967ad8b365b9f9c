"""Only public names of Ray, transformers, W&B and DeepSpeed are used, but for the exceptions listed here."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import TOP

LIBRARIES = {"ray", "transformers", "wandb", "deepspeed"}
DEEPSPEED_FILE = "twilbert/pretraining/shards.py"
"""Where DeepSpeed keeps its shards is said by no public interface; each name is looked for at start."""

EXCEPTIONS = {
    ("twilbert/cluster/ray_session.py", "ray._private.state.state"): (
        "Which nodes are about to be taken away: a run saves a checkpoint before they go. The public "
        "ray.train.get_preemption_info waits for all workers at every call."
    ),
    ("tests/test_cluster_runs.py", "ray.autoscaler._private.util.prepare_config"): (
        "What `ray up` leaves on a head node, without ssh to run it."
    ),
}


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def private_names(file: Path) -> Iterator[str]:
    """Dotted private names of the libraries that a file imports or reads from what it imported."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    ours = {local: name for local, name in imported.items() if name.partition(".")[0] in LIBRARIES}
    yield from (name for name in ours.values() if is_private(name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = node.value
            while isinstance(owner, ast.Attribute | ast.Call | ast.Subscript):
                owner = owner.func if isinstance(owner, ast.Call) else owner.value
            if isinstance(owner, ast.Name) and owner.id in ours:
                yield f"{ours[owner.id]}: {ast.unparse(node)}"
        elif isinstance(node, ast.keyword) and node.arg == "_system_config":
            yield "ray._system_config"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if "\n" not in text and text.partition(".")[0] in LIBRARIES and " " not in text and is_private(text):
                yield text  # a module or logger named by a string


def test_no_private_name_of_a_library_is_used():
    me = "tests/test_public_interfaces.py"
    uses = {
        (str(file.relative_to(TOP)), name)
        for folder in ("twilbert", "tools", "tests")
        for file in sorted((TOP / folder).rglob("*.py"))
        for name in private_names(file)
    }
    uses = {(file, name) for file, name in uses if file not in (DEEPSPEED_FILE, me)}
    assert uses == set(EXCEPTIONS)
    assert len(EXCEPTIONS) <= 3


@pytest.mark.parametrize("name", sorted(name for _, name in EXCEPTIONS))
def test_the_exceptions_are_still_there(name: str):
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute), "Ray has renamed it: look again for a public way"


@pytest.mark.parametrize(
    "line",
    [
        "from ray._private import state", "import ray\nray._private.state", "import wandb as w\nw.run()._settings",
        "from ray import data\ndata.range(3)._plan", "import ray\nray.init(_system_config={})",
        "import logging\nlogging.getLogger('ray.data._internal.progress')",
    ],
)  # fmt: skip
def test_the_search_finds(line: str, tmp_path: Path):
    (tmp_path / "x.py").write_text(line)
    assert list(private_names(tmp_path / "x.py"))
