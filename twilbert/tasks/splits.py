"""How dev is drawn from train, and which texts stand in the data with more than one label."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from twilbert.data.cleaning import TWILBERT as clean
from twilbert.data.cleaning import Cleaning
from twilbert.model.problems import MULTI, REGRESSION
from twilbert.tasks.task import Task

if TYPE_CHECKING:
    from twilbert.tasks.rows import Rows

_SHOWN = 3


def cleaned(task: Task, rows: Rows) -> list[tuple[str, ...]]:
    """Each row's text, or texts, by this program's own rules, whatever the model: a split is the same for all."""
    return cleaned_texts(rows, clean, task.remove_rt)


def cleaned_texts(rows: Rows, clean: Cleaning, remove_rt: bool) -> list[tuple[str, ...]]:
    """Each row's text, or both texts, cleaned."""
    sides = [rows.texts] if rows.texts_b is None else [rows.texts, rows.texts_b]
    return list(zip(*([clean(one, remove_rt) for one in side] for side in sides), strict=True))


def drawn(task: Task, rows: Rows) -> np.ndarray:
    """Which rows of train serve as dev, bool [N].

    Rows of one cleaned text are always on one side, whatever their labels. Of the texts of each label (the most
    frequent of its rows) those with the smallest hash of seed and text: independent of the order of the file, shares
    of the labels kept. A label with two texts or more gives at least one.
    """
    assert task.split is not None and rows.labels is not None
    number: dict[tuple[str, ...], int] = {}
    text_N = np.array([number.setdefault(text, len(number)) for text in cleaned(task, rows)])
    hashes = (hashlib.sha256("\0".join([str(task.split.seed), *text]).encode(errors="replace")) for text in number)
    keys = np.array([int.from_bytes(one.digest()[:8], "big") for one in hashes], dtype=np.uint64)
    sizes = np.bincount(text_N)
    labels = np.zeros(len(sizes), np.int64)
    if task.problem not in (MULTI, REGRESSION):
        counts = np.zeros((len(sizes), len(task.labels)), np.int64)
        np.add.at(counts, (text_N, rows.labels), 1)
        labels = counts.argmax(1)
    is_dev = np.zeros(len(sizes), dtype=bool)
    for label in np.unique(labels):
        texts = np.flatnonzero(labels == label)
        texts = texts[np.argsort(keys[texts])]
        before = np.cumsum(sizes[texts]) - sizes[texts]
        wanted = max(1, round(task.split.dev * int(sizes[texts].sum())))
        is_dev[texts[: min(int((before < wanted).sum()), len(texts) - 1)]] = True  # the last stays in train
    return is_dev[text_N]


def conflicts(task: Task, read: Mapping[str, Rows]) -> str | None:
    """A notice of the texts that, once cleaned, stand in train and dev with more than one label; None: there are none.

    The first are named by line. Scores of a regression may differ.
    """
    if task.problem == REGRESSION:
        return None
    places: dict[tuple[str, ...], list[tuple[int, str, str]]] = {}
    for split, rows in read.items():
        where = "" if task.split is not None else f"{split} "
        for text, line, label in zip(cleaned(task, rows), rows.lines, _labels(task, rows), strict=True):
            places.setdefault(text, []).append((line, f"{where}line {line}", label))
    split_texts = [sorted(rows) if task.split else rows for rows in places.values() if len({r[2] for r in rows}) > 1]
    if not split_texts:
        return None
    split_texts.sort(key=lambda rows: rows[0][0])
    shown = "; ".join(
        ", ".join(f"{place} ({label})" for _, place, label in _contrast(rows)) for rows in split_texts[:_SHOWN]
    )
    what = "1 text has" if len(split_texts) == 1 else f"{len(split_texts):,} texts have"
    more = "; …" if len(split_texts) > _SHOWN else ""
    return f"{what} more than one label, in {sum(map(len, split_texts)):,} rows: {shown}{more}; no model can learn both"


def _contrast(rows: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """The first row, and the first one with another label."""
    return [rows[0], next(row for row in rows if row[2] != rows[0][2])]


def _labels(task: Task, rows: Rows) -> list[str]:
    assert rows.labels is not None
    if task.problem == MULTI:
        return [", ".join(n for n, flag in zip(task.labels, row, strict=True) if flag) or "none" for row in rows.labels]
    return [task.labels[number] for number in rows.labels]
