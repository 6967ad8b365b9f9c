"""Imports a user's own loss or head by its import path, `package.module:name`.

Recipes and arguments of the user are trusted. A model folder may come from anybody: code that it names is imported
only where the user trusts it.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

from twilbert.errors import UsageError

Trust = bool | frozenset[str]
"""Code of a model folder that may run: all, none, or these import paths, from the user's recipe."""


class UntrustedCode(UsageError):
    """A model folder names code that the user has not trusted."""


def require_trust(path: str, trust: Trust, what: str) -> None:
    """Raise UntrustedCode unless `trust` covers the import path that a model folder names as its `what`."""
    if trust is not True and (trust is False or path not in trust):
        raise UntrustedCode(
            f"{what}: the model folder names code to run, {path}; nothing of it was imported. Where you know and trust "
            "that code: --trust-remote-code, from Python twilbert.load(MODEL, trust_remote_code=True), or "
            f"{what}={path} in your own recipe of finetune or tune"
        )


def is_import_path(name: str) -> bool:
    """Whether `name` is an import path rather than a registered name."""
    return ":" in name


def load_object(path: str, what: str) -> Any:
    """Import the callable `package.module:name`; modules in the working directory are importable too.

    `what` names the setting in messages ("loss", "head"). UsageError for a wrong form, a module that is missing or
    fails to import, a missing name, or an object that is not callable.
    """
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise UsageError(f"{what}: {path!r}: expected package.module:name, e.g. my_losses:focal")
    module = _module(module_name, path, what)
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, [key for key in vars(module) if not key.startswith("_")], 1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        raise UsageError(f"{what}: {path}: {module_name} has no {name}{hint}")
    target = getattr(module, name)
    if not callable(target):
        raise UsageError(f"{what}: {path}: expected a function or class, not {type(target).__name__}")
    return target


def _module(module_name: str, path: str, what: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # console scripts do not have the working directory in their path
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
