"""Asynchronous checkpoints: a copy to the host, then files written by a thread while training goes on.

    begin    every rank copies its fragments, rank 0 the weights too; a thread writes the files      (no collective)
    written  whether this rank's files are there; the step's own all_reduce adds the answers up
    commit   once all ranks have: rank 0 gathers the list of files, its thread writes the manifest and deletes old
             checkpoints

At most one checkpoint is being written. The threads do I/O alone; collectives belong to the training thread.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from twilbert import storage
from twilbert.hub.folder import save_model_folder
from twilbert.model.config import ModelConfig
from twilbert.optim.fragments import Fragment
from twilbert.pretraining import checkpoint
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Recipe
from twilbert.tracking.run_folder import RunFolder


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint beside the tensors."""

    step: int
    state: dict[str, Any]
    """state.json."""
    protected: set[int]
    """Steps whose checkpoints stay whatever the limit."""


class CheckpointSaver:
    """One rank's part of writing checkpoints; every method but `written` is called by all ranks at the same step."""

    def __init__(
        self, run: RunFolder, recipe: Recipe, config: ModelConfig, cleaning: str, rank: int, world_size: int
    ) -> None:
        self._run, self._recipe, self._config, self._cleaning = run, recipe, config, cleaning
        self._rank, self._world_size = rank, world_size
        self._host: dict[str, torch.Tensor] = {}  # fp32 buffers that are used again: fresh pages cost as much as a copy
        self._work: _Work | None = None
        self._snapshot: Snapshot | None = None
        self._files: list[checkpoint.Written] = []
        self.committed_step: int | None = None

    @property
    def on_its_way(self) -> bool:
        """Whether a checkpoint was begun and not yet committed, the same on every rank."""
        return self._snapshot is not None

    def begin(
        self,
        snapshot: Snapshot,
        fragments: list[Fragment],
        moments: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
        weights: Mapping[str, torch.Tensor],
    ) -> None:
        """Copy and start to write; `weights` are the model's on the CPU (rank 0 alone), not to be changed later."""
        self.finish()
        self._host = checkpoint.copy_to_host(fragments, moments, self._host)
        places = checkpoint.places_of(fragments)
        folder = storage.join(self._run.path, checkpoint.folder_name(snapshot.step))
        if self._rank == 0:
            self._run.check_owner()
            storage.delete(folder)  # what a broken attempt may have left
            storage.make_dir(folder)
        dist.barrier()
        self._snapshot, self._files = snapshot, []

        def write() -> None:
            name = checkpoint.optimizer_file(self._rank, self._world_size)
            self._files.append(checkpoint.write_file(folder, name, checkpoint.optimizer_bytes(places, self._host)))
            if self._rank == 0:
                self._files += self._write_shared(folder, snapshot, weights)

        self._work = _Work(write)

    def _write_shared(
        self, folder: str, snapshot: Snapshot, weights: Mapping[str, torch.Tensor]
    ) -> list[checkpoint.Written]:
        model = storage.join(folder, "model")
        tokenizer = self._recipe.corpus.tokenizer
        save_model_folder(model, self._config, weights, tokenizer, cleaning=self._cleaning)
        texts = {
            "state.json": json.dumps(snapshot.state, indent=1),
            "recipe.yaml": loading.dump(self._recipe),
        }
        return [
            *(checkpoint.describe_file(folder, f"model/{file}") for file in storage.list_dir(model)),
            *(checkpoint.write_file(folder, file, text.encode()) for file, text in texts.items()),
        ]

    def written(self) -> bool:
        """Whether this rank's files of the checkpoint on its way are there; raises what went wrong in writing them."""
        return self._work is not None and self._work.is_done()

    def commit(self) -> None:
        """Gather the lists of files; rank 0's thread writes the manifest. Call once `written` is true on every rank."""
        snapshot, run = self._snapshot, self._run
        assert snapshot is not None
        assert self._work is not None
        self._work.wait()
        by_rank: list[Any] = [None] * self._world_size
        dist.all_gather_object(by_rank, self._files)
        self._snapshot = None
        if self._rank:
            self.committed_step = snapshot.step
            return
        training = self._recipe.training

        def write() -> None:
            run.check_owner()
            folder = storage.join(run.path, checkpoint.folder_name(snapshot.step))
            checkpoint.write_manifest(folder, run.id, snapshot.step, [file for part in by_rank for file in part])
            self.committed_step = snapshot.step
            every = training.save_keep_every
            milestones = {step for step in checkpoint.steps_in(run.path) if every and step % every == 0}
            checkpoint.retire(run.path, snapshot.step, training.save_total_limit, snapshot.protected | milestones)

        self._work = _Work(write)

    def finish(self) -> None:
        """Wait until the checkpoint being written, if any, is committed."""
        if self.on_its_way:
            self.commit()
        if self._work is not None:
            self._work.wait()
        dist.barrier()


class _Work:
    """A function that runs in a thread; `wait` and `is_done` raise what it raised."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - carried to the training thread and raised there
            self._error = error

    def is_done(self) -> bool:
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    def wait(self) -> None:
        self._thread.join()
        self.is_done()
