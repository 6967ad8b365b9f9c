"""Raw (tweet, reply) pairs → a corpus: clean, drop, de-duplicate, hold out a validation share.

    input files ─ inspect ▸ cut ─▶ pieces ─ clean ▸ spill by hash of ORIG_ID ─▶ partitions           (Ray Data)
    (of a Twitter dump: pieces ─ join replies with their tweets ─▶ pairs ─ clean ▸ spill …           data/twitter)
    partitions ─ first of equal ids and texts ─▶ train shards, candidates for valid                  (Ray Data)
    candidates ─ without what train shares ─▶ valid shards; rejects.jsonl; corpus.json               (this process)

Partitions depend on the input alone and rows keep the input's order inside them, so the shards are the same bytes
however many processes made them. No process ever holds more than a piece or a partition.
"""

from __future__ import annotations

import argparse
import functools
import json
import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from twilbert import cli, outputs, storage
from twilbert.cluster.ray_errors import user_errors
from twilbert.cluster.ray_session import ensure_ray, in_ray_job
from twilbert.data import checksums
from twilbert.data.cleaning import PRESETS, Cleaning, chosen
from twilbert.data.corpus import corpus as corpora
from twilbert.data.corpus import dedup
from twilbert.data.corpus import spill as raw_spill
from twilbert.data.corpus.corpus import FORMAT, INDEX_FILE, Shard, corpus_id
from twilbert.data.tables import blocks, pairs
from twilbert.data.tables.files import Source, sources
from twilbert.data.tables.layout import TableFile
from twilbert.data.twitter import dump, join
from twilbert.errors import TwilbertError, UsageError

PARTITION_BYTES = 32 * 2**20  # of input: about 150,000 pairs, a few hundred MB while it is de-duplicated
_MAX_PARTITIONS = 512
FORMS = ("pairs", "twitter")
_NOTHING = {
    "pairs": "empty; expected lines of ORIG_ID, ORIG_TEXT, REPLY_ID, REPLY_TEXT",
    "twitter": "no tweets; expected a dump of Twitter's API, the archive's tweets.js, or a table of tweets",
}
_PIECE_BYTES = (2**20, 64 * 2**20)  # smallest, largest piece of an uncompressed file

R = TypeVar("R")
Runner = Callable[[Callable[[int], R], int], Iterable[R]]


