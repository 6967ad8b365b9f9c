"""A language of conversations whose entropies, the losses of a perfect model, are known exactly.

A thread has a topic and a kind. A text is a Markov chain of words: the next word's class depends on this word's class
and on the style of the text, the word itself on this word and the topic,

    p(next | word, topic, style) = G_style[class(word), class(next)] · W_topic[word, next]

where W mixes Zipf's law with a few favourite successors of each word. A tweet has the style `statement` or `question`,
its answers `reply`; in ambiguous threads all texts are `neutral`. Every statement has an OPEN word, every question "¿"
and "?", every reply an ANSWER word, and no other style does; every text has a noun, which determines the topic. So the
other words of a pair determine topic, order and styles, and a hidden word has the chain's posterior,
p(word | left, right) ∝ p(word | left) · p(right | word).

Words may be written in other ways (drawn out, misspelt), each of one word alone: this adds the same entropy to every
figure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from twilbert.data.synthetic import words as generator_words

AMBIGUOUS = 0.06  # threads whose texts have no style and so no order
QUESTIONS = 0.4  # of the other tweets
VARIED = 0.04  # words written in another way, if there is one
_FAVOURITES = (0.55, 0.25, 0.12, 0.08)  # shares of a word's favourite successors of a class
_FAVOURED = 0.7  # share of successors that are favourites; half that after function words
_FUNCTION = {"DET_M", "DET_F", "PREP", "CONJ", "COMMA", "QMARK", "MENTION", "START"}
STYLES = ("statement", "question", "reply", "neutral")

_BODY = {
    "DET_M": {"NOUN_M": 1.0},
    "DET_F": {"NOUN_F": 1.0},
    "NOUN_M": {"ADJ_M": 0.30, "VERB": 0.20, "PREP": 0.18, "COMMA": 0.05, "CONJ": 0.07, "FINISH": 0.20},
    "NOUN_F": {"ADJ_F": 0.30, "VERB": 0.20, "PREP": 0.18, "COMMA": 0.05, "CONJ": 0.07, "FINISH": 0.20},
    "ADJ_M": {"VERB": 0.18, "PREP": 0.22, "CONJ": 0.15, "FINISH": 0.45},
    "ADJ_F": {"VERB": 0.18, "PREP": 0.22, "CONJ": 0.15, "FINISH": 0.45},
    "VERB": {"DET_M": 0.36, "DET_F": 0.36, "ADV": 0.28},
    "ADV": {"DET_M": 0.3, "DET_F": 0.3, "PREP": 0.4},
    "PREP": {"DET_M": 0.5, "DET_F": 0.5},
    "COMMA": {"CONJ": 0.4, "DET_M": 0.3, "DET_F": 0.3},
    "CONJ": {"DET_M": 0.3, "DET_F": 0.3, "VERB": 0.4},
    "HASHTAG": {"HASHTAG": 0.2, "URL": 0.3, "END": 0.5},
    "URL": {"END": 1.0},
    "EMOJI": {"EMOJI": 0.2, "END": 0.8},
    "DOT": {"END": 1.0},
}
_OF_STYLE = {
    "statement": {
        "START": {"OPEN": 0.88, "MENTION": 0.12},
        "MENTION": {"OPEN": 1.0},
        "OPEN": {"DET_M": 0.35, "DET_F": 0.35, "VERB": 0.3},
        "FINISH": {"HASHTAG": 0.35, "URL": 0.2, "EMOJI": 0.12, "DOT": 0.18, "END": 0.15},
        "DOT": {"HASHTAG": 0.2, "URL": 0.15, "END": 0.65},
    },
    "question": {
        "START": {"QMARK": 0.85, "MENTION": 0.15},
        "MENTION": {"QMARK": 1.0},
        "QMARK": {"QWORD": 1.0},
        "QWORD": {"VERB": 0.7, "DET_M": 0.15, "DET_F": 0.15},
        "FINISH": {"QEND": 1.0},
        "QEND": {"URL": 0.15, "EMOJI": 0.15, "HASHTAG": 0.2, "END": 0.5},
    },
    "reply": {
        "START": {"MENTION": 0.75, "ANSWER": 0.25},
        "MENTION": {"MENTION": 0.2, "ANSWER": 0.8},
        "ANSWER": {"COMMA": 0.3, "DET_M": 0.15, "DET_F": 0.15, "VERB": 0.25, "CONJ": 0.15},
        "FINISH": {"EMOJI": 0.3, "LAUGH": 0.25, "EXCL": 0.2, "END": 0.25},
        "LAUGH": {"EMOJI": 0.3, "END": 0.7},
        "EXCL": {"EMOJI": 0.3, "LAUGH": 0.1, "END": 0.6},
    },
    "neutral": {
        "START": {"VAYA": 0.7, "MENTION": 0.3},
        "MENTION": {"VAYA": 1.0},
        "VAYA": {"DET_M": 0.3, "DET_F": 0.3, "VERB": 0.3, "COMMA": 0.1},
        "FINISH": {"DOT": 0.4, "EMOJI": 0.2, "END": 0.4},
    },
}


@dataclass(frozen=True)
class Language:
    """The words and their chains. A topic has S words: the shared ones, then its own.

    chains[topic][style] is [S+1, S+1]: from each word, or (last) the start of a text, to each word, or (last) its end.
    words[topic] [S] are a topic's words as indices into `vocabulary`.
    """

    vocabulary: tuple[str, ...]
    classes: tuple[str, ...]  # of each word of the vocabulary
    words: np.ndarray  # [topics, S]
    chains: np.ndarray  # [topics, styles, S+1, S+1]
    topic_shares: np.ndarray  # [topics]
    variants: tuple[tuple[str, ...], ...] = field(repr=False)  # other ways to write each word

    def texts(self) -> Iterator[tuple[int, int, float]]:
        """Yield (topic, style, share of all texts of pairs)."""
        clear = 1 - AMBIGUOUS
        of_style = (clear * (1 - QUESTIONS) / 2, clear * QUESTIONS / 2, clear / 2, AMBIGUOUS)
        for topic, share in enumerate(self.topic_shares):
            for style, part in enumerate(of_style):
                yield topic, style, float(share) * part


@lru_cache(maxsize=1)
def language() -> Language:
    """Return the language, which is always the same."""
    topics = generator_words.topics()
    shared = [(word, name) for name, words in generator_words.SHARED.items() for word in words]
    own = [[(word, name) for name, words in topic.items() for word in words] for topic in topics]
    entries = [*shared, *(entry for part in own for entry in part)]
    vocabulary, classes = zip(*entries, strict=True)
    n_shared, n_own = len(shared), len(own[0])
    words = np.array(
        [[*range(n_shared), *range(n_shared + t * n_own, n_shared + (t + 1) * n_own)] for t in range(len(topics))]
    )
    rng = np.random.default_rng(20_201_028)
    names = [classes[w] for w in words[0]]  # all topics have their classes in the same order
    chains = np.stack([_chains(names, rng) for _ in topics])
    weights = 1 / (np.arange(len(topics)) + 4.0)
    return Language(vocabulary, classes, words, chains, weights / weights.sum(), _variants(vocabulary))


def _variants(vocabulary: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Other ways to write each word, without those of two words."""
    forms = [dict.fromkeys(generator_words.variants(word)) for word in vocabulary]
    uses = Counter(form for of_word in forms for form in of_word)
    uses.update(vocabulary)
    return tuple(tuple(form for form in of_word if uses[form] == 1) for of_word in forms)


