"""Cards of the evaluation pages: sampled pairs as the model saw and judged them, texts token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twilbert import report
from twilbert.data.objectives import MASK, N_SPECIAL, ROP_NONE, ROP_REPLY_SECOND
from twilbert.evaluation.pairs import Judged, MaskedWord
from twilbert.report import Bar, Html, Token

_WORD_START, _WORD_GOES_ON = "▁", "##"
ORDER_NAMES = ("reply first", "tweet first")  # by ROP label
_DARKEST = 12.0  # nats at which a token's shade is full


class Pieces:
    """Tokens as a reader knows them, the marks of word starts (SentencePiece) or goings-on (WordPiece) taken off."""

    def __init__(self, token: Callable[[int], str], judged: Sequence[Judged]) -> None:
        self._token = token
        met = {i for sample in judged for i in sample.ids} | {i for s in judged for w in s.words for i, _ in w.top}
        self._marks_starts = any(token(i).startswith(_WORD_START) for i in met if i >= N_SPECIAL)

    def split(self, token_id: int) -> tuple[str, bool]:
        """The token's text, and whether it starts a word."""
        if token_id < N_SPECIAL:
            return self._token(token_id), True
        return piece_of(self._token(token_id), self._marks_starts)

    def name(self, token_id: int) -> str:
        """The token by itself: with + in front when it goes on a word."""
        text, starts = self.split(token_id)
        return text if starts else f"+{text}"


def piece_of(token: str, marks_starts: bool) -> tuple[str, bool]:
    """A token's text without its mark, and whether it starts a word; the mark alone is a space (␣)."""
    if token.startswith(_WORD_START):
        return token[1:] or "␣", True
    if not marks_starts and token.startswith(_WORD_GOES_ON) and len(token) > 2:
        return token[2:], False
    return token, not marks_starts


_LEGEND = (
    Token("word", "mask", "[MASK]"),
    Token("word", "random", "saw: other"),
    Token("word", "kept", "as it is"),
)


def pairs(judged: Sequence[Judged], token: Callable[[int], str]) -> Html:
    """A card for each pair with both its orders; `token` names an id."""
    pieces = Pieces(token, judged)
    note = report.join(
        [
            "The true words; underlined the masked ones, and under each what the model saw in its place, with ✓ where "
            "its best guess is the truth; below, its likeliest words and their probabilities, the truth marked ◂ "
            "(#n: its rank); +x goes on the word before it. The words of a pair are masked anew in each order.",
            report.token_strip(_LEGEND),
        ]
    )
    by_row: dict[int, list[Judged]] = {}
    for sample in judged:
        by_row.setdefault(sample.sample_id // 2, []).append(sample)
    cards = [
        report.card(f"Pair {row + 1:,}", report.grid([_sample(one, pieces) for one in samples], "columns"))
        for row, samples in by_row.items()
    ]
    return report.section("Sampled pairs", *cards, note=note)


def _sample(sample: Judged, pieces: Pieces) -> Html:
    order = {ROP_NONE: "Tweet", ROP_REPLY_SECOND: "Tweet, then reply"}.get(sample.rop_label, "Reply, then tweet")
    parts = [report.tag("h4", order)]
    if sample.reply_second is not None and sample.rop_label != ROP_NONE:
        parts.append(report.tag("p", report.join(["Judged: ", verdict(sample.rop_label, sample.reply_second)])))
    words = {word.position: word for word in sample.words}
    parts.append(report.token_strip(_strip(sample.ids, words, pieces)))
    parts.append(report.grid([_word(word, pieces) for word in sample.words], "cards"))
    return report.tag("div", report.join(parts))


def verdict(label: int, reply_second: float) -> Html:
    """What the model says of an order, how sure it is, and whether it is right."""
    guess = int(reply_second > 0.5)
    sure, is_right = max(reply_second, 1 - reply_second), guess == label
    sign = report.tag("b", "✓ right" if is_right else "✗ wrong", kind="good" if is_right else "bad")
    return report.join([f"{ORDER_NAMES[guess]}, {report.percent(sure)} sure ", sign])


def _strip(ids: Sequence[int], words: Mapping[int, MaskedWord], pieces: Pieces) -> list[Token]:
    tokens = []
    for position, token_id in enumerate(ids):
        text, starts = pieces.split(token_id)
        word = words.get(position)
        if word is None:
            tokens.append(Token(text, "special" if token_id < N_SPECIAL else "", starts_word=starts))
            continue
        mark = "✓" if word.truth_rank == 1 else ""
        note = f"probability of the truth {report.percent(word.truth_probability)}, rank {word.truth_rank:,}"
        tokens.append(Token(text, _kind(word), _saw(word, pieces), mark, note, starts))
    return tokens


def _kind(word: MaskedWord) -> str:
    return "mask" if word.shown == MASK else "kept" if word.shown == word.truth else "random"


def _saw(word: MaskedWord, pieces: Pieces) -> str:
    return {"mask": "[MASK]", "kept": "as it is", "random": f"saw: {pieces.name(word.shown)}"}[_kind(word)]


def _word(word: MaskedWord, pieces: Pieces) -> Html:
    """The model's top predictions at one masked position, the truth beside them even when it is not among them."""
    entries = [Bar(pieces.name(guess), share, guess == word.truth) for guess, share in word.top]
    if word.truth not in [guess for guess, _ in word.top]:
        entries.append(Bar(f"{pieces.name(word.truth)} #{word.truth_rank:,}", word.truth_probability, True))
    head = report.tag("p", report.join([report.tag("b", pieces.name(word.truth)), f" · {_saw(word, pieces)}"]))
    return report.tag("div", report.join([head, report.bars(entries)]), kind="cell")


def texts(lines: Sequence[Mapping[str, Any]]) -> Html:
    """A card for each text, its tokens shaded by how little the model expects them; `lines` as in --examples."""
    marks_starts = any(piece.startswith(_WORD_START) for line in lines for piece in line["pieces"])

    def strip(line: Mapping[str, Any]) -> Html:
        tokens = []
        for piece, value in zip(line["pieces"], line["log_likelihoods"], strict=True):
            text, starts = piece_of(piece, marks_starts)
            note = f"{value:.2f} nats, probability {report.percent(math.exp(value))}"
            tokens.append(Token(text, note=note, starts_word=starts, shade=-value / _DARKEST))
        return report.card(f"Text {line['row']:,}: {line['per_token']:.2f} nats a token", report.token_strip(tokens))

    note = "Each token is hidden alone in its turn: the stronger its colour, the less the model expects it."
    return report.section("Sampled texts", *map(strip, lines), note=note)
