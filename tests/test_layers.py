"""Which parts of the repository may import which, where import-linter, which sees the package alone, cannot look."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.places import TOP


def imported_packages(file: Path) -> set[str]:
    """The first part of every module that a file imports by its full name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    ("folder", "forbidden"), [("twilbert", {"tools", "tests"}), ("tools", {"tests"}), ("tests", {"tools"})]
)
def test_package_tools_and_tests_stand_alone(folder: str, forbidden: set[str]):
    files = sorted((TOP / folder).rglob("*.py"))
    assert files
    assert not [str(file.relative_to(TOP)) for file in files if imported_packages(file) & forbidden]
