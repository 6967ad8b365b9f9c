r"""Convert a SentencePiece model to a `tokenizers` tokenizer (tokenizer.json) with the same ids.

    text ─ normaliser ─▶ ▁words ─ pre-tokeniser ─▶ one word at a time ─ BPE or unigram ─▶ ids

- The file includes the corpus' cleaning where it is TWilBERT's and regular expressions can express it (five entities,
  links, mentions, `…`, white space), so that any program that reads the folder cleans alike; unescaping all of HTML
  stays in data/cleaning.py.
- BPE: SentencePiece merges the neighbours whose union has the best score, the leftmost first. The same happens when
  every split of a piece into two known pieces is a merge, ordered by the piece's score.
- Unigram: the same Viterbi search, but SentencePiece adds scores in float32: segmentations of equal score
  ("..." + "." or "." + "...") can differ.
- An unknown character becomes its UTF-8 bytes (byte fallback), so that [UNK] never appears.
- `url` and `user` are one token each at the start of a word, and ordinary letters inside one (burla).
- A leading space becomes the word mark ▁; without one only the text's start gets the mark, so that in "mi [MASK]." the
  full stop is the ordinary one.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from twilbert.data.cleaning import FIRST, TWILBERT
from twilbert.model.special_tokens import SPECIAL_TOKENS

WORD_MARK = "▁"
WHOLE_WORDS = ("▁url", "▁user")
_SPACE = r"[\s\x{1c}-\x{1f}]"  # what Python's str.split() takes as white space
_WORD_CHARACTER = r"[\p{L}\p{N}_]"  # Python's \w; this library's own \w also takes combining marks
_LINKS = {  # and mentions: what they become, by the name of the rules
    FIRST: {r"https?://[^\s\x{1c}-\x{1f}]+": "url", rf"@+{_WORD_CHARACTER}+": "user"},
    TWILBERT.name: {
        rf"(?i:https?://|pic\.twitter\.com/|(?<!{_WORD_CHARACTER}|[.@-])t\.co/)[^\s\x{{1c}}-\x{{1f}}]+": "url",
        rf"@+{_WORD_CHARACTER}(?:{_WORD_CHARACTER}|[\x{{300}}-\x{{36f}}\x{{fe0e}}\x{{fe0f}}])*": "user",
    },
}
# The ampersand last: "&amp;lt;" is "&lt;" after one pass, not "<".
_ENTITIES = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#39;", "'"), ("&amp;", "&"))

TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "padding_side": "right",
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
}


def text_normaliser(
    *, lowercase: bool = False, strip_accents: bool = False, cleaning: str = TWILBERT.name
) -> normalizers.Sequence:
    """Return the normaliser of texts for training sentencepiece and comparing with it.

    With both options off it changes nothing in text cleaned by the rules `cleaning`, except entities escaped more than
    once and a literal ▁, which becomes a space.
    """
    return normalizers.Sequence([*_cleaning(cleaning), *_folding(lowercase, strip_accents)])


def from_sentencepiece(
    model: bytes,
    model_type: str,
    *,
    lowercase: bool = False,
    strip_accents: bool = False,
    cleaning: str = TWILBERT.name,
) -> Tokenizer:
    """Convert a SentencePiece model ("bpe" or "unigram") that twilbert-vocab trained on texts of the rules `cleaning`.

    It must have SPECIAL_TOKENS as ids 0..4, byte fallback and identity normalisation; ValueError otherwise.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces: list[tuple[str, float]] = [
        (processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.vocab_size())
    ]
    if tuple(piece for piece, _ in pieces[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
        raise ValueError(f"the SentencePiece model's first pieces must be {' '.join(SPECIAL_TOKENS)}")
    pre_tokenizer: Any = pre_tokenizers.Metaspace(replacement=WORD_MARK, prepend_scheme="first", split=True)
    if model_type == "bpe":
        mergeable = {
            piece: score
            for i, (piece, score) in enumerate(pieces)
            if i >= len(SPECIAL_TOKENS) and not processor.is_byte(i) and piece not in WHOLE_WORDS
        }
        vocabulary = {piece: i for i, (piece, _) in enumerate(pieces)}
        core: Any = models.BPE(vocabulary, _merges(mergeable), unk_token="[UNK]", byte_fallback=True)
    elif model_type == "unigram":
        core = models.Unigram(pieces, unk_id=SPECIAL_TOKENS.index("[UNK]"), byte_fallback=True)
        # The search may use any piece of the vocabulary: split what spells a special token or a byte's name.
        pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizer,
                pre_tokenizers.Split(Regex(r"\[(?=(?:PAD|UNK|MASK|CLS|SEP)\])"), "isolated"),
                pre_tokenizers.Split(Regex(r"<(?=0x[0-9A-F]{2}>)"), "isolated"),
            ]
        )
    else:
        raise ValueError(f"model_type {model_type!r}: bpe or unigram")
    tokenizer = Tokenizer(core)
    tokenizer.normalizer = normalizers.Sequence(
        [*_cleaning(cleaning), *_folding(lowercase, strip_accents), *_marking()]
    )
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(WORD_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    add_special_tokens(tokenizer)
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=True) for word in WHOLE_WORDS])
    return tokenizer


