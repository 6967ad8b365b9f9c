"""twilbert-sample: generate data to try things with.

`sample pairs` writes raw conversations whose entropies are known exactly, `sample task` a version of any registered
task in the layout of its task file.

DIR/pairs.tsv     ORIG_ID, ORIG_TEXT, REPLY_ID, REPLY_TEXT: raw tweets
DIR/sample.json   the least loss of a model in nats per word, and the lines that `prepare` should drop

DIR/FOLDER/…      the files of the task file; DIR is the data_dir of finetune and tune
DIR/FOLDER/sample.json   rows, seed, and the accuracy of a perfect model
"""

from __future__ import annotations

import argparse
import inspect
import posixpath
import time
from dataclasses import asdict
from typing import Any

from twilbert import cli, outputs, storage
from twilbert.data.synthetic.language import Figures, figures
from twilbert.data.synthetic.pairs import BATCH_LINES, HEADER, draw_lines
from twilbert.data.synthetic.tasks import LabelledTexts, draw_labelled
from twilbert.errors import UsageError
from twilbert.model.problems import MULTI, REGRESSION
from twilbert.tasks.task import DATA_DIR, Task, load_task, registered

FORMAT = 1
_INFO, _PAIRS = "sample.json", "pairs.tsv"


def sample_pairs(out: str, pairs: int = 60_000, seed: int = 0, *, overwrite: bool = False) -> dict[str, Any]:
    """Write `pairs` lines of raw (tweet, reply) pairs to OUT/pairs.tsv; return the contents of OUT/sample.json.

    The same seed gives the same lines, and fewer of them are the first of more. About 1.5 in 100 should be dropped by
    `prepare`: repeats, too short ones, mentions and links alone; sample.json counts them by its reasons. Memory does
    not grow with `pairs`. UsageError for fewer than one pair or a negative seed.
    """
    if pairs < 1 or seed < 0:
        raise UsageError(f"--pairs {pairs} --seed {seed}: expected at least one pair and a seed from 0")
    target = storage.absolute(out)
    dropped = dict.fromkeys(("repeated", "too_short", "only_mentions_and_links"), 0)
    with outputs.new_folder(target, "sample", overwrite=overwrite, before=(_INFO, _PAIRS)) as work:
        system, inner = storage.filesystem(storage.join(work, _PAIRS))
        last = time.monotonic()
        with storage.explained_write(target), system.open_output_stream(inner) as sink:
            sink.write(HEADER)
            for number, start in enumerate(range(0, pairs, BATCH_LINES)):
                batch = draw_lines(seed, number, min(BATCH_LINES, pairs - start))
                sink.write(batch.data)
                for reason in dropped:
                    dropped[reason] += getattr(batch, reason)
                if time.monotonic() - last > 5:
                    last = time.monotonic()
                    cli.say(f"drawn {start + batch.lines:,} of {pairs:,} pairs")
        info = {
            "format": FORMAT,
            "pairs": pairs,
            "seed": seed,
            "to_drop": dropped,
            "nats_per_word": asdict(figures()),
            "meaning": inspect.cleandoc(Figures.__doc__ or ""),
        }
        storage.write_json_atomic(storage.join(work, _INFO), info)
    return info


