"""Where tests find what does not belong to them: the repository's own files, and golden outputs of the original."""

from pathlib import Path

TOP = Path(__file__).parents[1]
GOLDEN = TOP / "tests" / "golden"
"""Small numeric copies of the original's outputs, kept with the tests."""

SHARED = TOP.parent / "shared"
"""Files of the original and real data that may not be copied here; tests that read them skip where it is absent."""
