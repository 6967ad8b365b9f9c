"""Convert the released models' vocabulary, a file of BERT word pieces, to a tokenizer folder.

    vocab file ─ check ─▶ clean ▸ split CJK ▸ lower-case ▸ strip accents ▸ split punctuation ▸ longest match ─▶ folder

BERT's algorithm, by the `tokenizers` library. The released vocabulary marks the pieces that start a word with `##`, the
wrong way round, and a third of it (upper case, accents) never occurs; the released models were trained with exactly
this. Cleaning (data/cleaning.py) is not part of tokenizer.json, so that any text gets the ids of their training.
"""

from __future__ import annotations

import hashlib

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from twilbert import outputs, storage
from twilbert.data.cleaning import FIRST, named
from twilbert.data.tokenizer import tokenizer as runtime
from twilbert.data.tokenizer.sentencepiece import TOKENIZER_CONFIG, add_special_tokens
from twilbert.errors import UsageError
from twilbert.model.special_tokens import SPECIAL_TOKENS

SETTINGS_FORMAT = 1
CONTINUATION = "##"
LONGEST_WORD = 200  # characters; a longer word is [UNK]


def read_vocabulary(path: str) -> list[str]:
    """Read the entries of a vocabulary file in the order of their ids; UsageError naming an invalid line."""
    path = storage.absolute(path)
    if not storage.exists(path) or storage.is_folder(path):
        raise UsageError(f"{path}: no such file; expected a vocabulary, one word piece a line")
    try:
        text = storage.read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 ({error}); expected a vocabulary, one word piece a line") from error
    entries = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if tuple(entries[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
        raise UsageError(
            f"{path}: its first five lines are not {' '.join(SPECIAL_TOKENS)}; not a vocabulary of TWilBERT"
        )
    if len(entries) > runtime.MAX_VOCAB_SIZE:
        raise UsageError(f"{path}: {len(entries):,} entries, at most {runtime.MAX_VOCAB_SIZE:,} can be stored")
    lines: dict[str, int] = {}
    for number, entry in enumerate(entries, start=1):
        if not entry:
            raise UsageError(f"{path}, line {number}: empty; every line must hold one word piece, since lines are ids")
        if entry in lines:
            raise UsageError(f"{path}, line {number}: {entry!r} is already in line {lines[entry]}; entries must differ")
        lines[entry] = number
    return entries


def from_vocabulary(entries: list[str]) -> Tokenizer:
    """Return the tokenizer of a BERT vocabulary whose first five entries are the special tokens."""
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    tokenizer = Tokenizer(
        models.WordPiece(
            vocabulary,
            unk_token="[UNK]",
            max_input_chars_per_word=LONGEST_WORD,
            continuing_subword_prefix=CONTINUATION,
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUATION, cleanup=False)
    add_special_tokens(tokenizer)
    return tokenizer


def save_wordpiece_folder(vocab_file: str, out: str) -> runtime.Tokenizer:
    """Write the tokenizer folder of a BERT vocabulary file, whole or not at all, and return its tokenizer.

    UsageError when the file is no such vocabulary, or `out` is not empty.
    """
    entries = read_vocabulary(vocab_file)
    content = from_vocabulary(entries).to_str(pretty=False).encode()
    settings = {
        "format": SETTINGS_FORMAT,
        "type": "wordpiece",
        "vocab_size": len(entries),
        "lowercase": True,
        "strip_accents": True,
        "byte_fallback": False,
        "cleaning": named(FIRST).record,
        runtime.SUM: hashlib.sha256(content).hexdigest(),
    }
    with outputs.new_folder(out, "convert") as folder:
        storage.write_bytes_atomic(storage.join(folder, runtime.TOKENIZER_FILE), content)
        storage.write_json_atomic(storage.join(folder, runtime.CONFIG_FILE), TOKENIZER_CONFIG)
        storage.write_json_atomic(storage.join(folder, runtime.SETTINGS_FILE), settings)
    return runtime.Tokenizer.load(out)
