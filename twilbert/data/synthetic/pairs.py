"""Draw lines of raw pairs of the generated language, with ids, mentions, links, entities, misspellings and repeats.

Vectorised: words are numbers, a line is a row of numbers of surface forms, and one Arrow `take` turns a batch of rows
into bytes. Batch b of a seed is the same whatever the number of lines.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from twilbert.data.synthetic.language import AMBIGUOUS, QUESTIONS, STYLES, VARIED, language

BATCH_LINES = 20_000
HEADER = b"ORIG_ID\tORIG_TEXT\tREPLY_ID\tREPLY_TEXT\n"
_REPEATED = _TOO_SHORT = _ONLY_LINKS = 0.005  # shares of lines that `prepare` should drop
_MORE_REPLIES = 0.3  # probability of one more reply in a thread
_FIRST_ID = 1_128_000_000_000_000_000
_HANDLES, _LINKS = 4_000, 20_000
_GLUED = frozenset({"COMMA", "DOT", "EXCL", "QEND"})  # marks that follow their word without a space


@dataclass(frozen=True)
class _Surfaces:
    """The surface forms of lines. Entry i is form i without a space before it, i + n with one, i + 2n with two."""

    table: pa.Array
    n: int
    variant_start: np.ndarray  # of each word of the vocabulary
    variant_count: np.ndarray
    handles: int  # first of _HANDLES
    links: int  # first of _LINKS
    digits: int  # first of "000" … "999"
    one: int
    tab: int
    newline: int
    ellipsis: int


@lru_cache(maxsize=1)
def _surfaces() -> _Surfaces:
    lang = language()
    rng = np.random.default_rng(20_200_914)
    forms = [*lang.vocabulary]
    counts = np.array([len(v) for v in lang.variants])
    starts = len(forms) + np.cumsum(counts) - counts
    forms += [form for v in lang.variants for form in v]
    # Some quotes are not escaped: stray quotes break readers that expect quoted cells.
    forms = [html.escape(f, quote=i % 2 == 0) for i, f in enumerate(forms)]
    names = ["".join(part) for part in rng.choice(list("abcdeilmnorstuñé"), (_HANDLES, 6))]
    handles = len(forms)
    forms += [f"@{name}{number}" for name, number in zip(names, rng.integers(0, 99, _HANDLES), strict=True)]
    links = len(forms)
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    forms += ["https://t.co/" + "".join(part) for part in rng.choice(letters, (_LINKS, 10))]
    n = len(forms)
    glued = [name in _GLUED for name in lang.classes] + [False] * (n - len(lang.classes))
    spaced = [f if g else f"{space}{f}" for space in (" ", "  ") for f, g in zip(forms, glued, strict=True)]
    table = [*forms, *spaced, *(f"{i:03d}" for i in range(1000)), "1", "\t", "\n", "…"]
    ends = (len(table) - 4 + i for i in range(4))
    return _Surfaces(pa.array(table, pa.string()), n, starts, counts, handles, links, 3 * n, *ends)


@lru_cache(maxsize=1)
def _drawing() -> tuple[np.ndarray, np.ndarray]:
    """All rows of all chains for drawing by one binary search: (cumulative [nnz], next word [nnz]).

    Row r's cumulative shares run from r to r + 1: the successor for a uniform u is at the insertion point of r + u.
    """
    chains = language().chains
    rows = chains.reshape(-1, chains.shape[-1])
    cumulative, follower = [], []
    for number, row in enumerate(rows):
        at = np.flatnonzero(row)
        if not len(at):  # a word that this style never uses
            continue
        share = number + np.cumsum(row[at])
        share[-1] = number + 1
        cumulative.append(share)
        follower.append(at)
    return np.concatenate(cumulative), np.concatenate(follower).astype(np.int32)


def draw_texts(topic: np.ndarray, style: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw texts of given topics and styles, int32 [texts, longest]: words of the vocabulary, -1 after the end."""
    lang = language()
    size = lang.words.shape[1]
    cumulative, follower = _drawing()
    base = (topic * len(STYLES) + style) * (size + 1)
    active = np.arange(len(topic))
    word = np.full(len(topic), size)
    columns = []
    while len(active):
        u = np.minimum(rng.random(len(active)), 1 - 1e-9)
        word = follower[np.searchsorted(cumulative, base[active] + word + u, side="right")]
        active, word = active[word < size], word[word < size]
        column = np.full(len(topic), -1, dtype=np.int32)
        column[active] = lang.words[topic[active], word]
        columns.append(column)
    return np.stack(columns[:-1], axis=1)  # the last step only ended texts