def _chains(names: list[str], rng: np.random.Generator) -> np.ndarray:
    """One topic's chains [styles, S+1, S+1]; names[i] is the class of word i."""
    size = len(names)
    members = {name: np.flatnonzero(np.array(names) == name) for name in dict.fromkeys(names)}
    zipf = {name: (p := 1 / (np.arange(len(m)) + 1.5)) / p.sum() for name, m in members.items()}
    rows = [*names, "START"]
    favoured = np.array([_FAVOURED / 2 if name in _FUNCTION else _FAVOURED for name in rows])
    within = np.zeros((size + 1, size))  # W: the successor among the words of each class
    for follower, at in members.items():
        share = np.tile(zipf[follower], (size + 1, 1))
        if len(at) > len(_FAVOURITES):
            # Drawn without replacement in proportion to Zipf's law (Gumbel's trick), so that frequent words stay so.
            order = np.argsort(-(np.log(share) + rng.gumbel(size=share.shape)), axis=1, kind="stable")
            best = order[:, : len(_FAVOURITES)]
            share *= 1 - favoured[:, None]
            extra = favoured[:, None] * np.array(_FAVOURITES)
            np.put_along_axis(share, best, np.take_along_axis(share, best, 1) + extra, 1)
        within[:, at] = share
    chains = np.zeros((len(STYLES), size + 1, size + 1))
    for style, style_name in enumerate(STYLES):
        rules = _BODY | _OF_STYLE[style_name]
        for row, name in enumerate(rows):
            for follower, p in _with_finish(rules.get(name, {}), rules["FINISH"]).items():
                if follower == "END":
                    chains[style, row, size] = p
                else:
                    chains[style, row, members[follower]] = p * within[row, members[follower]]
    return chains


