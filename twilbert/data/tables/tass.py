"""TASS XML → rows: <tweet> with <tweetid>, <content> and <sentiment>, as in the general corpus and in InterTASS.

Of its polarities the label is that of the whole tweet, the one without <entity>. A document type is refused, and with
it every entity that a file could define.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.parsers import expat

from twilbert.data.tables.cells import LONGEST_CELL
from twilbert.errors import TwilbertError, UsageError

ID, TEXT, LABEL = "tweetid", "content", "sentiment"
NAMES = (ID, "user", TEXT, "date", "lang", LABEL)
"""The columns; what a tweet has not is empty."""
EXPECTED = f"<tweet> with <{ID}>, <{TEXT}> and, of labelled ones, <{LABEL}><polarity><value>"


def rows(name: str, chunks: Iterable[bytes]) -> Iterator[tuple[int, list[str], str | None]]:
    """Each tweet of a file: its line from 0, its cells in the order of NAMES, and why they cannot be used.

    UsageError for a document type or no tweets at all; TwilbertError naming the line where the text is no XML.
    """
    reader = _Reader(name)
    is_empty = True
    for chunk in chunks:
        for row in reader.feed(chunk):
            is_empty = False
            yield row
    for row in reader.feed(b"", is_last=True):
        is_empty = False
        yield row
    if is_empty:
        raise UsageError(f"{name}: XML without a <tweet>; expected TASS's: {EXPECTED}")


class _Reader:
    """Where the parser is: the names of the open elements, and what the open tweet and polarity hold."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._append
        self._path: list[str] = []
        self._depth = 0  # of the open tweet's children; 0: no tweet is open
        self._text: list[str] = []
        self._size = 0
        self._rows: list[tuple[int, list[str], str | None]] = []

    def feed(self, chunk: bytes, is_last: bool = False) -> list[tuple[int, list[str], str | None]]:
        """The rows that a chunk ends."""
        try:
            self._parser.Parse(chunk, is_last)
        except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: an unknown encoding
            reason = expat.ErrorString(error.code) if isinstance(error, expat.ExpatError) else str(error)
            line = self._parser.ErrorLineNumber
            raise TwilbertError(
                f"{self._name}: line {line}: no well-formed XML ({reason}); correct it (in texts & is written &amp; "
                "and < is &lt;; the file is UTF-8 unless its first line names an encoding), or restore it"
            ) from error
        ended, self._rows = self._rows, []
        return ended

    def _refuse(self, *_: object) -> None:
        raise UsageError(
            f"{self._name}: line {self._parser.CurrentLineNumber}: a document type (<!DOCTYPE), which may define "
            "entities and is not read; remove it"
        )

    def _start(self, name: str, _: object) -> None:
        self._path.append(name)
        if not self._depth and name == "tweet":
            self._depth = len(self._path) + 1
            self._line = self._parser.CurrentLineNumber - 1
            self._values: dict[str, str] = {}
            self._labels: list[str] = []
            self._fault: str | None = None
        if name == "polarity":
            self._polarity: dict[str, str] = {}
        if len(self._path) <= self._depth or name in ("entity", "value"):
            self._text, self._size = [], 0

    def _append(self, text: str) -> None:
        self._size += len(text)
        if self._depth and self._size > LONGEST_CELL:
            raise TwilbertError(f"{self._name}: line {self._line + 1}: a tweet of over {LONGEST_CELL:,} characters")
        if self._depth:
            self._text.append(text)

    def _end(self, name: str) -> None:
        depth = len(self._path)
        self._path.pop()
        text = "".join(self._text).strip()
        if not self._depth:
            return
        if depth == self._depth - 1:
            self._finish()
        elif depth == self._depth and name in NAMES and name != LABEL:
            if name in self._values:
                self._fault = f"two <{name}> in one tweet"
            self._values[name] = text
        elif name in ("entity", "value") and "polarity" in self._path:
            self._polarity[name] = text
        elif name == "polarity" and not self._polarity.get("entity") and self._polarity.get("value"):
            self._labels.append(self._polarity["value"])

    def _finish(self) -> None:
        labels = sorted(set(self._labels))
        if len(labels) > 1:
            self._fault = f"several polarities of the whole tweet ({', '.join(labels)})"
        for name in (ID, TEXT):
            if name not in self._values:
                self._fault = f"no <{name}>"
        self._values[LABEL] = labels[0] if labels else ""
        self._rows.append((self._line, [self._values.get(name, "") for name in NAMES], self._fault))
        self._depth = 0
