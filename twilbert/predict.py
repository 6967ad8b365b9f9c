"""twilbert-predict: labels, probabilities or embeddings of the texts of files, every column of the input kept.

    files ─ inspect ─▶ inference/batch.py: read ▸ clean ▸ batch ▸ model ─▶ tables, in order ─▶ OUT

Input rows are output rows, in the same order: one without a usable text is kept, with the reason in the column `error`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from twilbert import cli, outputs, storage
from twilbert.cluster.joining import address_at_hand
from twilbert.data.tables import texts
from twilbert.data.tables.blocks import commonest
from twilbert.data.tables.files import FORMATS, STANDARD_INPUT, Source, sources
from twilbert.data.tables.layout import TableFile
from twilbert.data.tables.writers import TABLES, VECTORS, open_writer
from twilbert.errors import UsageError
from twilbert.hub.folder import ModelFolder, find_model
from twilbert.inference import batch
from twilbert.inference import model as inference

MANY_FILES = 8  # from this many on Ray Data shares them out, where Ray is installed
_SAY_SECONDS = 10.0


@dataclass
class Summary:
    """What was done: `rows` in and out, why some of them have no result, and the first of these."""

    rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    first_fault: str = ""
    abstained: int = 0


def predict(
    model: str,
    inputs: Sequence[str],
    out: str,
    *,
    embeddings: str | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    form: str | None = None,
    prefix: str = "",
    device: str | None = None,
    precision: str = "auto",
    address: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    calibrated: bool = True,
    min_precision: float | None = None,
) -> Summary:
    """Write the results for every row of `inputs` (files, folders, "-") to `out`, whole or not at all.

    With `embeddings` (one of inference.EMBEDDINGS) vectors, else labels. Files are taken in the order given, a folder's
    by name. `address` names a Ray cluster, which must see files and model at the same paths. UsageError before any work
    for a wrong model, column or format; TwilbertError where an input cannot be read to its end. `trust_remote_code`:
    as for `twilbert.load`, as `calibrated`. With `min_precision` only rows are answered that are sure enough for it to
    have been reached on dev; the column `abstained` tells which are not.
    """
    job = batch.Job(
        find_model(model), device, precision, embeddings, prefix, trust_remote_code, calibrated, min_precision
    )
    reads = ["/dev/stdin" if name == STANDARD_INPUT else name for name in inputs]
    kind = _out_format(out, embeddings, overwrite, [job.model, *reads])
    _check_model(job, has_pairs=pair_column is not None)
    with sources(inputs) as listed:
        outputs.check_files({"--out": out}, "predict", overwrite=overwrite, inputs=[s.name for s in listed])
        files = _inspected(listed, form, text_column, pair_column)
        _check_columns(files[0], job)
        on_ray = address_at_hand(address) is not None or _many(files, device)
        if on_ray and any(source.path != source.name for source in listed):
            raise UsageError("a pipe cannot be read by a cluster; write it to a file, or leave --address out")
        tables = batch.on_ray(files, job, address) if on_ray else batch.here(files, job)
        return _write(tables, out, kind, prefix)


def _out_format(out: str, embeddings: str | None, overwrite: bool, reads: Sequence[str]) -> str:
    kind, allowed = out.rpartition(".")[2].lower(), VECTORS if embeddings else TABLES
    if kind not in allowed:
        what = f"embeddings {embeddings}" if embeddings else "labels"
        raise UsageError(f"--out {out}: {what} are written as {', '.join('.' + name for name in allowed)}")
    outputs.check_files({"--out": out}, "predict", overwrite=overwrite, inputs=reads)
    return kind


def _check_model(job: batch.Job, *, has_pairs: bool) -> None:
    folder = ModelFolder.open(job.model, job.trust_remote_code)
    if job.embeddings:
        folder.require_embeddings()
    else:
        folder.require_labels()
        folder.check_pairs(has_pairs)


def _inspected(listed: list[Source], form: str | None, text: str | None, pair: str | None) -> list[TableFile]:
    files = [texts.inspect(source, form, text, pair) for source in listed]
    first = files[0]
    for file in files[1:]:
        if _listed(file) != _listed(first):
            raise UsageError(
                f"{file.name}: its columns ({_listed(file)}) are not those of {first.name} ({_listed(first)}); "
                "give files of one kind at a time"
            )
    return files


def _listed(file: TableFile) -> str:
    return "JSON" if file.format in ("json", "jsonl") else ", ".join(file.names)


def _check_columns(file: TableFile, job: batch.Job) -> None:
    clash = [name for name in ("predicted", "embedding", "error") if job.prefix + name in file.names]
    if clash:
        raise UsageError(
            f"{file.name}: already has a column {job.prefix + clash[0]!r}; choose other names with --prefix"
        )


def _many(files: list[TableFile], device: str | None) -> bool:
    """Whether to compute on Ray, whose actors take a device each: not on one that the user has named by number."""
    return ":" not in (device or "") and len(files) >= MANY_FILES and importlib.util.find_spec("ray") is not None


def _write(tables: Iterator[pa.Table], out: str, kind: str, prefix: str) -> Summary:
    summary, began, said = Summary(), time.monotonic(), time.monotonic()
    with storage.new_file(out) as stream, contextlib.closing(open_writer(kind, stream)) as writer:
        for table in tables:
            _count(summary, table, prefix)
            writer.write(table)
            if time.monotonic() - said > _SAY_SECONDS:
                said = time.monotonic()
                cli.say(f"{summary.rows:,} rows, {summary.rows / (said - began):,.0f} a second")
        if not summary.rows:
            raise UsageError("the input has no rows, only a header; nothing was written")
    return summary


def _count(summary: Summary, table: pa.Table, prefix: str) -> None:
    errors = table.column(table.num_columns - 1)
    if errors.null_count < len(errors):
        reasons = {number: reason for number, reason in enumerate(errors.to_pylist(), start=1) if reason is not None}
        if not summary.faults:
            number, reason = next(iter(reasons.items()))
            summary.first_fault = f"row {summary.rows + number:,}: {reason}"
        summary.faults.update(reasons.values())
    summary.rows += len(errors)
    if f"{prefix}abstained" in table.column_names:
        summary.abstained += table.column(f"{prefix}abstained").to_pylist().count(True)


def _parser() -> argparse.ArgumentParser:
    made = cli.parser(
        "predict",
        "Labels and probabilities from a fine-tuned model, or embeddings from any, for every row of the input.",
        "twilbert-predict runs/irony tweets.tsv --out labelled.tsv\n"
        "  twilbert-predict models/base tweets.jsonl --embeddings avg --out vectors.parquet\n"
        '  twilbert-predict runs/irony --text "qué bien, lunes otra vez"',
    )
    made.add_argument("model", metavar="MODEL", help="model folder, checkpoint, run folder or run name")
    made.add_argument(
        "input", metavar="INPUT", nargs="*", help="TSV, CSV, JSON lines, Parquet, Excel, .txt, or folders"
    )
    made.add_argument("--text", action="append", metavar="TEXT", help="this text, instead of INPUT; may be repeated")
    made.add_argument("--out", metavar="FILE", help=".tsv .csv .jsonl .parquet; embeddings: .parquet .h5")
    made.add_argument("--embeddings", choices=inference.EMBEDDINGS, help="vectors in place of labels")
    made.add_argument(
        "--text-column", metavar="NAME", help="column of the texts; a position, from 1, if there is no header"
    )
    made.add_argument("--pair-column", metavar="NAME", help="column of second texts, for models of pairs")
    made.add_argument("--format", choices=FORMATS, help="of the input (default: by its name; of standard input: text)")
    made.add_argument("--prefix", default="", metavar="P", help="put before the names of the new columns")
    made.add_argument(
        "--precision", choices=inference.PRECISIONS, default="auto", help="default: auto, bf16 for labels"
    )
    made.add_argument(
        "--min-precision",
        type=float,
        metavar="P",
        help="answer only rows as sure as those that were so precise on dev",
    )
    made.add_argument("--uncalibrated", action="store_true", help="probabilities without the temperature fitted on dev")
    made.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU when there is one)")
    made.add_argument("--address", help="share the files out over this Ray cluster")
    made.add_argument("--overwrite", action="store_true", help="replace --out when it is there")
    cli.add_trust(made)
    return made


def _command(args: argparse.Namespace) -> str:
    if args.min_precision is not None and not 0 < args.min_precision <= 1:
        raise UsageError(f"--min-precision {args.min_precision:g}: expected a share above 0 and up to 1, e.g. 0.9")
    if args.embeddings and (args.min_precision is not None or args.uncalibrated):
        raise UsageError("--min-precision and --uncalibrated are about labels; leave them out with --embeddings")
    if bool(args.text) == bool(args.input):
        raise UsageError("give INPUT or --text, one of them; INPUT - is standard input")
    if args.text:
        return _predict_arguments(args)
    if args.out is None:
        raise UsageError("--out FILE is missing: where the results are to be written")
    done = predict(
        args.model,
        args.input,
        args.out,
        embeddings=args.embeddings,
        text_column=args.text_column,
        pair_column=args.pair_column,
        form=args.format,
        prefix=args.prefix,
        device=args.device,
        precision=args.precision,
        address=args.address,
        overwrite=args.overwrite,
        trust_remote_code=args.trust_remote_code,
        calibrated=not args.uncalibrated,
        min_precision=args.min_precision,
    )
    what = f"{args.embeddings} embeddings" if args.embeddings else "labels"
    faults = ""
    if done.faults:
        reasons = f"; in all: {commonest(done.faults)}" if len(done.faults) > 1 else ""
        faults = f"; {done.faults.total():,} without, see column error (first: {done.first_fault}{reasons})"
    abstained = "" if args.min_precision is None else f"; {done.abstained:,} not answered (--min-precision)"
    return f"{what} of {done.rows:,} rows in {storage.absolute(args.out)}{abstained}{faults}"


def _predict_arguments(args: argparse.Namespace) -> str:
    """Predict the texts of the command line: print a table, and write --out where given."""
    job = batch.Job(
        find_model(args.model), args.device, args.precision, args.embeddings, args.prefix,
        args.trust_remote_code, not args.uncalibrated, args.min_precision,
    )  # fmt: skip
    _check_model(job, has_pairs=False)
    if args.out is None and args.embeddings:
        raise UsageError("--embeddings needs --out FILE (.parquet or .h5)")
    kind = _out_format(args.out, args.embeddings, args.overwrite, [job.model]) if args.out else ""
    model = job.load()
    given = pa.table({"text": pa.array(args.text, pa.large_string())})
    table = batch.results(model, texts.checked(given, args.text, None, {}), job)
    if not args.embeddings:
        has_faults = table.column(table.num_columns - 1).null_count < len(table)
        rows = table if has_faults else table.drop_columns([f"{job.prefix}error"])
        cells = [[_shown(value) for value in row.values()] for row in rows.to_pylist()]
        cli.table(rows.column_names, cells)
    count = "1 text" if len(args.text) == 1 else f"{len(args.text)} texts"
    if args.out is None:
        return f"{count}, model {job.model}, {batch.precision_line(model, job)}"
    _write(iter([table]), args.out, kind, args.prefix)
    return f"{count} in {storage.absolute(args.out)}"


def _shown(value: object) -> object:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else value


def main(argv: list[str] | None = None) -> int:
    """The command twilbert-predict."""
    return cli.run(_parser(), _command, argv)


if __name__ == "__main__":
    from twilbert.predict import main as _main

    raise SystemExit(_main())