def _written(words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Words → surface forms, some misspelt, with mentions, links and spaces between."""
    lang, s = language(), _surfaces()
    mention, link, qmark = (lang.vocabulary.index(w) for w in ("user", "url", "¿"))
    out = words.copy()
    u = rng.random(words.shape)
    varied = (words >= 0) & (u < VARIED) & (s.variant_count[words] > 0)
    which = (u[varied] / VARIED * s.variant_count[words[varied]]).astype(np.int64)
    out[varied] = s.variant_start[words[varied]] + which
    at = words == mention
    out[at] = s.handles + rng.integers(0, _HANDLES, at.sum())
    at = words == link
    out[at] = s.links + rng.integers(0, _LINKS, at.sum())
    spaces = np.where(rng.random(words.shape) < 0.01, 2, 1)
    spaces[:, 0] = 0
    spaces[:, 1:][words[:, :-1] == qmark] = 0
    out = np.where(words >= 0, out + spaces * s.n, -1)
    cut_off = np.where(rng.random(len(words)) < 0.02, s.ellipsis, -1)
    return np.concatenate([out, cut_off[:, None]], axis=1).astype(np.int32)


def as_texts(words: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Return texts of words [texts, longest] (-1 for no word, except in the first column) in surface forms."""
    table = _surfaces().table
    return ["".join(table.take(pa.array(row[row >= 0])).to_pylist()) for row in _written(words, rng)]


def _id_columns(ids: np.ndarray) -> np.ndarray:
    """19-digit numbers that begin with 1 as surface forms, int32 [rows, 7]: "1", then three digits each."""
    s = _surfaces()
    groups = [ids // 10 ** (3 * k) % 1000 + s.digits for k in range(5, -1, -1)]
    return np.stack([np.full(len(ids), s.one), *groups], axis=1).astype(np.int32)


@dataclass
class Batch:
    """The bytes of lines, and the number that `prepare` should drop by reason."""

    data: bytes
    lines: int
    repeated: int
    too_short: int
    only_mentions_and_links: int


def draw_lines(seed: int, number: int, lines: int = BATCH_LINES) -> Batch:
    """Draw the first `lines` lines of batch `number` of a seed."""
    lang, s = language(), _surfaces()
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number])))
    n = BATCH_LINES
    # Threads: a tweet and its replies.
    first = np.flatnonzero(np.concatenate([[True], rng.random(n - 1) >= _MORE_REPLIES]))
    thread = np.repeat(np.arange(len(first)), np.diff(np.append(first, n)))
    topic = rng.choice(len(lang.topic_shares), len(first), p=lang.topic_shares)
    neutral = rng.random(len(first)) < AMBIGUOUS
    style = np.where(neutral, 3, np.where(rng.random(len(first)) < QUESTIONS, 1, 0))
    tweets = _written(draw_texts(topic, style, rng), rng)[thread]
    reply_style = np.where(neutral, 3, 2)[thread]
    replies = _written(draw_texts(topic[thread], reply_style, rng), rng)
    # Two ids from each thousand: the tweet's is that of its thread's first line.
    slot = _FIRST_ID + (number * n + np.arange(n)) * 1_000
    orig_id = slot[first][thread] + rng.integers(0, 500, len(first))[thread]
    reply_id = slot + rng.integers(500, 1_000, n)

    kind = rng.random(n)
    short = kind < _TOO_SHORT
    links = (kind >= _TOO_SHORT) & (kind < _TOO_SHORT + _ONLY_LINKS)
    repeat = (kind >= 1 - _REPEATED) & (np.arange(n) > 0)
    shared = np.flatnonzero(np.isin(lang.classes, ["ANSWER", "LAUGH"]))
    for texts in (tweets, replies):
        texts[short | links] = -1
        texts[short, 0] = rng.choice(shared, short.sum())
        texts[links, 0] = s.handles + rng.integers(0, _HANDLES, links.sum())
        texts[links, 1] = s.n + s.links + rng.integers(0, _LINKS, links.sum())
    source = rng.permutation(n)  # a thread's replies are not adjacent
    whole = np.flatnonzero(~(short | links)[source] & ~repeat)
    source[repeat] = source[rng.choice(whole, repeat.sum())]
    source = source[:lines]
    tab, newline = (np.full((len(source), 1), mark, dtype=np.int32) for mark in (s.tab, s.newline))
    ids = [_id_columns(numbers[source]) for numbers in (orig_id, reply_id)]
    cells = [ids[0], tab, tweets[source], tab, ids[1], tab, replies[source], newline]
    surfaces = np.concatenate(cells, axis=1).ravel()
    text = s.table.take(pa.array(surfaces[surfaces >= 0]))
    _, offsets, data = text.buffers()
    end = int(np.frombuffer(offsets, dtype=np.int32)[len(text)])
    return Batch(
        data=data.slice(0, end).to_pybytes(),
        lines=len(source),
        repeated=len(source) - len(np.unique(source)),
        too_short=int(short[source].sum()),
        only_mentions_and_links=int(links[source].sum()),
    )
