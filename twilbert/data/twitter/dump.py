"""A file of a Twitter dump → its tweets. What it is shows in its content: JSON lines, arrays and pages of the API, the
archive's tweets.js, or a table.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from twilbert import cli
from twilbert.data.tables import blocks, layout
from twilbert.data.tables.blocks import Piece
from twilbert.data.tables.files import Source, format_of
from twilbert.data.tables.layout import TableFile, raw_chunks
from twilbert.data.twitter import objects, tables
from twilbert.data.twitter.objects import Tweets
from twilbert.errors import UsageError

SUFFIXES = (".js",)
"""Of files that are read from folders beside those of tables."""
_START_BYTES = 4096
_SCRIPT = re.compile(r"\s*(?:window\.YTD\.(?P<part>\w+)\.part\w*|Grailbird\.data\.(?P<month>\w+))\s*=\s*[\[{]")
_TWEETS = re.compile(r"(deleted_|community_)?tweets?(_\d+_\d+)?")
_REMEDY = (
    "expected tweets as Twitter's API, twarc or the archive write them (id, text; pages of data and includes); leave "
    "out --format twitter where rows are pairs"
)


def inspect(source: Source) -> TableFile | None:
    """The layout of a file of tweets; None when it holds none, which is printed; UsageError for anything else."""
    file = layout.inspect(source, tables.NAMES, "text")
    if file is None:
        cli.say(f"{source.name}: empty, skipped")
        return None
    if file.format == "text":
        start = next(raw_chunks(file, file.data_start, _START_BYTES), b"").decode(errors="replace")
        script = _SCRIPT.match(start)
        name = script and (script["part"] or script["month"])
        if name and not _TWEETS.fullmatch(name):
            cli.say(f"{source.name}: the archive's {name}, which are no tweets, skipped")
            return None
        is_json = script or start.lstrip()[:1] in ("{", "[")
        form = "jsonl" if is_json else "tsv" if format_of(source.name) == "tsv" else "csv"
        file = layout.inspect(source, tables.NAMES, form)
        assert file is not None
    if file.format in ("json", "jsonl"):
        _check_records(file)
        return dataclasses.replace(file, names=())
    file = tables.reading(file)
    if not tables.has_replies(file):
        cli.say(f"{source.name}: no column of the tweets replied to, single tweets")
    return file


def _check_records(file: TableFile) -> None:
    """UsageError when no record at the start of a JSON file is a tweet's, and some are no part of a dump."""
    tweets = next(read(blocks.cut(file, blocks.BLOCK_BYTES)[0]), None)
    if tweets is not None and tweets.rejects and not tweets.ids:
        line, reason, place = tweets.rejects[0]
        place = f"line {file.header_lines + line + 1}{place and f' ({place})'}"
        raise UsageError(f"{file.name}: {place}: {reason}; {_REMEDY}")


def read(piece: Piece) -> Iterator[Tweets]:
    """The tweets of a piece, in order; TwilbertError when the file cannot be read to its end."""
    first = 1
    for block in blocks.read_piece(piece):
        tweets = Tweets(block.lines)
        is_json = isinstance(block, blocks.JsonBlock)
        for row, record in enumerate(block.values if is_json else tables.objects(block, piece.file)):
            place = f"record {first + row}" if piece.file.format == "json" else ""
            fault = block.faults.get(row) if block.faults else None
            if fault is None:
                objects.read_record(record, block.numbers[row], place, tweets)
            elif fault != blocks.EMPTY_LINE:
                tweets.rejects.append((block.numbers[row], fault, place))
        first += len(block.numbers)
        yield tweets
