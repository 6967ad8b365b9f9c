"""The model's code in its folder, with which transformers opens it where twilbert is not installed.

The two entry files and every module that they import are copied, with relative imports in place of those from twilbert,
which transformers follows when it loads a folder's code.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from twilbert import __version__

CONFIGURATION = "configuration_twilbert"
MODELING = "modeling_twilbert"
_ENTRIES = {"twilbert.hub.configuration": CONFIGURATION, "twilbert.hub.modeling": MODELING}
_PACKAGE = Path(__file__).parent.parent
_IMPORT = re.compile(r"^from (twilbert\.[\w.]+) import ", re.MULTILINE)
_HEADER = (
    "# Copied from twilbert {version} (Apache-2.0), for transformers' trust_remote_code.\n"
    "# With twilbert installed, `import twilbert.hub` serves instead.\n"
)


@functools.cache
def files() -> dict[str, bytes]:
    """Return the folder's Python files by name."""
    texts: dict[str, str] = {}
    pending = list(_ENTRIES)
    while pending:
        module = pending.pop()
        if module not in texts:
            source = _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")
            texts[module] = _IMPORT.sub(lambda match: f"from .{_flat_name(match[1])} import ", source)
            pending += _IMPORT.findall(source)
    header = _HEADER.format(version=__version__)
    return {f"{_flat_name(module)}.py": (header + text).encode() for module, text in sorted(texts.items())}


def _flat_name(module: str) -> str:
    return _ENTRIES.get(module) or f"twilbert_{module.rpartition('.')[2]}"
