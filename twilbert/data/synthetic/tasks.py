"""Draw labelled texts of the generated language, mostly predictable from a bag of words.

A label has a topic: its texts end with a clause "pero el NOUN ADJECTIVE VERB" of that topic's words. The text before
is about a topic without a label, or sometimes another label's: there only the order of the words decides. Some labels
are wrong. Pre-training on the language teaches which words share a topic, also those in no labelled text.

Of two texts the first or the second has the clause.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from twilbert.data.synthetic.language import STYLES, language
from twilbert.data.synthetic.pairs import as_texts, draw_texts

CONFUSED = 0.2  # texts that begin with another label's topic
WRONG = 0.03  # wrong labels
IN_SECOND = 0.6  # clauses in the second of two texts
NO_SECOND = 0.1  # rows without a second text
RETWEETS = 0.1
_CONNECTIVES = ("pero", "aunque")


@dataclass(frozen=True)
class LabelledTexts:
    """N generated rows. labels: numbers int [N], or flags int [N, labels]. `best`: a perfect model's accuracy."""

    texts: list[str]
    texts_b: list[str] | None
    labels: np.ndarray
    best: float


def draw_labelled(name: str, n_labels: int, rows: int, seed: int, *, multi: bool, two_texts: bool) -> LabelledTexts:
    """Draw rows of the task `name`, which determines the topics of its labels; a seed gives the same rows."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([zlib.crc32(name.encode()), seed])))
    cues = _Cues(name, n_labels)
    if multi:
        flags = rng.random((rows, n_labels)) < np.linspace(0.3, 0.12, n_labels)
    else:
        share = 1 / (1 + 0.3 * np.arange(n_labels))
        flags = np.arange(n_labels) == rng.choice(n_labels, rows, p=share / share.sum())[:, None]
    clauses = cues.clauses(flags, rng)
    opening = draw_texts(cues.opening_topics(flags, rng), rng.integers(0, len(STYLES), rows), rng)
    texts_b = None
    if two_texts:
        lone = rng.random(rows) < NO_SECOND
        second = (rng.random(rows) < IN_SECOND) & ~lone
        other = draw_texts(cues.opening_topics(flags, rng), rng.integers(0, len(STYLES), rows), rng)
        written = as_texts(np.concatenate([other, np.where(second[:, None], clauses, -1)], axis=1), rng)
        texts_b = ["" if no else text for no, text in zip(lone, written, strict=True)]
        clauses = np.where(second[:, None], -1, clauses)
    texts = as_texts(np.concatenate([opening, clauses], axis=1), rng)
    retweeted = rng.random(rows) < RETWEETS
    texts = [
        f"RT @cuenta{i % 97}: {text}" if rt else text for i, (rt, text) in enumerate(zip(retweeted, texts, strict=True))
    ]
    return LabelledTexts(texts, texts_b, *_noisy_labels(flags, rng, multi))


def _noisy_labels(flags: np.ndarray, rng: np.random.Generator, multi: bool) -> tuple[np.ndarray, float]:
    """Labels of which some are wrong, and the share of right ones."""
    rows, n_labels = flags.shape
    if multi:
        wrong = rng.random(flags.shape) < WRONG
        return (flags ^ wrong).astype(np.int64), float(1 - wrong.mean())
    wrong = rng.random(rows) < WRONG
    numbers = flags.argmax(axis=1)
    numbers[wrong] = (numbers[wrong] + rng.integers(1, n_labels, wrong.sum())) % n_labels
    return numbers, float(1 - wrong.mean())


class _Cues:
    """The words that indicate each label of a task."""

    def __init__(self, name: str, n_labels: int):
        lang = language()
        topics = np.random.default_rng(zlib.crc32(name.encode())).permutation(len(lang.words))
        n_topics = min(n_labels, len(topics) - 1)  # at least one topic has no label
        self.topic = topics[np.arange(n_labels) % n_topics]
        self.neutral = topics[n_topics:]
        # Labels of the same topic divide its words by rank.
        share, turns = np.arange(n_labels) // n_topics, -(-n_labels // n_topics)
        names = np.array(lang.classes)
        self.words = [
            {part: own[names[own] == part][turn::turns] for part in ("NOUN_M", "NOUN_F", "ADJ_M", "ADJ_F", "VERB")}
            for own, turn in zip(lang.words[self.topic], share, strict=True)
        ]
        self.shared = {part: np.flatnonzero(names == part) for part in ("DET_M", "DET_F")}
        self.connectives = np.array([lang.vocabulary.index(word) for word in _CONNECTIVES])

    def opening_topics(self, flags: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the topic of each text before the clause, int [N]: of no label, or sometimes of a wrong one."""
        topics = rng.choice(self.neutral, len(flags))
        for row in np.flatnonzero(rng.random(len(flags)) < CONFUSED):
            others = np.flatnonzero(~flags[row])
            if len(others):
                topics[row] = self.topic[rng.choice(others)]
        return topics

    def clauses(self, flags: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the clauses of each row's labels, words [N, longest], -1 after the end."""
        rows = []
        for row in flags:
            clauses = (self._clause(self.words[label], rng) for label in rng.permutation(np.flatnonzero(row)))
            rows.append([word for clause in clauses for word in clause])
        longest = max(1, *(len(words) for words in rows))
        return np.array([words + [-1] * (longest - len(words)) for words in rows], dtype=np.int32)

    def _clause(self, own: dict[str, np.ndarray], rng: np.random.Generator) -> list[int]:
        gender = "M" if rng.random() < 0.5 else "F"
        parts = [
            self.connectives,
            self.shared[f"DET_{gender}"],
            own[f"NOUN_{gender}"],
            own[f"ADJ_{gender}"],
            own["VERB"],
        ]
        return [int(words[min(int(rng.exponential(len(words) / 3)), len(words) - 1)]) for words in parts]
