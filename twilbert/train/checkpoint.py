"""Checkpoints: written by all ranks without a collective, sealed by a manifest, readable at any world size and stage.

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
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from twilbert import storage
from twilbert.errors import TwilbertError
from twilbert.train.shards import Fragment, numel

_NAME = re.compile(r"^checkpoint-(\d{6,})$")
KINDS = ("master", "exp_avg", "exp_avg_sq")


def folder_name(step: int) -> str:
    """checkpoint-000500 for step 500."""
    return f"checkpoint-{step:06d}"


def step_of(name: str) -> int | None:
    """500 for checkpoint-000500; None for other names."""
    match = _NAME.match(name)
    return int(match.group(1)) if match else None


# ---- writing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A file of a checkpoint: its path inside the folder, bytes and hex sha256."""

    file: str
    size: int
    sha256: str


def write_file(folder: str, file: str, data: bytes) -> Written:
    """Write one file of a checkpoint and return what the manifest says of it."""
    storage.write_bytes_atomic(storage.join(folder, file), data)
    return Written(file, len(data), hashlib.sha256(data).hexdigest())


def describe_file(folder: str, file: str) -> Written:
    """What the manifest says of a file that is already there."""
    path = storage.join(folder, file)
    return Written(file, storage.size(path), storage.sha256_file(path))


def places_of(fragments: list[Fragment]) -> list[dict[str, Any]]:
    """What the fragments are, in the order in which `copy_to_host` lays them out."""
    return [{"name": f.name, "shape": f.shape, "start": f.start, "length": f.length} for f in fragments]


def copy_to_host(
    fragments: list[Fragment],
    moments: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
    buffers: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The fragments' fp32 weights and moments on the CPU, one flat tensor a kind; `buffers` of that size are reused."""
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
    """A safetensors file of fragments: `places_of` them, and what `copy_to_host` made of them."""
    return save_safetensors(flats, metadata={"fragments": json.dumps(places)})


def optimizer_file(rank: int, world_size: int) -> str:
    """optimizer-00000-of-00002.safetensors for rank 0 of 2."""
    return f"optimizer-{rank:05d}-of-{world_size:05d}.safetensors"


def write_manifest(folder: str, run_id: str, step: int, files: list[Written]) -> None:
    """Seal a checkpoint: from here on it exists."""
    listed = {f.file: {"size": f.size, "sha256": f.sha256} for f in sorted(files, key=lambda f: f.file)}
    manifest = {"format": 1, "run": run_id, "step": step, "files": listed}
    storage.write_json_atomic(storage.join(folder, "manifest.json"), manifest)


# ---- finding and verifying -----------------------------------------------------------------------------------------


def verify(folder: str, run_id: str | None = None) -> str | None:
    """None when every file of the checkpoint is there and intact, else the reason why it is not a checkpoint."""
    path = storage.join(folder, "manifest.json")
    if not storage.exists(path):
        return "no manifest.json: its writing was not finished"
    try:
        manifest = storage.read_json(path)
        owner = manifest["run"]
        files = {file: (listed["size"], listed["sha256"]) for file, listed in manifest["files"].items()}
    except (TwilbertError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json is damaged ({error})"
    if run_id is not None and owner != run_id:
        return f"belongs to another run ({owner})"
    for file, (size, sha256) in files.items():
        inside = storage.join(folder, file)
        if not storage.exists(inside):
            return f"{file} is missing"
        if storage.size(inside) != size:
            return f"{file} has {storage.size(inside)} bytes, the manifest says {size}"
        if storage.sha256_file(inside) != sha256:
            return f"{file} does not match its sha256"
    return None


def steps_in(run_folder: str) -> list[int]:
    """Steps of all checkpoint folders of a run, whole or not, oldest first."""
    return sorted(step for name in storage.list_dir(run_folder) if (step := step_of(name)) is not None)


def newest(run_folder: str, run_id: str | None, say: Callable[[str], None]) -> str | None:
    """The newest checkpoint that verifies; says which were passed over and why.

    None when the run has none yet; TwilbertError when it has some and none verifies: nothing is overwritten then.
    """
    steps = steps_in(run_folder)
    for step in reversed(steps):
        folder = storage.join(run_folder, folder_name(step))
        reason = verify(folder, run_id)
        if reason is None:
            return folder
        say(f"passed over {folder_name(step)}: {reason}")
    sealed = [s for s in steps if storage.exists(storage.join(run_folder, folder_name(s), "manifest.json"))]
    if sealed:
        raise TwilbertError(
            f"{run_folder}: no checkpoint verifies (reasons above); restore one, or start another run with run.name=…"
        )
    return None


def retire(run_folder: str, written: int, keep: int, protected: set[int]) -> None:
    """After step `written` was sealed: remove all older checkpoints, sealed or not, but the newest and the protected.

    `keep` sealed ones stay, `written` among them. Later ones are left alone: a run that resumed before them found them
    damaged, so they count for nothing, and the run will write them anew.
    """
    steps = [step for step in steps_in(run_folder) if step <= written]
    sealed = [s for s in steps if storage.exists(storage.join(run_folder, folder_name(s), "manifest.json"))]
    for step in set(steps) - set(sealed[-keep:]) - protected - {written}:
        folder = storage.join(run_folder, folder_name(step))
        storage.delete(storage.join(folder, "manifest.json"))  # first: what is half removed is no checkpoint
        storage.delete(folder)


# ---- reading -------------------------------------------------------------------------------------------------------


class OptimizerReader:
    """The optimiser state of a checkpoint by parameter name and range, whatever world size and stage wrote it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._places: dict[str, list[tuple[int, int, str, int]]] = {}  # name -> (start, length, file, offset)
        for file in storage.list_dir(folder):
            if file.startswith("optimizer-"):
                offset = 0
                for place in _places(storage.join(folder, file)):
                    entry = (place["start"], place["length"], file, offset)
                    self._places.setdefault(place["name"], []).append(entry)
                    offset += place["length"]

    def restore(self, fragments: list[Fragment], moments: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> None:
        """Fill the fragments' fp32 weights and moments; TwilbertError when the checkpoint does not hold all of them."""
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
            tensors = load_safetensors(storage.read_bytes(storage.join(self.folder, file)))
            for fragment, begin, end, offset in pieces:
                at = fragment.offset + begin - fragment.start
                targets = (fragment.flat, *moments(fragment.flat))
                for kind, target in zip(KINDS, targets, strict=True):
                    source = tensors[kind].narrow(0, offset, end - begin)
                    target.detach().view(-1).narrow(0, at, end - begin).copy_(source)


def _places(path: str) -> list[dict[str, Any]]:
    """The fragments' places from a safetensors header: 8 bytes of length, then JSON."""
    system, inner = storage.filesystem(path)
    with system.open_input_file(inner) as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(size))
    return json.loads(header["__metadata__"]["fragments"])


def read_state(folder: str) -> dict[str, Any]:
    """state.json of a checkpoint."""
    return storage.read_json(storage.join(folder, "state.json"))