def sample_task(name: str, out: str, rows: int = 1_500, seed: int = 0, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a generated version of a registered task under OUT, as its task file says; return its sample.json.

    Of `rows`, three fifths are train, one fifth dev and the rest test. The same seed gives the same files. UsageError
    for a name that is not registered, fewer than ten rows for each label, or a negative seed.
    """
    if name not in registered():
        raise UsageError(f"{name}: no such task; registered are {', '.join(registered())}")
    task = load_task(name, out)
    if rows < 10 * len(task.labels) or seed < 0:
        least = 10 * len(task.labels)
        raise UsageError(f"--rows {rows} --seed {seed}: {name} needs at least {least} rows and a seed from 0")
    if task.problem == REGRESSION:
        raise UsageError(f"{name}: no data is generated for tasks whose answer is a number; choose another task")
    drawn = draw_labelled(
        name, len(task.labels), rows, seed, multi=task.problem == MULTI, two_texts=task.columns.text_b is not None
    )
    lines = _lines(task, drawn)
    ends = {"train": 3 * rows // 5, "dev": 4 * rows // 5, "test": rows}
    named = {split: path for split, path in task.files.model_dump().items() if path is not None}
    inside = posixpath.commonpath([posixpath.dirname(path) for path in named.values()])
    target = storage.join(task.root, inside) if inside else task.root
    counts = {}
    files = {split: posixpath.relpath(path, inside or ".") for split, path in named.items()}
    with outputs.new_folder(target, "sample", overwrite=overwrite, before=(_INFO, *files.values())) as work:
        start = 0
        for split, file in files.items():
            part = [(task.delimiter or "\t").join(_header(task)), *lines[start : ends[split]]]
            text = "\n".join(part) + "\n"
            storage.write_bytes_atomic(storage.join(work, file), text.encode())
            counts[split], start = ends[split] - start, ends[split]
        info = {"format": FORMAT, "task": name, "rows": counts, "seed": seed, "best_accuracy": round(drawn.best, 4)}
        storage.write_json_atomic(storage.join(work, _INFO), info)
    return {"folder": target, **info}


def _header(task: Task) -> list[str]:
    columns = task.columns
    labels = [columns.label] if isinstance(columns.label, str) else columns.label
    return list(task.header or [c for c in (columns.id, columns.text, columns.text_b, *labels) if c is not None])


def _lines(task: Task, drawn: LabelledTexts) -> list[str]:
    """One line a row, in the task's layout; columns without a setting contain the first text."""
    columns = task.columns
    lines = []
    for row, text in enumerate(drawn.texts):
        cells = {columns.id: str(1_128_000_000_000_000_000 + 1_000 * row), columns.text: text}
        if columns.text_b is not None and drawn.texts_b is not None:
            cells[columns.text_b] = drawn.texts_b[row] or task.missing_text or ""
        cells |= _label_cells(task, drawn.labels[row])
        lines.append((task.delimiter or "\t").join(cells.get(name, text) for name in _header(task)))
    return lines


def _label_cells(task: Task, label: Any) -> dict[str, str]:
    """Column → cell of one row's label: a number, or flags."""
    column = task.columns.label
    if task.problem != MULTI:
        assert isinstance(column, str)
        return {column: task.labels[int(label)]}
    if not isinstance(column, str):
        return {name: str(int(flag)) for name, flag in zip(column, label, strict=True)}
    if task.label_format == "flags":
        return {column: task.label_separator.join(str(int(flag)) for flag in label)}
    return {column: task.label_separator.join(n for n, flag in zip(task.labels, label, strict=True) if flag)}


def _sample_tasks(args: argparse.Namespace) -> str:
    names = registered() if args.names == ["all"] else list(dict.fromkeys(args.names))
    if not names:
        raise UsageError(f"task: which? give names, or all: {', '.join(registered())}")
    wrong = [name for name in names if name not in registered()]
    if wrong:
        raise UsageError(f"{', '.join(wrong)}: no such task; registered are {', '.join(registered())}")
    infos = [sample_task(name, args.out, args.rows, args.seed, overwrite=args.overwrite) for name in names]
    cli.table(
        ["task", "train", "dev", "test", "best accuracy"],
        [[i["task"], *(i["rows"].get(s, 0) for s in ("train", "dev", "test")), i["best_accuracy"]] for i in infos],
    )
    out = storage.absolute(args.out)
    where = "where finetune and tune look" if out == storage.absolute(DATA_DIR) else f"read with data_dir={out}"
    what, folder = (names[0], infos[0]["folder"]) if len(names) == 1 else (f"{len(names)} tasks", out)
    return f"wrote generated {what} to {folder}, seed {args.seed}; {where}"


def _sample_pairs(args: argparse.Namespace) -> str:
    if args.names:
        raise UsageError(f"pairs takes no names, got {', '.join(args.names)}")
    info = sample_pairs(args.out, args.pairs, args.seed, overwrite=args.overwrite)
    nats = info["nats_per_word"]
    cli.table(
        ["nats per word", "entropy"],
        [
            ["without context (unigram)", f"{nats['unigram']:.3f}"],
            ["one span of 1-3 words hidden, the rest known", f"{nats['span']:.3f}"],
            ["one word hidden, the rest known (perfect)", f"{nats['perfect']:.3f}"],
        ],
    )
    return (
        f"wrote {storage.join(storage.absolute(args.out), _PAIRS)}: {info['pairs']:,} pairs, seed {info['seed']}; "
        f"best reply order accuracy {nats['best_rop_accuracy']:.3f}; figures in sample.json beside it"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command `twilbert-sample`; return its exit code."""
    parser = cli.parser(
        "sample",
        "Generate data to try things with. `pairs`: raw Spanish-looking conversations from which hidden words and the\n"
        "order of the reply can be learned, with the loss of a perfect model. `task NAME…` or `task all`: labelled\n"
        "texts in the layout of registered tasks.",
        "twilbert-sample pairs --out sample --pairs 60000\n  twilbert-sample task stance17 --out tasks",
    )
    parser.add_argument("what", choices=["pairs", "task"], help="what to generate")
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered tasks, or all")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder or URI to write (tasks: the data directory)"
    )
    parser.add_argument("--pairs", type=int, default=60_000, help="lines of pairs (60000)")
    parser.add_argument("--rows", type=int, default=1_500, help="rows of a task, over train, dev and test (1500)")
    parser.add_argument("--seed", type=int, default=0, help="which texts are drawn (0)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at DIR")
    return cli.run(parser, lambda args: (_sample_tasks if args.what == "task" else _sample_pairs)(args), argv)


if __name__ == "__main__":
    from twilbert.sample import main as _main

    raise SystemExit(_main())
