"""After `import twilbert`, transformers' Auto classes know its models, though importing it loads neither.

A finder looks out for the two modules in which those classes begin; once one has been imported, by whomever, what
belongs to it is registered. Where it has been imported already, that happens at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def _register_config() -> None:
    """Alone: the models' Auto classes import AutoConfig's module, and do not exist while that is being imported."""
    importlib.import_module("twilbert.model.transformers_config").register()


def _register_models() -> None:
    importlib.import_module("twilbert.model.auto")


_AFTER: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
}


def register_with_transformers() -> None:
    """Register the models now or when transformers' Auto classes are first imported; twice does nothing more."""
    waiting = [name for name in _AFTER if name not in sys.modules]
    if waiting and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(set(waiting)))
    for name, register in _AFTER.items():
        if name not in waiting:
            register()


class _Finder(MetaPathFinder):
    """Finds each watched module once, as the others would, and hands it on with a loader that registers afterwards."""

    def __init__(self, watched: set[str]) -> None:
        self._watched = watched

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._watched:
            return None
        self._watched.discard(fullname)  # and so the search below does not end here again
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, _AFTER[fullname])
        return spec


class _Loader(Loader):
    """A module's own loader, then `after`."""

    def __init__(self, inner: Loader, after: Callable[[], None]) -> None:
        self._inner = inner
        self._after = after

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._inner
        self._inner.exec_module(module)
        self._after()
