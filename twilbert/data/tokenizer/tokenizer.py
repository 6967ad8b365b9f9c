"""The runtime tokenizer: tokenizer.json of the `tokenizers` library, in training as in inference.

A folder holds tokenizer.json (all that encoding needs), tokenizer_config.json (which tokens are special) and, of ours,
twilbert_tokenizer.json (the settings of its training); one of twilbert-vocab also spm.model, its source. Those of the
released models (BERT word pieces, wordpiece.py) differ in tokenizer.json alone. Any other fast tokenizer of a masked
language model will do: its special ids and their places are its own (template.py).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers

from twilbert import storage
from twilbert.data.tokenizer import template as templates
from twilbert.data.tokenizer.sentencepiece import TOKENIZER_CONFIG, encodes_words_alone
from twilbert.data.tokenizer.template import Template
from twilbert.errors import TwilbertError, UsageError, is_panic

MAX_VOCAB_SIZE = 65_535  # of our own vocabularies: ids are stored as uint16
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
SETTINGS_FILE = "twilbert_tokenizer.json"
SUM = "tokenizer_sha256"  # the settings' entry with the SHA-256 of tokenizer.json; 0.2.0 wrote none
STUCK = "the tokenizer fails on a text"
_SLOW_FILES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "bpe.codes")
_MAX_CACHED_WORDS = 400_000  # some 60 MB; beyond, the cache is emptied


class Tokenizer:
    """Texts to ids and back; can be pickled. No text becomes a special token: a tweet may contain "[MASK]"."""

    def __init__(self, files: dict[str, bytes], where: str = TOKENIZER_FILE) -> None:
        """Read a folder's files by name, with tokenizer.json; UsageError, naming `where`, when it is damaged."""
        self._files = files
        self._where = where
        content = files[TOKENIZER_FILE]
        with explained(where, UsageError, "not a readable tokenizer"):
            backend = tokenizers.Tokenizer.from_buffer(content)
            spec = json.loads(content)
            written = json.loads(files.get(SETTINGS_FILE, b"{}")).get(SUM)
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        _check_ids(backend.get_vocab(), where)
        with explained(where, UsageError, "not a usable tokenizer"):
            self.template: Template = templates.read(backend, files, where)
        self._words = _WordCache(self._encode_whole, self.template.dtype) if encodes_words_alone(spec) else None
        self.vocab_size: int = self.template.size
        self.fingerprint: str = hashlib.sha256(content).hexdigest()
        if written not in (None, self.fingerprint):
            raise UsageError(
                f"{where}: damaged or edited: its SHA-256 is not that in {SETTINGS_FILE}; restore it, or, where the "
                f"change is meant, take the entry {SUM} out"
            )

    @classmethod
    def load(cls, path: str) -> Tokenizer:
        """Load the tokenizer of a folder (twilbert-vocab's, or a model's); UsageError when missing or damaged."""
        path = storage.absolute(path)
        files = {}
        for name in (TOKENIZER_FILE, CONFIG_FILE, SPECIAL_FILE, SETTINGS_FILE):
            if storage.is_file(storage.join(path, name)):
                files[name] = storage.read_bytes(storage.join(path, name))
        if TOKENIZER_FILE not in files:
            raise UsageError(f"{path}: {_missing(path)}")
        return cls(files, where=storage.join(path, TOKENIZER_FILE))

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self._files, self._where)

    @functools.cached_property
    def is_ours(self) -> bool:
        """Whether its special tokens are those of twilbert-vocab and the released models."""
        return self.template == templates.ours(self.vocab_size)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of its training (twilbert_tokenizer.json); empty for a third-party tokenizer."""
        return json.loads(self._files.get(SETTINGS_FILE, b"{}"))

    def save(self, folder: str) -> None:
        """Write the files of transformers' AutoTokenizer, and the settings, into a model's folder."""
        config = {CONFIG_FILE: json.dumps(TOKENIZER_CONFIG, indent=1).encode()}
        for name, content in ({**config, **self._files} if self.is_ours else self._files).items():
            storage.write_bytes_atomic(storage.join(folder, name), content)

    def encode_batch(
        self, texts: Sequence[str | None] | pa.Array | pa.ChunkedArray, max_len: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode texts, each truncated to `max_len` tokens, without special tokens; None is a text without tokens.

        Returns (ids [total tokens] of `template.dtype`, offsets int64 [texts + 1]): text i has
        ids[offsets[i]:offsets[i + 1]].
        """
        arrow = _as_arrow(texts)
        if self._words is not None:
            ids, offsets = self._words.encode(arrow)
        else:
            ids, offsets = self._encode_whole([text or "" for text in arrow.to_pylist()])
        return (ids, offsets) if max_len is None else _truncate(ids, offsets, max_len)

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text, without special tokens, not truncated."""
        return self._encode_whole([text])[0].tolist()

    def encode_masked(self, text: str) -> list[int]:
        """Return the ids of one text in which special tokens ("[MASK]") are themselves; else as `encode`."""
        reading = tokenizers.Tokenizer.from_buffer(self._files[TOKENIZER_FILE])
        reading.no_truncation()
        reading.no_padding()
        with explained(self._where, TwilbertError, STUCK):
            return reading.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`, one space between words."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str:
        """Return the token with this id; IndexError when there is none."""
        token = self._backend.id_to_token(int(token_id))
        if token is None:
            raise IndexError(f"token id {token_id}: the vocabulary has {self.vocab_size} entries")
        return token

    def _encode_whole(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        with explained(self._where, TwilbertError, STUCK):
            encoded = [one.ids for one in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
        ids = np.fromiter(itertools.chain.from_iterable(encoded), self.template.dtype, int(offsets[-1]))
        if self.template.unk is not None and not self.is_ours:  # a search by score may use any piece, special ones too
            ids[~self.template.is_ordinary(ids)] = self.template.unk
        return ids, offsets


class _WordCache:
    """Encodes each distinct word once (8 times the speed of encoding whole texts), for tokenizers that allow it.

    Arrow and numpy split, deduplicate and join words; Python handles the distinct words of a batch, never a token.
    """

    def __init__(self, encode: Callable[[list[str]], tuple[np.ndarray, np.ndarray]], dtype: Any) -> None:
        self._encode, self._dtype = encode, dtype
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._slots: dict[str, int] = {}
        self._ids = np.empty(0, self._dtype)
        self._offsets = np.zeros(1, np.int64)

    def encode(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        words = pc.split_pattern(texts, " ")  # pyright: ignore[reportAttributeAccessIssue]
        distinct = words.values.dictionary_encode()
        with self._lock:
            slots = self._slots_of(distinct.dictionary.to_pylist())
            word_slots = slots[distinct.indices.to_numpy(zero_copy_only=False)]
            starts, lengths = self._offsets[word_slots], np.diff(self._offsets)[word_slots]
            ids, word_offsets = gather(self._ids, starts, lengths)
        return ids, word_offsets[words.offsets.to_numpy()]

    def _slots_of(self, words: list[str]) -> np.ndarray:
        """The cache entries of words; new words are encoded."""
        if len(self._slots) + len(words) > _MAX_CACHED_WORDS:
            self._clear()
        new = [word for word in words if word not in self._slots]
        if new:
            ids, offsets = self._encode(new)
            self._slots.update(zip(new, range(len(self._slots), len(self._slots) + len(new)), strict=True))
            self._offsets = np.concatenate([self._offsets, self._offsets[-1] + offsets[1:]])
            self._ids = np.concatenate([self._ids, ids])
        return np.fromiter(map(self._slots.__getitem__, words), np.int64, len(words))


def gather(ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate the runs ids[start : start + length]; return (flat ids, int64 offsets [runs + 1])."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    positions = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    return ids[positions], offsets


def _truncate(ids: np.ndarray, offsets: np.ndarray, max_len: int) -> tuple[np.ndarray, np.ndarray]:
    """A ragged array with every run truncated to `max_len`."""
    lengths = np.diff(offsets)
    if not len(lengths) or lengths.max() <= max_len:
        return ids, offsets
    return gather(ids, offsets[:-1], np.minimum(lengths, max_len))


def _check_ids(vocabulary: dict[str, int], where: str) -> None:
    """UsageError where most ids have no token: a few gaps are usual."""
    largest = max(vocabulary.values(), default=-1)
    if not 0 <= largest < 2 * len(vocabulary):
        raise UsageError(f"{where}: its ids do not go from 0 to {len(vocabulary) - 1} but to {largest}; restore it")


def _missing(path: str) -> str:
    """Why a folder has no tokenizer that can be used, and the remedy."""
    if not storage.exists(path):
        return f"no such tokenizer folder; make one with twilbert-vocab CORPUS --out {path}"
    slow = [name for name in _SLOW_FILES if storage.is_file(storage.join(path, name))]
    if slow:
        return (
            f"a slow tokenizer alone ({', '.join(slow)}, no {TOKENIZER_FILE}); write the fast one beside it: python -c "
            f"\"from transformers import AutoTokenizer as T; T.from_pretrained('{path}').save_pretrained('{path}')\""
        )
    return f"the folder has no {TOKENIZER_FILE}; make one with twilbert-vocab CORPUS --out {path}"


@contextlib.contextmanager
def explained(where: str, kind: type[TwilbertError], what: str) -> Iterator[None]:
    """Raise an error or panic of the tokenizers library in the body as a `kind` with the remedy."""
    try:
        yield
    except TwilbertError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise kind(f"{where}: {what} ({error}); make one with twilbert-vocab, or copy the folder anew") from error


def _as_arrow(texts: Sequence[str | None] | pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        arrow: Any = texts
        return arrow.combine_chunks() if isinstance(texts, pa.ChunkedArray) else arrow
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError as error:
        raise TwilbertError(
            f"a text holds half a character (a lone surrogate) and cannot be encoded: {error}"
        ) from error
