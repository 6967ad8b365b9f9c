"""The examples of the evaluation pages: sampled pairs with the model's predictions, texts token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twilbert.data.stream.masking import ROP_NONE, ROP_REPLY_SECOND
from twilbert.evaluation.pairs import MaskedWord, SamplePredictions
from twilbert.model.special_tokens import MASK, N_SPECIAL
from twilbert.report.html import percent

_WORD_START, _CONTINUATION = "▁", "##"
ORDER_NAMES = ("reply first", "tweet first")  # by ROP label
_DARKEST = 12.0  # nats at which a token's shade is full


@dataclass(frozen=True)
class Token:
    """One token of a text, as parts.html.jinja shows it."""

    text: str
    starts_word: bool
    kind: str = ""
    """A class of style.css: special, mask, random, kept, or nothing."""
    below: str = ""
    """A word under the token: the model's input in its place."""
    note: str = ""
    """The token's tooltip."""
    shade: float | None = None
    """From 0 to 1: how strongly the token is coloured."""


class Pieces:
    """Tokens without the marks of word starts (SentencePiece) or continuations (WordPiece)."""

    def __init__(self, token: Callable[[int], str], samples: Sequence[SamplePredictions]) -> None:
        self._token = token
        ids = {i for sample in samples for i in sample.ids} | {i for s in samples for w in s.words for i, _ in w.top}
        self._marks_starts = any(token(i).startswith(_WORD_START) for i in ids if i >= N_SPECIAL)

    def split(self, token_id: int) -> tuple[str, bool]:
        """Return the token's text, and whether it starts a word."""
        if token_id < N_SPECIAL:
            return self._token(token_id), True
        return piece_of(self._token(token_id), self._marks_starts)

    def name(self, token_id: int) -> str:
        """Return the token's text, with + in front when it continues a word."""
        text, starts = self.split(token_id)
        return text if starts else f"+{text}"


def piece_of(token: str, marks_starts: bool) -> tuple[str, bool]:
    """Return a token's text without its mark, and whether it starts a word; the mark alone is a space (␣)."""
    if token.startswith(_WORD_START):
        return token[1:] or "␣", True
    if not marks_starts and token.startswith(_CONTINUATION) and len(token) > 2:
        return token[2:], False
    return token, not marks_starts


def pairs(samples: Sequence[SamplePredictions], token: Callable[[int], str]) -> dict[int, list[dict[str, Any]]]:
    """Return for the number of a pair its samples, one for each order; `token` gives an id's token."""
    pieces = Pieces(token, samples)
    by_row: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        by_row.setdefault(sample.sample_id // 2 + 1, []).append(_sample(sample, pieces))
    return by_row


def _sample(sample: SamplePredictions, pieces: Pieces) -> dict[str, Any]:
    label, share = sample.rop_label, sample.reply_second
    return {
        "order": {ROP_NONE: "Tweet", ROP_REPLY_SECOND: "Tweet, then reply"}.get(label, "Reply, then tweet"),
        "predicted_order": None if share is None or label == ROP_NONE else predicted_order(label, share),
        "words": _words(_tokens(sample, pieces)),
        "masked": [(pieces.name(word.truth), _input(word, pieces), _bars(word, pieces)) for word in sample.words],
    }


def predicted_order(label: int, reply_second: float) -> tuple[str, float, bool]:
    """Return the predicted order, its probability, and whether it is right."""
    guess = int(reply_second > 0.5)
    return ORDER_NAMES[guess], max(reply_second, 1 - reply_second), guess == label


def _words(tokens: Iterable[Token]) -> list[list[Token]]:
    """Group tokens by words."""
    words: list[list[Token]] = []
    for token in tokens:
        if token.starts_word or not words:
            words.append([])
        words[-1].append(token)
    return words


def _tokens(sample: SamplePredictions, pieces: Pieces) -> list[Token]:
    words = {word.position: word for word in sample.words}
    tokens = []
    for position, token_id in enumerate(sample.ids):
        text, starts = pieces.split(token_id)
        word = words.get(position)
        if word is None:
            tokens.append(Token(text, starts, "special" if token_id < N_SPECIAL else ""))
            continue
        below = _input(word, pieces) + (" ✓" if word.truth_rank == 1 else "")
        note = f"probability of the truth {percent(word.truth_probability)}, rank {word.truth_rank:,}"
        tokens.append(Token(text, starts, _kind(word), below, note))
    return tokens


def _kind(word: MaskedWord) -> str:
    return "mask" if word.shown == MASK else "kept" if word.shown == word.truth else "random"


def _input(word: MaskedWord, pieces: Pieces) -> str:
    """Return the model's input in the word's place."""
    return {"mask": "[MASK]", "kept": "unchanged", "random": f"input: {pieces.name(word.shown)}"}[_kind(word)]


def _bars(word: MaskedWord, pieces: Pieces) -> list[tuple[str, float, bool]]:
    """Return (word, probability, whether it is the truth) of the top predictions, and of the truth in any case."""
    bars = [(pieces.name(guess), share, guess == word.truth) for guess, share in word.top]
    if not any(is_truth for _, _, is_truth in bars):
        bars.append((f"{pieces.name(word.truth)} #{word.truth_rank:,}", word.truth_probability, True))
    return bars


def texts(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return texts with their tokens, shaded by how unlikely they are to the model; `lines` as in --examples."""
    marks_starts = any(piece.startswith(_WORD_START) for line in lines for piece in line["pieces"])

    def token(piece: str, value: float) -> Token:
        note = f"{value:.2f} nats, probability {percent(math.exp(value))}"
        return Token(*piece_of(piece, marks_starts), note=note, shade=min(1.0, -value / _DARKEST))

    return [
        {
            "row": line["row"],
            "per_token": line["per_token"],
            "words": _words(map(token, line["pieces"], line["log_likelihoods"])),
        }
        for line in lines
    ]