def add_special_tokens(tokenizer: Tokenizer) -> None:
    """Add SPECIAL_TOKENS, which must be ids 0..4, and the template of a text and a pair with them."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])


def with_cleaning(content: bytes, cleaning: str, *, remove_rt: bool = False) -> bytes:
    """Return a tokenizer.json with the rules `cleaning` in it, for programs without data/cleaning.py.

    `remove_rt` removes the word RT too, as in fine-tuning.
    """
    spec = json.loads(content)
    normalizer = spec.get("normalizer") or {"type": "Sequence", "normalizers": []}
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    ours = _as_json(_cleaning(cleaning))
    if steps[: len(ours)] != ours:  # word pieces: ▁ is an ordinary character, and control characters would join words
        ours = ours[:-1] + _as_json([normalizers.Replace(Regex(f"{_SPACE}+"), " ")])
    if steps[: len(ours)] == ours:
        steps = steps[len(ours) :]
    retweet = _as_json([normalizers.Replace(Regex(rf"(?<!{_WORD_CHARACTER})RT(?!{_WORD_CHARACTER})"), " ")])
    if remove_rt and steps[:1] != retweet:
        steps = retweet + steps
    spec["normalizer"] = {"type": "Sequence", "normalizers": [*ours, *steps]}
    return json.dumps(spec, ensure_ascii=False).encode()


def _as_json(steps: list[Any]) -> list[dict[str, Any]]:
    holder = Tokenizer(models.BPE())
    holder.normalizer = normalizers.Sequence(steps)
    return json.loads(holder.to_str())["normalizer"]["normalizers"]


def encodes_words_alone(spec: dict[str, Any]) -> bool:
    """Return whether the tokenizer of this tokenizer.json encodes a text as its words, one after another.

    True for `from_sentencepiece` and BERT's WordPiece: no step depends on neighbours across a space.
    """
    normaliser, pre_tokenizer = spec.get("normalizer") or {}, spec.get("pre_tokenizer") or {}
    if normaliser.get("type") == "BertNormalizer":
        return pre_tokenizer.get("type") == "BertPreTokenizer"
    first = (pre_tokenizer.get("pretokenizers") or [pre_tokenizer])[0]
    metaspace = {"type": "Metaspace", "replacement": WORD_MARK, "prepend_scheme": "first", "split": True}
    marking = _as_json(_marking())
    return first == metaspace and (normaliser.get("normalizers") or [])[-len(marking) :] == marking


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every split of every piece into two pieces: best piece first, the shorter left part first within a piece."""
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def _cleaning(cleaning: str) -> list[Any]:
    """The rules of data/cleaning.py as normalisers, in their order; of others than TWilBERT's none.

    The pre-tokeniser marks a text's start only where the first character is still the original one: a replacement of
    several characters there includes a space.
    """
    mark = normalizers.Replace(WORD_MARK, " ")
    if cleaning not in _LINKS:
        return [mark]
    composed = [] if cleaning == FIRST else [normalizers.NFC()]
    return [
        normalizers.Replace(Regex(r"\A&(?=(?:lt|gt|quot|#39|amp);)"), " &"),
        *(normalizers.Replace(entity, character) for entity, character in _ENTITIES),
        *composed,
        *(normalizers.Replace(Regex(pattern), word) for pattern, word in _LINKS[cleaning].items()),
        normalizers.Replace("…", " "),
        mark,
    ]


def _folding(lowercase: bool, strip_accents: bool) -> list[Any]:
    """Casing and accents, then single spaces and none at the end."""
    steps: list[Any] = [normalizers.Lowercase()] if lowercase else []
    if strip_accents:  # ñ becomes n too, as in BERT's uncased models
        # Combining marks at a text's start: see _cleaning.
        steps += [
            normalizers.Replace(Regex(r"\A\p{Mn}+"), " "),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.NFC(),
        ]
    return [*steps, normalizers.Replace(Regex(f"{_SPACE}+"), " "), normalizers.Strip(left=False, right=True)]


def _marking() -> list[Any]:
    """Spaces to word marks. Whole words are matched before the pre-tokeniser marks the text's start."""
    return [
        normalizers.Replace(" ", WORD_MARK),
        *(normalizers.Replace(Regex(rf"\A{word.removeprefix(WORD_MARK)}"), word) for word in WHOLE_WORDS),
    ]
