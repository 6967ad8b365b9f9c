"""The classical yardstick on a task: TF-IDF of words and characters with a linear SVM, scored as tune scores a model.

    python tools/compare_tfidf.py --task my.yaml [--task haha19 …] [--data-dir tasks] [--json OUT.json]

Words (1-2) and characters within words (2-5), sublinear counts, `LinearSVC`; its C is chosen on dev out of five, test
is scored once: with all rows, and without those whose text, cleaned, stands in train. One-text, one-label tasks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_union
from sklearn.svm import LinearSVC

from twilbert import cli, metrics
from twilbert.data.text import clean
from twilbert.errors import UsageError
from twilbert.task_check import require
from twilbert.task_rows import Rows, read_split, read_test
from twilbert.tasks import SINGLE, Task, load_task

_COSTS = (0.1, 0.3, 1.0, 3.0, 10.0)


def _cleaned(task: Task, rows: Rows) -> list[str]:
    return [clean(text, task.remove_rt) for text in rows.texts]


def _score(task: Task, truths: np.ndarray | None, said: np.ndarray) -> float:
    assert truths is not None
    return metrics.score(truths, said, task.metric, average=task.averaging, labels=task.metric_labels)


def yardstick(task: Task) -> dict[str, Any]:
    """Dev score of the best C, and test scores; UsageError for a task of another kind."""
    if task.problem != SINGLE or task.columns.text_b is not None:
        raise UsageError(f"{task.name}: has two texts, or several labels, a row; this yardstick takes one of each")
    require(task)
    train, dev, test = read_split(task, "train"), read_split(task, "dev"), read_test(task)
    texts = _cleaned(task, train)
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    train_NF, dev_NF = features.fit_transform(texts), features.transform(_cleaned(task, dev))
    tried = {}
    for cost in _COSTS:
        model = LinearSVC(C=cost).fit(train_NF, train.labels)
        tried[_score(task, dev.labels, np.asarray(model.predict(dev_NF)))] = (cost, model)
    best = max(tried)
    cost, model = tried[best]
    found = {"task": task.name, "metric": task.metric, "C": cost, "dev": best}
    if test is None or test.labels is None:
        return found
    test_texts = _cleaned(task, test)
    said, seen = np.asarray(model.predict(features.transform(test_texts))), set(texts)
    unseen = np.array([text not in seen for text in test_texts])
    return found | {
        "test": _score(task, test.labels, said),
        "rows_also_in_train": int((~unseen).sum()),
        "test_without_rows_in_train": _score(task, test.labels[unseen], said[unseen]),
    }


def main() -> None:
    """Parse, score, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", required=True, help="a registered task or a task file")
    parser.add_argument("--data-dir", help="where the folders of registered tasks lie")
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args()
    found = [yardstick(load_task(name, args.data_dir)) for name in args.task]
    names = ["task", "metric", "C", "dev", "test", "rows_also_in_train", "test_without_rows_in_train"]
    told = [[one.get(name, "–") for name in names] for one in found]
    cli.table(names, [[f"{x:.4f}" if isinstance(x, float) and x <= 1 else str(x) for x in row] for row in told])
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
        print(f"written: {args.json}")


if __name__ == "__main__":
    main()