def prepare(
    inputs: Sequence[str],
    out: str,
    *,
    form: str = "pairs",
    columns: dict[str, str] | None = None,
    valid_share: float = 0.01,
    cleaning: str = "twilbert",
    overwrite: bool = False,
    num_cpus: int | None = None,
    piece_bytes: int | None = None,
    runner: Runner | None = None,
) -> dict[str, Any]:
    """Write a corpus to `out` (path or URI) from files, folders, globs and pipes; return what corpus.json holds.

    `form`: one of FORMS. `cleaning`: a name of `data.cleaning.PRESETS`. `columns` maps orig_id, orig_text, reply_id,
    reply_text to the input's names, or to positions from 1. `num_cpus` counts a local Ray's CPUs, `piece_bytes` the
    input a task reads: neither changes a byte of the shards. `runner` replaces Ray Data (`run_here`: in this process).
    Where Ray has several nodes, all must see the inputs and `out`, beside which the partitions are spilled. Nothing is
    left at `out` when it fails. UsageError for input known to be wrong at the start, TwilbertError for what shows later
    (damaged files, no space, nothing left to keep).
    """
    if not 0 <= valid_share < 1:
        raise UsageError(f"--valid-share {valid_share:g}: expected a share from 0 to below 1")
    if in_ray_job() and storage.is_local(out) and not Path(out).is_absolute():
        raise UsageError(f"--out {out}: a Ray job's folder is thrown away; give an absolute path or a URI")
    if form == "twitter" and columns:
        raise UsageError("--columns: only with --format pairs; the columns of tweets go by Twitter's names")
    columns, target, rules = columns or {}, storage.absolute(out), chosen(cleaning)
    unknown = [name for name in columns if name not in pairs.COLUMNS]
    if unknown:
        raise UsageError(f"--columns {unknown[0]}=…: expected one of {', '.join(pairs.COLUMNS)}")
    suffixes = dump.SUFFIXES if form == "twitter" else ()
    cli.say(f"texts are cleaned by the rules {rules.name}")
    with sources(inputs, suffixes) as listed:
        looked_at = (dump.inspect(source) if form == "twitter" else _inspect(source, columns) for source in listed)
        files = [file for file in looked_at if file is not None]
        if not files:
            raise UsageError(f"{' '.join(inputs)}: {_NOTHING[form]}")
        size = sum(file.text_bytes for file in files)
        partitions = max(1, min(_MAX_PARTITIONS, -(-size // PARTITION_BYTES)))
        reads = [*inputs, *(file.name for file in files)]
        before = corpora.files_before(target)
        with outputs.new_folder(target, "prepare", overwrite=overwrite, inputs=reads, before=before) as work:
            make = functools.partial(_write_corpus, form, files, target, work, partitions, valid_share, rules)
            if runner is not None:
                entries = make(piece_bytes or _PIECE_BYTES[1], runner)
            else:
                with ensure_ray(num_cpus):
                    entries = make(piece_bytes or _piece_bytes(size), run_on_ray)
            options = {"format": form, "columns": columns, "valid_share": valid_share, "partitions": partitions}
            info = {"format": FORMAT, "id": entries.pop("id"), "cleaning": rules.record, "options": options, **entries}
            checksums.write_json(storage.join(work, INDEX_FILE), info)
    return info


def _inspect(source: Source, columns: dict[str, str]) -> TableFile | None:
    """The layout of an input file, what is unusual in it printed; None when it holds nothing."""
    file = pairs.inspect(source, columns)
    if file is None:
        cli.say(f"{source.name}: empty, skipped")
        return None
    if notes := pairs.notes(file):
        cli.say(f"{source.name}: {'; '.join(notes)}")
    return file


def _piece_bytes(size: int) -> int:
    """Bytes of input that a task reads: enough pieces to keep every CPU busy to the end, each small in memory."""
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 1))
    return max(_PIECE_BYTES[0], min(_PIECE_BYTES[1], -(-size // (4 * cpus))))


def _write_corpus(
    form: str,
    files: list[TableFile],
    target: str,
    work: str,
    partitions: int,
    valid_share: float,
    cleaning: Cleaning,
    piece_bytes: int,
    run: Runner,
) -> dict[str, Any]:
    """Write shards and rejects under `work`; return corpus.json's entries about them."""
    threshold, spill = raw_spill.valid_threshold(valid_share), storage.join(work, "spill")
    storage.make_dir(spill)
    pieces = [piece for file in files for piece in blocks.cut(file, piece_bytes)]

    def each(what: str, work: Callable[[int], R], count: int) -> list[R]:
        numbered = _watched(what, run(functools.partial(_numbered, target, work), count), count)
        return [result for _, result in sorted(numbered, key=lambda pair: pair[0])]

    if form == "twitter":
        read, cleaned, counts = join.join_dump(pieces, spill, partitions, threshold, cleaning, each)
    else:
        first = functools.partial(_spill_one, pieces, spill, partitions, threshold, cleaning)
        cleaned = each("read and cleaned", first, len(pieces))
        read, counts = cleaned, {}
    dropped: Counter[str] = sum((result.dropped for result in cleaned), Counter())
    reasons: Counter[str] = sum((result.reasons for result in read), Counter())
    rejected = reasons.total()
    lines_read = sum(result.records for result in cleaned) + (rejected if form == "twitter" else 0)
    if not any(result.kept for result in cleaned):
        raise TwilbertError(
            f"nothing to keep: of {lines_read:,} lines read {rejected:,} were refused"
            + (f" ({blocks.commonest(reasons)})" if reasons else "")
            + (f", dropped: {blocks.commonest(dropped)}" if dropped else "")
            + "; is this the right file, and UTF-8?"
        )
    dedup.write_hashes(spill, [r.valid_ids for r in cleaned], [r.valid_texts for r in cleaned])
    spills = [name for result in cleaned for name in result.spills]
    merged = each("merged", functools.partial(dedup.merge_partition, spill, work, spills, threshold), partitions)
    valid, valid_singles, shared = dedup.write_valid(spill, work, merged)
    dropped.update({"repeated": sum(result.repeated for result in merged), **shared})
    _write_rejects(pieces, read, spill, storage.join(work, "rejects.jsonl"))
    storage.delete(spill)
    train = [result.train for result in merged if result.train]
    splits = {
        "train": _split(train, sum(result.single_tweets for result in merged)),
        "valid": _split(valid, valid_singles),
    }
    return {
        "id": corpus_id([*train, *valid]),
        "lines_read": lines_read,
        "kept": splits["train"]["rows"] + splits["valid"]["rows"],
        "rejected": rejected,
        "rejected_because": dict(reasons.most_common()),
        "dropped": {reason: dropped[reason] for reason in sorted(dropped) if dropped[reason]},
        "splits": splits,
        "inputs": [file.name for file in files],
    } | counts


def _split(shards: list[Shard], single_tweets: int) -> dict[str, Any]:
    rows = sum(shard.rows for shard in shards)
    return {"rows": rows, "single_tweets": single_tweets, "shards": [vars(shard) for shard in shards]}


def _spill_one(
    pieces: list[blocks.Piece], spill: str, partitions: int, threshold: int, cleaning: Cleaning, index: int
) -> raw_spill.PieceResult:
    return raw_spill.spill_pairs(pairs.read(pieces[index]), index, spill, partitions, threshold, cleaning)


def _numbered(target: str, work: Callable[[int], R], index: int) -> tuple[int, R]:
    with storage.explained_write(target):
        return index, work(index)


def _write_rejects(
    pieces: list[blocks.Piece], read: Sequence[raw_spill.PieceResult | join.DumpResult], spill: str, path: str
) -> None:
    """All refused lines in the order of the input, numbered from 1 within their file (a header is line 1)."""
    system, inner = storage.filesystem(path)
    with storage.explained_write(path), system.open_output_stream(inner) as sink:
        before, file = 0, None
        for piece, result in zip(pieces, read, strict=True):
            if piece.file is not file:
                file, before = piece.file, piece.file.header_lines
            for name in result.rejects:
                for line, reason, *place in json.loads(storage.read_bytes(storage.join(spill, name))):
                    row = {"file": piece.file.name, "line": before + line + 1, "reason": reason}
                    row |= {"place": place[0]} if any(place) else {}
                    sink.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            before += result.lines


def run_here(work: Callable[[int], R], count: int) -> Iterator[R]:
    """`work(0)` … `work(count - 1)` in this process, without Ray."""
    return map(work, range(count))


def run_on_ray(work: Callable[[int], R], count: int) -> Iterator[R]:
    """`work(0)` … `work(count - 1)` as Ray Data tasks, as they end."""
    import ray.data

    items = ray.data.from_items([{"index": index} for index in range(count)], override_num_blocks=count)
    done = items.map(lambda row: {"result": pickle.dumps(work(int(row["index"])))})
    with user_errors("preparing"):
        for row in done.iter_rows():
            yield pickle.loads(row["result"])


def _watched(what: str, results: Iterable[R], count: int) -> Iterator[R]:
    """Pass results on and show how far they are: a bar on a terminal, else a line every few seconds."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(results, what, total=count, console=Console(stderr=True), transient=True)
        cli.say(f"{what}: {count} of {count}")
        return
    last = time.monotonic()
    for number, result in enumerate(results, start=1):
        if number == count or time.monotonic() - last > 5:
            last = time.monotonic()
            cli.say(f"{what}: {number} of {count}")
        yield result


def _columns(given: Sequence[str]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for pair in given:
        name, equals, column = pair.partition("=")
        if not equals or not column:
            raise UsageError(f"--columns {pair}: expected e.g. orig_text=parent (put the input files before --columns)")
        if name in columns or column.casefold() in map(str.casefold, columns.values()):
            raise UsageError(
                f"--columns {' '.join(given)}: {pair} repeats one; name each of the four and each column once"
            )
        columns[name] = column
    return columns


def _handle(args: argparse.Namespace) -> str:
    started = time.monotonic()
    info = prepare(
        args.raw,
        args.out,
        form=args.format,
        columns=_columns(args.columns),
        valid_share=args.valid_share,
        cleaning=args.cleaning,
        overwrite=args.overwrite,
        num_cpus=args.num_cpus,
    )
    seconds = time.monotonic() - started
    splits, out = info["splits"], storage.absolute(args.out)
    if args.valid_share and not splits["valid"]["rows"]:
        cli.say("no pair was held out: raise --valid-share to have something to validate on")
    if "twitter" in info:
        counts = {name: f"{count:,}" for name, count in info["twitter"].items()}
        cli.say(
            f"read {counts['tweets_read']} tweets ({counts['tweets']} different ones, {counts['retweets']} retweets), "
            f"skipped {counts['notices']} notices"
        )
        cli.say(
            f"{counts['replies']} replies: {counts['pairs']} pairs found, {counts['replies_without_tweet']} whose "
            "tweet is absent"
        )
    for reason, count in info["dropped"].items():
        cli.say(f"dropped {count:,} {reason}")
    if info["rejected"]:
        reasons = blocks.commonest(Counter(info["rejected_because"]))
        cli.say(f"refused {info['rejected']:,} lines, listed in {storage.join(out, 'rejects.jsonl')}: {reasons}")
    rows = "lines read" if args.format == "pairs" else "pairs, single tweets and refused records"
    return (
        f"wrote {out}: {_counted(splits['train'])} to train on and {_counted(splits['valid'])} to validate; of "
        f"{info['lines_read']:,} {rows} {sum(info['dropped'].values()):,} were dropped and {info['rejected']:,} "
        f"refused ({seconds:.0f} s)"
    )


def _counted(split: dict[str, Any]) -> str:
    singles = f" and {split['single_tweets']:,} single tweets" if split["single_tweets"] else ""
    return f"{split['rows'] - split['single_tweets']:,} pairs{singles}"


def main(argv: list[str] | None = None) -> int:
    """The command `twilbert-prepare`."""
    parser = cli.parser(
        "prepare",
        "Clean, drop, de-duplicate and split raw (tweet, reply) pairs. Input: TSV (never quoted), CSV, JSON, Parquet;\n"
        "gzip or zstd; files, folders, globs, pipes. Columns ORIG_ID, ORIG_TEXT, REPLY_ID, REPLY_TEXT; a missing "
        "reply is a single tweet.\n--format twitter: dumps of Twitter's API, tweets.js, tables of tweets.",
        "twilbert-prepare raw/*.tsv.gz --out corpus --columns orig_text=parent reply_text=child\n"
        "  twilbert-prepare dump/*.jsonl.gz data/tweets.js --format twitter --out corpus",
    )
    parser.add_argument("raw", nargs="+", metavar="RAW", help="file, folder, glob, URI, pipe or - (standard input)")
    parser.add_argument("--format", choices=FORMS, default="pairs", help="what RAW holds: pairs, or a Twitter dump")
    parser.add_argument("--out", required=True, metavar="CORPUS", help="folder or URI to write")
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="NAME=COLUMN",
        help="orig_text=parent …; positions from 1 without header",
    )
    parser.add_argument("--valid-share", type=float, default=0.01, help="share of conversations held out (0.01)")
    parser.add_argument(
        "--cleaning",
        default="twilbert",
        metavar="RULES",
        help=f"how texts are cleaned: {', '.join(PRESETS)}, or a well-known encoder whose rules they are (twilbert)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is at CORPUS")
    parser.add_argument("--num-cpus", type=int, metavar="N", help="CPUs of a local Ray (all of this machine)")
    return cli.run(parser, _handle, argv)


if __name__ == "__main__":
    from twilbert.prepare import main as _main  # from its own name, so that Ray pickles by reference

    raise SystemExit(_main())
