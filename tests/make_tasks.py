"""Task files and data for the tests of tasks."""

from __future__ import annotations

from pathlib import Path

import yaml

TWO_LABELS = {"files": {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}, "labels": ["N", "P"]}
FOUR_ROWS = [("1", "qué bien", "P"), ("2", "qué mal", "N"), ("3", "genial", "P"), ("4", "fatal", "N")]


def write_rows(folder: Path, name: str, rows: list, header: str = "ID\tTEXT\tCLASS", end: str = "\n") -> None:
    """A tab-separated file of `rows` under `header`."""
    lines = [header, *("\t".join(row) for row in rows)]
    (folder / name).write_bytes((end.join(lines) + end).encode())


def write_task(folder: Path, **settings) -> str:
    """The path of a task file with two labels, and `settings` in place of its own."""
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(TWO_LABELS | settings, allow_unicode=True))
    return str(path)
