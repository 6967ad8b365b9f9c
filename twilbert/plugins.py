"""A user's own loss or head, named by its import path: `package.module:name`; and who may name one.

A user's recipe and a caller's own arguments name code by themselves. A model folder, which may come from anybody,
names code that is imported only where the user trusts it.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

from twilbert.errors import UsageError

Trust = bool | frozenset[str]
"""Code of a model folder that may run: all of it, none, or what these import paths name, as the user's recipe does."""


class UntrustedCode(UsageError):
    """A model folder names code, and nobody else said that it may run."""


def require_trust(path: str, trust: Trust, what: str) -> None:
    """UntrustedCode unless `trust` has the import path that a model folder names as its `what`."""
    if trust is not True and (trust is False or path not in trust):
        raise UntrustedCode(
            f"{what}: the model folder names code to run, {path}; nothing of it was imported. Where you know and trust "
            "that code: --trust-remote-code, from Python twilbert.load(MODEL, trust_remote_code=True), or "
            f"{what}={path} in your own recipe of finetune or tune"
        )


def is_import_path(name: str) -> bool:
    """Whether `name` is meant as an import path rather than a registered name."""
    return ":" in name


def load_object(path: str, what: str) -> Any:
    """The callable that `package.module:name` names; modules in the working directory are found too.

    `what` names the setting in messages ("loss", "head"). UsageError for a wrong form, a module that is not there or
    fails to import, a name it does not have, or something that cannot be called.
    """
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise UsageError(f"{what}: {path!r}: expected package.module:name, e.g. my_losses:focal")
    module = _module(module_name, path, what)
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, [key for key in vars(module) if not key.startswith("_")], 1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        raise UsageError(f"{what}: {path}: {module_name} has no {name}{hint}")
    found = getattr(module, name)
    if not callable(found):
        raise UsageError(f"{what}: {path}: expected a function or class, found a {type(found).__name__}")
    return found


def _module(module_name: str, path: str, what: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # console scripts do not look into the working directory
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            message = f"no module {error.name}; looked in {here} and the installed packages"
        else:
            message = f"{module_name} needs {error.name}, which is not installed"
        raise UsageError(f"{what}: {path}: {message}") from error
    except Exception as error:
        raise UsageError(f"{what}: {path}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)