def _with_finish(rule: dict[str, float], finish: dict[str, float]) -> dict[str, float]:
    """A rule with FINISH replaced by the style's own."""
    out = {name: p for name, p in rule.items() if name != "FINISH"}
    for name, p in finish.items():
        out[name] = out.get(name, 0.0) + p * rule.get("FINISH", 0.0)
    return out


@dataclass(frozen=True)
class Figures:
    """Entropies of a word of a cleaned pair in nats per word, in closed form.

    Words are those of the pairs that `prepare` keeps; mentions (`user`), links (`url`), emoji and marks are words too.

    unigram: entropy of a word without context, the loss of the best context-free predictor.
    perfect: entropy of a word given all other words of its pair, the least loss on a hidden word.
    span:    the same where the word lies in a hidden span of 1, 2 or 3 words (span masking; each length has as many
             words), given all words outside it: nearer to what masked training can reach. Ignores other hidden spans.
    best_rop_accuracy: the best accuracy on the order of (tweet, reply) and (reply, tweet).
    words_per_text: mean length.

    A word may be several tokens (misspelt ones mostly are): entropies per token are then lower.
    """

    unigram: float
    perfect: float
    span: float
    best_rop_accuracy: float
    words_per_text: float


@lru_cache(maxsize=1)
def figures() -> Figures:
    """Compute the exact figures of the language."""
    lang = language()
    size = lang.words.shape[1]
    counts = np.zeros(len(lang.vocabulary))  # expected occurrences in a text
    spans = [(left, n + 1 - left) for n in (1, 2, 3) for left in range(1, n + 1)]
    nats = dict.fromkeys(spans, 0.0)
    mass = dict.fromkeys(spans, 0.0)
    for topic, style, share in lang.texts():
        chain = lang.chains[topic, style]
        between = chain[:size, :size]
        visits = np.linalg.solve(np.eye(size) - between.T, chain[size, :size])  # absorbing chain: v = start (I - T)^-1
        np.add.at(counts, lang.words[topic], share * visits)
        starts = np.append(visits, 1.0)
        # [k]: k + 1 steps to a word from the last known word, and from it to the next known word (or the text's end).
        to_word, from_word = [chain[:, :size]], [chain[:size]]
        for _ in range(2):
            to_word.append(to_word[-1] @ between)
            from_word.append(between @ from_word[-1])
        log_to, log_from = [_xlogx(m) for m in to_word], [_xlogx(m).sum(1) for m in from_word]
        around = [to_word[0] @ m for m in from_word]
        log_around = [_xlogx(m).sum(1) for m in around]
        for left, right in spans:
            ends = from_word[right - 1].sum(1)
            h = -(starts @ log_to[left - 1]) @ ends - (starts @ to_word[left - 1]) @ log_from[right - 1]
            nats[left, right] += share * float(h + starts @ log_around[left + right - 2])
            mass[left, right] += share * float(starts @ around[left + right - 2].sum(1))
    p = counts / counts.sum()
    written = float(sum(p[i] * _variant_entropy(len(forms)) for i, forms in enumerate(lang.variants)))
    hidden = {span: nats[span] / mass[span] for span in spans}
    by_length = [np.mean([hidden[left, n + 1 - left] for left in range(1, n + 1)]) for n in (1, 2, 3)]
    return Figures(
        unigram=float(-_xlogx(p).sum()) + written,
        perfect=hidden[1, 1] + written,
        span=float(np.mean(by_length)) + written,
        best_rop_accuracy=1 - AMBIGUOUS / 2,
        words_per_text=float(counts.sum()),
    )


def _variant_entropy(n: int) -> float:
    """Entropy of the spelling of a word with `n` other forms."""
    return 0.0 if n == 0 else float(-_xlogx(np.array([1 - VARIED])).sum() - VARIED * np.log(VARIED / n))


def _xlogx(x: np.ndarray) -> np.ndarray:
    """x ln x, 0 at 0."""
    return x * np.log(np.where(x > 0, x, 1.0))
