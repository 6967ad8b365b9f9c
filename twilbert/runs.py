"""List the runs of pre-training, or compare some: scores, recipe differences, curves on one page."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from twilbert import cli, outputs, storage
from twilbert.errors import UsageError
from twilbert.tracking import history, page
from twilbert.tracking.history import Pretraining

_HEADERS = ("run", "recipe", "state", "step", "of", "loss", "held out", "best (step)", "last written")


def _row(run: Pretraining) -> list[object]:
    best = f"{_short(run.at('valid/loss', run.best_step))} ({run.best_step})" if run.best_step else "–"
    losses = _short(run.last("train/loss")), _short(run.last("valid/loss"))
    return [run.name, run.hash, run.state, run.step, run.max_steps, *losses, best, page.written_at(run)]


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _read(names: Sequence[str], runs: str) -> list[Pretraining]:
    """Read the runs of those names or folders; UsageError for one that is no run, or for too many."""
    if len(names) > page.MOST_RUNS:
        raise UsageError(f"{len(names)} runs; a page can show {page.MOST_RUNS} at once: name fewer")
    known = [history.find(name, runs) for name in names]
    if len({run.path for run in known}) < len(known):
        raise UsageError("a run is named twice; name each once")
    return known


def _list(folder: str) -> str:
    if not storage.is_folder(folder):
        raise UsageError(f"{storage.absolute(folder)}: no such folder; name the storage of your runs, or a run")
    runs = history.all_in(folder)
    if not runs:
        raise UsageError(f"{storage.absolute(folder)}: holds no run; {history.what_it_is(storage.absolute(folder))}")
    cli.table(_HEADERS, [_row(run) for run in runs])
    for run in runs:
        if run.status.why:
            cli.say(f"{run.name}: {run.state}: {run.status.why}")
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return f"{count} in {storage.absolute(folder)}; twilbert-runs RUN… shows one or compares some"


def _show(runs: Sequence[Pretraining]) -> None:
    names = page.names(runs)
    identity, others = page.difference_rows(runs)
    rows = [
        ["state", *(f"{run.state}, step {run.step:,}" for run in runs)],
        *([name, *values] for name, values, _ in page.score_rows(runs)),
    ]
    cli.table(["held out, at the best step", *names], rows)
    if len(runs) > 1:
        print()
        cli.table(["setting", *names], identity or [["the same run identity", *("" for _ in runs)]])
        if others:
            print()
            cli.table(["setting that changes no result", *names], others)


def _write(runs: Sequence[Pretraining], out: str, watch: float | None) -> None:
    reload_seconds = watch if any(run.state == "running" for run in runs) else None
    storage.write_bytes_atomic(out, outputs.marked_page(page.of_runs(runs, reload_seconds), "runs"))


def _command(args: argparse.Namespace) -> str:
    if args.watch is not None and not 1 <= args.watch <= 86_400:
        raise UsageError(f"--watch {args.watch:g}: expected 1 second to a day")
    folder = args.run[0] if args.run else args.runs
    if not args.run or (len(args.run) == 1 and _is_storage(folder, args.runs)):
        if args.watch or args.out:
            raise UsageError("--out and --watch need the names of the runs to show")
        return _list(folder)
    out = storage.absolute(args.out or "runs.html")
    runs = _read(args.run, args.runs)
    outputs.check_files({"--out": out}, "runs", overwrite=args.overwrite, inputs=[run.path for run in runs])
    _show(runs)
    _write(runs, out, args.watch)
    while args.watch and any(run.state == "running" for run in runs):
        cli.say("; ".join(f"{name} {page.status(run)}" for name, run in zip(page.names(runs), runs, strict=True)))
        time.sleep(args.watch)
        runs = _read(args.run, args.runs)
        _write(runs, out, args.watch)
    return f"page of {len(runs)} runs in {out}" if len(runs) > 1 else f"page of {runs[0].name} in {out}"


def _is_storage(path: str, runs: str) -> bool:
    """Whether that is a folder of runs rather than a run or its name."""
    return not any(map(history.is_run, (path, storage.join(runs, path)))) and bool(history.runs_in(path))


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "runs",
        "List the runs in a folder; of named runs, compare scores and recipes and write a page with their curves.",
        "twilbert-runs\n"
        "  twilbert-runs /shared/runs\n"
        "  twilbert-runs base-1a2b3c4d base-5e6f7a8b --out compared.html\n"
        "  twilbert-runs base-1a2b3c4d --watch 30",
    )
    parser.add_argument("run", nargs="*", metavar="RUN", help="run folders or names; or one folder of runs, to list it")
    parser.add_argument(
        "--runs", metavar="DIR", default="runs", help="folder in which names are looked up (default: runs)"
    )
    parser.add_argument("--out", metavar="FILE", help="the page (default: runs.html); one HTML file, needs no network")
    parser.add_argument(
        "--watch", type=float, metavar="SECONDS", help="rewrite the page at this interval until no run is running"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file at --out that it did not write")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command twilbert-runs."""
    return cli.run(_parser(), _command, argv)


if __name__ == "__main__":
    from twilbert.runs import main as _main

    raise SystemExit(_main())
