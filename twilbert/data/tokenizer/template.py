"""The special tokens of a vocabulary, and where they stand around a text and around two.

    prefix A end                  <s> A </s>              [CLS] A [SEP]
    prefix A middle B end         <s> A </s></s> B </s>   [CLS] A [SEP] B [SEP]

Which tokens have a meaning is the tokenizer's word (tokenizer_config.json, special_tokens_map.json, the added tokens of
tokenizer.json); where they stand is what its post-processor does with two texts. No id is taken by its number.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers

from twilbert.errors import UsageError
from twilbert.model.special_tokens import CLS, MASK, N_SPECIAL, PAD, SEP, UNK

_ROLES = ("pad", "unk", "mask", "cls", "sep", "bos", "eos")
_USUAL = {"pad": ("[PAD]", "<pad>"), "unk": ("[UNK]", "<unk>"), "mask": ("[MASK]", "<mask>")}
UINT16_SIZE = 65_536  # entries; ids of larger vocabularies are stored as uint32


@dataclass(frozen=True)
class Template:
    """Ids of special tokens around texts; plain values, which encoded.json holds."""

    size: int
    """Ids are 0 … size - 1."""
    pad: int
    mask: int
    prefix: tuple[int, ...]
    """Before the first text; its first token is the one whose state stands for the text."""
    middle: tuple[int, ...]
    """Between two texts."""
    end: tuple[int, ...]
    """After the last text."""
    has_types: bool
    """Whether the second text, with `end`, is of token type 1; else all tokens are of type 0."""
    reserved: tuple[int, ...]
    """Ids that are never masked nor drawn in place of a word: special tokens, and ids without a token. Ascending."""
    unk: int | None = None

    @property
    def of_single(self) -> int:
        """Special tokens around one text."""
        return len(self.prefix) + len(self.end)

    @property
    def of_pair(self) -> int:
        """Special tokens around two texts."""
        return len(self.prefix) + len(self.middle) + len(self.end)

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The type in which ids are stored."""
        return np.uint16 if self.size <= UINT16_SIZE else np.uint32

    @cached_property
    def n_reserved_first(self) -> int | None:
        """Their number where the reserved ids are 0 … n - 1, as in our own vocabularies; else None."""
        return len(self.reserved) if self.reserved == tuple(range(len(self.reserved))) else None

    @cached_property
    def _is_ordinary(self) -> np.ndarray:
        flags = np.ones(self.size, bool)
        flags[list(self.reserved)] = False
        return flags

    @cached_property
    def ordinary(self) -> np.ndarray:
        """The ids that may be masked and drawn, ascending, int64."""
        return np.flatnonzero(self._is_ordinary)

    def is_ordinary(self, ids: np.ndarray) -> np.ndarray:
        """Return which of `ids` may be masked and drawn; bool, like `ids`."""
        if self.n_reserved_first is not None:
            return ids >= self.n_reserved_first
        return self._is_ordinary[ids]

    def drawn(self, numbers: np.ndarray) -> np.ndarray:
        """Return the ordinary ids of these numbers among them."""
        return self.n_reserved_first + numbers if self.n_reserved_first is not None else self.ordinary[numbers]

    @property
    def n_ordinary(self) -> int:
        """How many ids may be drawn."""
        return self.size - len(self.reserved)


def ours(size: int) -> Template:
    """Return the template of twilbert-vocab's and the released vocabularies, of `size` entries."""
    return Template(size, PAD, MASK, (CLS,), (SEP,), (SEP,), True, tuple(range(N_SPECIAL)), UNK)


def read(backend: tokenizers.Tokenizer, files: Mapping[str, bytes], where: str) -> Template:
    """Return the template of a tokenizer whose folder holds `files`; UsageError where one cannot be trained with it."""
    roles = _roles(files, backend)
    reserved = {token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special}
    reserved |= set(roles.values())
    for role in ("mask", "pad"):
        if role not in roles:
            raise UsageError(
                f"{where}: has no {role} token (no {role}_token in tokenizer_config.json); choose the tokenizer "
                "of a masked language model"
            )
    size = 1 + max(backend.get_vocab().values())
    prefix, middle, end, has_types = _around(backend, where)
    reserved |= {*prefix, *middle, *end}
    reserved |= set(range(size)) - set(backend.get_vocab().values())
    return Template(
        size, roles["pad"], roles["mask"], prefix, middle, end, has_types, tuple(sorted(reserved)), roles.get("unk")
    )


def _roles(files: Mapping[str, bytes], backend: tokenizers.Tokenizer) -> dict[str, int]:
    """The ids of the tokens that the folder names by what they are for."""
    named: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        values = json.loads(files.get(file, b"{}"))
        named |= {role: values[f"{role}_token"] for role in _ROLES if values.get(f"{role}_token")}
    tokens = {role: token["content"] if isinstance(token, Mapping) else token for role, token in named.items()}
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for role, usual in _USUAL.items():
        if role not in tokens and (there := [token for token in usual if token in special]):
            tokens[role] = there[0]
    ids = {role: backend.token_to_id(str(token)) for role, token in tokens.items()}
    return {role: token_id for role, token_id in ids.items() if token_id is not None}


def _around(
    backend: tokenizers.Tokenizer, where: str
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]:
    """What the post-processor puts before, between and after two texts, and whether their types differ."""
    texts = ((one, backend.encode(one, add_special_tokens=False).ids) for one in string.ascii_letters)
    text, own = next(((one, ids) for one, ids in texts if ids), ("", []))
    pair, single = backend.encode(text, text), backend.encode(text)
    sides = pair.sequence_ids
    if 0 not in sides or 1 not in sides:
        raise UsageError(f"{where}: has no token for any letter of a to z; choose another tokenizer")
    first, second = sides.index(0), sides.index(1)
    after_first, after_second = first + sides.count(0), second + sides.count(1)
    prefix, middle, end = pair.ids[:first], pair.ids[after_first:second], pair.ids[after_second:]
    if not prefix or not middle or not end or single.ids != [*prefix, *own, *end]:
        raise UsageError(
            f"{where}: puts no special tokens around texts and between two, or others around one than around two; "
            "expected a tokenizer of an encoder like BERT or RoBERTa"
        )
    types = pair.type_ids
    split = [0] * second + [1] * (len(types) - second)
    if any(types) and types != split:
        raise UsageError(f"{where}: its token types {types} of two texts are not 0 for the first and 1 for the second")
    return tuple(prefix), tuple(middle), tuple(end), any(types)
