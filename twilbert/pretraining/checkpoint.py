"""Checkpoints: written by all ranks without collectives, committed by a manifest, readable at any world size and stage.

checkpoint-000500/
    manifest.json     written last: files, sizes, sha256; without it, or not matching, it is not a checkpoint
    model/            a model folder that loads alone
    optimizer-RRRRR-of-NNNNN.safetensors   each rank's fragments: fp32 weights and moments by parameter name
    state.json        step, epoch, run id, best and skipped steps, sums since the latest row of metrics
    recipe.yaml
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from twilbert import storage
from twilbert.errors import TwilbertError
from twilbert.model.tensor_files import require_finite
from twilbert.optim.fragments import Fragment, numel
from twilbert.parsing import check_record, read_checked, read_record
from twilbert.tracking.run_folder import folder_name, step_of

KINDS = ("master", "exp_avg", "exp_avg_sq")


_MANIFEST = "manifest.json"
_NEEDED = {"state.json", "recipe.yaml", "model/config.json", "model/model.safetensors"}
_INSIDE = re.compile(r"(?:model/)?(?!\.\.?$)[\w.-]+", re.ASCII)  # what a manifest may list: no way out of the folder


@dataclass(frozen=True)
class Listed:
    """The size and checksum of a file, as listed in the manifest."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    run: str
    step: int
    files: dict[str, Listed]

    @property
    def optimizer_files(self) -> list[str]:
        """One file per rank, in the order of ranks."""
        return sorted(file for file in self.files if file.startswith("optimizer-"))


@dataclass(frozen=True)
class _State:
    """The part of state.json that every resume reads."""

    step: int
    best: dict[str, float] | None
    skipped: list[int]


@dataclass(frozen=True)
class _Place:
    """A fragment in an optimizer file: `length` elements of the flattened parameter, from `start`."""

    name: str
    start: Annotated[int, Field(ge=0)]
    length: Annotated[int, Field(ge=0)]


# ---- writing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A file of a checkpoint: its path inside the folder, size in bytes and hex SHA-256."""

    file: str
    size: int
    sha256: str


def write_file(folder: str, file: str, data: bytes) -> Written:
    """Write one file of a checkpoint and return its entry for the manifest."""
    storage.write_bytes_atomic(storage.join(folder, file), data)
    return Written(file, len(data), hashlib.sha256(data).hexdigest())


def describe_file(folder: str, file: str) -> Written:
    """The manifest entry of a file that is already there."""
    path = storage.join(folder, file)
    return Written(file, storage.size(path), storage.sha256_file(path))


def places_of(fragments: list[Fragment]) -> list[dict[str, Any]]:
    """Name, shape and range of each fragment, in the order of `copy_to_host`."""
    return [{"name": f.name, "shape": f.shape, "start": f.start, "length": f.length} for f in fragments]


