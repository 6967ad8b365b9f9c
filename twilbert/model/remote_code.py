"""The model's code as two files that need torch and transformers alone, for folders opened without twilbert.

    errors config transformers_config ─▶ configuration_twilbert.py
    own_code layers memory packing encoder heads classifier auto ─▶ modeling_twilbert.py

Made from the package's own modules, statement by statement, so that there is no second copy to keep: what the classes
of AUTO_MAP reach is taken, imports between the modules fall away. transformers loads them with trust_remote_code.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from twilbert import __version__

CONFIGURATION, MODELING = "configuration_twilbert", "modeling_twilbert"
_PACKAGE = Path(__file__).parent.parent
_SOURCES = {
    CONFIGURATION: ("errors.py", "model/config.py", "model/transformers_config.py"),
    MODELING: (
        "own_code.py",
        "model/layers.py",
        "model/memory.py",
        "model/packing.py",
        "model/encoder.py",
        "model/heads.py",
        "model/classifier.py",
        "model/auto.py",
    ),
}
_WANTED = (
    "TWilBertConfig",
    "TWilBertModel",
    "TWilBertForMaskedLM",
    "TWilBertForSequenceClassification",
    "TWilBertForTokenClassification",
)
_HEADER = '''"""TWilBERT {what}, for transformers without the package twilbert (trust_remote_code=True).

Generated from the modules of twilbert {version} (Apache-2.0): change those, not this file.
"""

from __future__ import annotations
'''


@dataclass(frozen=True)
class _Piece:
    """A statement of a module with the comments above it: an import, or one that makes names."""

    file: str
    source: str
    makes: frozenset[str]
    uses: frozenset[str]
    is_import: bool


@functools.cache
def files() -> dict[str, bytes]:
    """The two files by name; ValueError when two modules use one name for different things."""
    pieces = [piece for file, names in _SOURCES.items() for name in names for piece in _pieces(file, name)]
    reached = _reached(pieces)
    owners: dict[str, str] = {}
    for piece in reached:
        for name in () if piece.is_import else piece.makes:
            if name in owners:
                raise ValueError(f"{name} is defined in two modules of the model; rename one")
            owners[name] = piece.file
    return {f"{file}.py": _text(file, [p for p in reached if p.file == file], owners).encode() for file in _SOURCES}


def _pieces(file: str, name: str) -> Iterable[_Piece]:
    text = (_PACKAGE / name).read_text(encoding="utf-8")
    lines, done = text.splitlines(), 0
    nodes = ast.parse(text).body
    for node, after in zip(nodes, [*nodes[1:], None], strict=True):
        if isinstance(node, ast.Expr):  # a docstring, which its statement has taken; or registration
            done = node.end_lineno or done
            continue
        end = node.end_lineno or 0
        if isinstance(node, ast.Assign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            end = after.end_lineno or end
        source = "\n".join(lines[done:end]).strip("\n")
        done = end
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports(file, node)
            continue
        used = frozenset(part.id for part in ast.walk(node) if isinstance(part, ast.Name))
        yield _Piece(file, source, frozenset(_made(node)), used, False)


def _imports(file: str, node: ast.Import | ast.ImportFrom) -> Iterable[_Piece]:
    module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    if module == "__future__" or module.split(".")[0] == "twilbert":
        return
    for alias in node.names:
        one = ast.ImportFrom(module, [alias], 0) if isinstance(node, ast.ImportFrom) else ast.Import([alias])
        made = alias.asname or alias.name.split(".")[0]
        yield _Piece(file, ast.unparse(one), frozenset([made]), frozenset(), True)


def _made(node: ast.stmt) -> Iterable[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]


def _reached(pieces: list[_Piece]) -> list[_Piece]:
    """The pieces that _WANTED need, in their order."""
    makers: dict[str, list[_Piece]] = {}
    for piece in pieces:
        for name in piece.makes:
            makers.setdefault(name, []).append(piece)
    found: set[_Piece] = set()
    waiting = [(name, "") for name in _WANTED]
    while waiting:
        name, file = waiting.pop()
        for piece in makers.get(name, []):
            if piece not in found and (not piece.is_import or piece.file == file):
                found.add(piece)
                waiting += [(used, piece.file) for used in piece.uses]
    return [piece for piece in pieces if piece in found]


def _text(file: str, pieces: list[_Piece], owners: dict[str, str]) -> str:
    imports = sorted({piece.source for piece in pieces if piece.is_import}, key=lambda line: (line[0] == "f", line))
    if file == MODELING:
        used = {name for piece in pieces for name in piece.uses}
        shared = "".join(f"    {name},\n" for name in sorted(used) if owners.get(name) == CONFIGURATION)
        imports.append(f"\nfrom .{CONFIGURATION} import (\n{shared})")
    text = _HEADER.format(what="configuration" if file == CONFIGURATION else "models", version=__version__)
    text += "\n" + "\n".join(imports) + "\n"
    was_block = True
    for piece in pieces:
        if not piece.is_import:
            is_block = "\n" in piece.source
            text += ("\n\n" if is_block or was_block else "") + piece.source + "\n"
            was_block = is_block
    return text
