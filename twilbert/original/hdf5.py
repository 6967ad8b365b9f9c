"""Read the original's weight files: Keras 2.2 HDF5, written by another program and passed from hand to hand.

    root, or /model_weights ─ attribute layer_names ─▶ groups ─ attribute weight_names ─▶ datasets of floats

Nothing is taken on trust. Only hard links are followed, so that no other file or object is opened in the place of one
of this; names are looked up part by part; and a dataset is read only when it holds the plain floats it declares, in
this file, uncompressed, as Keras writes them. Every fault ends in one TwilbertError that names the thing.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

from twilbert.errors import TwilbertError, UsageError

_MAX_NAMES_BYTES = 2**20  # of one attribute; Keras splits lists of names at 64 kB
_MAX_PARTS = 256  # of a list of names that Keras has split
_MAX_DIMENSIONS = 4
# What h5py raises for damaged structures; it gives no narrower promise.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class StoredTensor:
    """A dataset that has been looked at and not yet read."""

    file: str
    name: str
    """As Keras named it, e.g. "sentence_encoder_block_1/kernel:0"."""
    shape: tuple[int, ...]
    _dataset: Any

    def read(self) -> Tensor:
        """The numbers, fp32; TwilbertError when they cannot be read or are not finite."""
        out = torch.empty(self.shape, dtype=torch.float32)
        with _explained(self.file, self.name):
            self._dataset.read_direct(out.numpy())
        if not all(math.isfinite(end.item()) for end in torch.aminmax(out)):  # nan comes through; faster than isfinite
            raise TwilbertError(f"{self.file}: {self.name} holds numbers that are not finite; get the file again")
        return out


@dataclass(frozen=True)
class StoredLayer:
    """Tensors that follow each other under one layer's name."""

    group: str
    """The group they lie in: the layer's own, or that of a model inside the model."""
    name: str
    tensors: tuple[StoredTensor, ...]

    @property
    def kind(self) -> str:
        """The name without Keras' running number: "dense" of "dense_4"."""
        return re.sub(r"_\d+$", "", self.name)

    @property
    def number(self) -> int:
        """That running number: larger for a layer made later; 0 where there is none."""
        found = re.search(r"_(\d{1,9})$", self.name)
        return int(found[1]) if found else 0


@dataclass(frozen=True)
class KerasFile:
    """An open weight file: what it holds, in its own order."""

    path: str
    groups: tuple[str, ...]
    """All layers of the outermost model, those without weights too."""
    layers: tuple[StoredLayer, ...]
    """Those with weights."""


@contextlib.contextmanager
def open_keras(path: str) -> Iterator[KerasFile]:
    """The file at `path`, open as long as the context.

    UsageError when there is none or it is no HDF5 at all; TwilbertError when it is cut off, damaged, or holds what
    a Keras weight file does not: links out of their place, objects, sizes it does not have.
    """
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file; give a weight file of the original on this machine (.hdf5, .h5)")
    if not h5py.is_hdf5(path):
        raise UsageError(f"{path}: not an HDF5 file; give a weight file of the original (.hdf5, .h5)")
    with contextlib.ExitStack() as stack:
        with _explained(path, "its structure"):
            file = stack.enter_context(h5py.File(path, "r", locking=False))
        yield _look_through(path, file)


def _look_through(path: str, file: Any) -> KerasFile:
    with _explained(path, "its list of layers"):
        root = _child(path, file, "model_weights") if "model_weights" in file else file
        names = _names(path, root, "layer_names")
        if not names:
            raise TwilbertError(f"{path}: {root.name} lists no layers (layer_names); not a file that Keras wrote")
    layers: list[StoredLayer] = []
    for name in names:
        with _explained(path, f"layer {name}"):
            layers += _layers_of(path, name, _child(path, root, name))
    declared = sum(math.prod(tensor.shape) * 2 for layer in layers for tensor in layer.tensors)
    if declared > Path(path).stat().st_size:
        raise TwilbertError(f"{path}: its tensors together are larger than the file; it is damaged: get it again")
    return KerasFile(path, tuple(names), tuple(layers))