def copy_to_host(
    fragments: list[Fragment],
    moments: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
    buffers: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Copy fp32 weights and moments to the CPU, one flat tensor per kind; `buffers` of that size are reused."""
    total = sum(f.length for f in fragments)
    flats: dict[str, torch.Tensor] = {}
    for k, kind in enumerate(KINDS):
        flat = (buffers or {}).get(kind)
        if flat is None or flat.numel() != total:
            pinned = any(f.flat.is_cuda for f in fragments)
            flat = torch.empty(total, dtype=torch.float32, pin_memory=pinned)
        offset = 0
        for f in fragments:
            source = f.values if k == 0 else f.of(moments(f.flat)[k - 1])
            flat.narrow(0, offset, f.length).copy_(source, non_blocking=True)
            offset += f.length
        flats[kind] = flat
    if any(f.flat.is_cuda for f in fragments):
        torch.cuda.synchronize()
    return flats


def optimizer_bytes(places: list[dict[str, Any]], flats: dict[str, torch.Tensor]) -> bytes:
    """The content of an optimizer file: a safetensors file of `flats` with `places` in its metadata."""
    return save_safetensors(flats, metadata={"fragments": json.dumps(places)})


def optimizer_file(rank: int, world_size: int) -> str:
    """optimizer-00000-of-00002.safetensors for rank 0 of 2."""
    return f"optimizer-{rank:05d}-of-{world_size:05d}.safetensors"


def write_manifest(folder: str, run_id: str, step: int, files: list[Written]) -> None:
    """Commit a checkpoint: without its manifest it does not count."""
    listed = {f.file: {"size": f.size, "sha256": f.sha256} for f in sorted(files, key=lambda f: f.file)}
    manifest = {"format": 1, "run": run_id, "step": step, "files": listed}
    storage.write_json_atomic(storage.join(folder, _MANIFEST), manifest)


# ---- finding and verifying -----------------------------------------------------------------------------------------


def verify(folder: str, run_id: str | None = None) -> str | None:
    """None when every file of the checkpoint is present and intact, else the reason why it is not."""
    if not storage.exists(storage.join(folder, _MANIFEST)):
        return f"no {_MANIFEST}: its writing was not finished"
    try:
        manifest = read_record(storage.join(folder, _MANIFEST), Manifest)
        if run_id is not None and manifest.run != run_id:
            return f"belongs to another run ({manifest.run:.80})"
        ranks = manifest.optimizer_files
        whole = {optimizer_file(rank, len(ranks)) for rank in range(len(ranks))} or {optimizer_file(0, 1)}
        lacking = sorted((_NEEDED | whole) - manifest.files.keys())
        if lacking:
            return f"{_MANIFEST} does not list {lacking[0]}"
        for file, listed in manifest.files.items():
            if not _INSIDE.fullmatch(file):
                return f"{_MANIFEST} lists {file!r:.80}, which is no file of a checkpoint"
            inside = storage.join(folder, file)
            if not storage.exists(inside):
                return f"{file} is missing"
            if storage.is_folder(inside):
                return f"{file} is a folder"
            if storage.size(inside) != listed.size:
                return f"{file} has {storage.size(inside)} bytes, the manifest says {listed.size}"
            if storage.sha256_file(inside) != listed.sha256:
                return f"{file} does not match its sha256"
    except TwilbertError as error:
        return f"{_MANIFEST} is damaged ({error})"
    except OSError as error:
        return f"cannot be read ({error})"
    return None


def steps_in(run_folder: str) -> list[int]:
    """Steps of all checkpoint folders of a run, complete or not, in ascending order."""
    return sorted(step for name in storage.list_dir(run_folder) if (step := step_of(name)) is not None)


def newest(run_folder: str, run_id: str | None, say: Callable[[str], None]) -> str | None:
    """The newest checkpoint that verifies; reports which were skipped and why.

    None when the run has none yet; TwilbertError when it has some and none verifies: nothing is overwritten then.
    """
    steps = steps_in(run_folder)
    for step in reversed(steps):
        folder = storage.join(run_folder, folder_name(step))
        reason = verify(folder, run_id)
        if reason is None:
            return folder
        say(f"skipped {folder_name(step)}: {reason}")
    if any(_is_committed(run_folder, step) for step in steps):
        raise TwilbertError(
            f"{run_folder}: no checkpoint verifies (reasons above); restore one, or start another run with run.name=…"
        )
    return None


def retire(run_folder: str, written: int, keep: int, protected: set[int]) -> None:
    """Delete the checkpoints up to step `written` but the newest `keep` committed ones and the `protected` ones.

    Later ones are left alone: a run that resumed before them had skipped them as damaged and will write them again.
    """
    steps = [step for step in steps_in(run_folder) if step <= written]
    committed = [step for step in steps if _is_committed(run_folder, step)]
    for step in set(steps) - set(committed[-keep:]) - protected - {written}:
        folder = storage.join(run_folder, folder_name(step))
        storage.delete(storage.join(folder, _MANIFEST))  # first: half a checkpoint must not count
        storage.delete(folder)


def _is_committed(run_folder: str, step: int) -> bool:
    return storage.exists(storage.join(run_folder, folder_name(step), _MANIFEST))


# ---- reading -------------------------------------------------------------------------------------------------------


class OptimizerReader:
    """Reads the optimiser state of a checkpoint by parameter name and range, for any world size and stage.

    Only files in the manifest are read; TwilbertError where one has another shape.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._places: dict[str, list[tuple[int, int, str, int]]] = {}  # name -> (start, length, file, offset)
        self._elements: dict[str, int] = {}  # file -> of each kind
        for file in read_record(storage.join(folder, _MANIFEST), Manifest).optimizer_files:
            offset = 0
            for place in _places(storage.join(folder, file)):
                self._places.setdefault(place.name, []).append((place.start, place.length, file, offset))
                offset += place.length
            self._elements[file] = offset

    def restore(self, fragments: list[Fragment], moments: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> None:
        """Fill the fragments' fp32 weights and moments.

        TwilbertError when the checkpoint does not hold all of them, or holds numbers that are not finite.
        """
        wanted: dict[str, list[tuple[Fragment, int, int, int]]] = {}  # file -> (fragment, begin, end, offset of begin)
        for fragment in fragments:
            covered = 0
            for start, length, file, offset in self._places.get(fragment.name, []):
                begin, end = max(start, fragment.start), min(start + length, fragment.start + fragment.length)
                if begin < end:
                    wanted.setdefault(file, []).append((fragment, begin, end, offset + begin - start))
                    covered += end - begin
            if covered != fragment.length:
                raise TwilbertError(
                    f"{self.folder}: holds {covered} of the {fragment.length} elements of {fragment.name} that are "
                    f"needed ({numel(fragment.shape)} in all); the checkpoint is of another model"
                )
        for file, pieces in wanted.items():
            tensors = self._tensors(file)
            for fragment, begin, end, offset in pieces:
                at = fragment.offset + begin - fragment.start
                targets = (fragment.flat, *moments(fragment.flat))
                for kind, target in zip(KINDS, targets, strict=True):
                    source = tensors[kind].narrow(0, offset, end - begin)
                    require_finite(storage.join(self.folder, file), {f"{kind} of {fragment.name}": source})
                    target.detach().view(-1).narrow(0, at, end - begin).copy_(source)

    def _tensors(self, file: str) -> dict[str, torch.Tensor]:
        """kind → values [elements] of a file; TwilbertError where they do not fit its fragments."""
        path = storage.join(self.folder, file)
        try:
            tensors = load_safetensors(storage.read_bytes(path))
        except SafetensorError as error:
            raise TwilbertError(f"{path}: not readable as safetensors ({error}); restore it") from error
        expected = (torch.float32, (self._elements[file],))
        if any(kind not in tensors or (tensors[kind].dtype, tuple(tensors[kind].shape)) != expected for kind in KINDS):
            raise TwilbertError(
                f"{path}: expected {', '.join(KINDS)} of {expected[1][0]} fp32 numbers each; restore it"
            )
        return tensors


def _places(path: str) -> list[_Place]:
    """The fragments' places from a safetensors header: 8 bytes of length, then JSON."""
    system, inner = storage.filesystem(path)
    with system.open_input_file(inner) as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > storage.size(path):
            raise TwilbertError(f"{path}: not a safetensors file; restore it")
        header = check_record(stream.read(size), dict[str, Any], path)
    metadata = header.get("__metadata__")
    listed = metadata.get("fragments") if isinstance(metadata, dict) else metadata
    return check_record(str(listed), list[_Place], path)


def read_state(folder: str) -> dict[str, Any]:
    """state.json of a checkpoint."""
    return read_checked(storage.join(folder, "state.json"), _State)
