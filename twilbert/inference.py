"""Find and load models."""

from __future__ import annotations

from twilbert import storage
from twilbert.errors import UsageError


def find_model(name: str, runs: str = "runs") -> str:
    """The model folder that `name` means: a model folder, a checkpoint, a run's folder or its name under `runs`.

    A run's model is its best by held-out loss, else its last. UsageError, saying where was looked, when there is none.
    """
    candidates = [name, storage.join(name, "model"), storage.join(runs, name, "model")]
    for candidate in map(storage.absolute, candidates):
        if storage.exists(storage.join(candidate, "config.json")):
            return candidate
    looked = "\n".join(f"  {storage.absolute(candidate)}" for candidate in candidates)
    raise UsageError(f"{name}: no model; looked for config.json in\n{looked}\ngive a model folder, checkpoint or run")
