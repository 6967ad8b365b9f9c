"""The special tokens that every vocabulary begins with, and their ids."""

from __future__ import annotations

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]")
N_SPECIAL = len(SPECIAL_TOKENS)
"""Ids from here on are ordinary tokens, which masking may choose."""
PAD, UNK, MASK, CLS, SEP = range(N_SPECIAL)