def _layers_of(path: str, group_name: str, group: Any) -> list[StoredLayer]:
    """The layers of one group, which are several when it is that of a model inside the model."""
    if not isinstance(group, h5py.Group):
        raise TwilbertError(f"{path}: {group_name} is no group; not a weight file that Keras wrote")
    found: list[tuple[str, list[StoredTensor]]] = []
    for name in _names(path, group, "weight_names"):
        owner, here = name.split("/")[0], group
        for part in name.split("/"):
            here = _child(path, here, part)
        if not found or found[-1][0] != owner:
            found.append((owner, []))
        found[-1][1].append(_look_at(path, f"{group_name}/{name}" if owner != group_name else name, here))
    return [StoredLayer(group_name, owner, tuple(tensors)) for owner, tensors in found]


def _look_at(path: str, name: str, dataset: Any) -> StoredTensor:
    """A dataset after the checks that need no reading."""
    if not isinstance(dataset, h5py.Dataset):
        raise TwilbertError(f"{path}: {name} is no dataset; not a weight file that Keras wrote")
    dtype, shape = dataset.dtype, dataset.shape or ()
    fault = None
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        fault = f"holds {dtype} values, not floats"
    elif not 0 < len(shape) <= _MAX_DIMENSIONS:
        fault = f"has {len(shape)} dimensions, as no weight has"
    elif dataset.is_virtual or dataset.external:
        fault = "keeps its numbers in other files"
    elif dataset.id.get_create_plist().get_nfilters():
        fault = "is compressed, as Keras writes none; unpack the file with h5repack -f NONE"
    elif (needed := math.prod(shape) * dtype.itemsize) > (held := dataset.id.get_storage_size()):
        fault = f"declares {list(shape)}, which is {needed:,} bytes, and holds {held:,}"
    if fault:
        raise TwilbertError(f"{path}: {name} {fault}; such a file is not read")
    return StoredTensor(path, name, tuple(shape), dataset)


def _child(path: str, group: Any, name: str) -> Any:
    """The member `name` of `group`, if a hard link leads to it."""
    link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
    where = f"{(group.name or '').rstrip('/')}/{name}"
    if link is None:
        raise TwilbertError(f"{path}: {where} is missing; the file is damaged: get it again")
    if isinstance(link, h5py.ExternalLink):
        raise TwilbertError(f"{path}: {where} is a link into another file; such a file is not read")
    if not isinstance(link, h5py.HardLink):
        raise TwilbertError(f"{path}: {where} is a soft link; such a file is not read")
    return group[name]


def _names(path: str, group: Any, attribute: str) -> list[str]:
    """A list of names from a group's attributes, put together where Keras has split it; [] when there is none."""
    if attribute in group.attrs:
        return _names_of(path, group, attribute)
    found: list[str] = []
    for part in range(_MAX_PARTS):
        if f"{attribute}{part}" not in group.attrs:
            break
        found += _names_of(path, group, f"{attribute}{part}")
    return found


def _names_of(path: str, group: Any, attribute: str) -> list[str]:
    held = group.attrs.get_id(attribute)
    shape, dtype = held.shape, held.dtype
    if shape == (0,):  # Keras writes an empty list as floats
        return []
    if dtype.kind != "S" or len(shape) != 1:
        raise TwilbertError(f"{path}: {group.name}: {attribute} is no list of names ({dtype}, {shape})")
    if math.prod(shape) * dtype.itemsize > _MAX_NAMES_BYTES:
        raise TwilbertError(f"{path}: {group.name}: {attribute} is {shape[0]:,} names long; no model has so many")
    return [name.decode("utf-8") for name in group.attrs[attribute].tolist()]


@contextlib.contextmanager
def _explained(path: str, what: str) -> Iterator[None]:
    """Turn what h5py raises for damage into one message."""
    try:
        yield
    except TwilbertError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TwilbertError(
            f"{path}: {what} cannot be read ({reason}); the file is cut off or damaged: get it again"
        ) from error
