"""Read the original's weight files, Keras 2.2 HDF5, without trusting them.

    root, or /model_weights ─ attribute layer_names ─▶ groups ─ attribute weight_names ─▶ datasets of floats

Only hard links are followed, part by part of a name, so that no other file or object is opened; a dataset is read only
when it holds the plain floats that it declares, in this file, uncompressed, as Keras writes them. Every fault is one
TwilbertError that names the file and the tensor.
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
# h5py's errors for damaged structures; it documents no narrower ones.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class StoredTensor:
    """A dataset that is checked and not yet read."""

    file: str
    name: str
    """Keras' name, e.g. "sentence_encoder_block_1/kernel:0"."""
    shape: tuple[int, ...]
    _dataset: Any

    def read(self) -> Tensor:
        """Read the numbers as fp32; TwilbertError when they cannot be read or are not finite."""
        out = torch.empty(self.shape, dtype=torch.float32)
        with _explained(self.file, self.name):
            self._dataset.read_direct(out.numpy())
        if not all(math.isfinite(end.item()) for end in torch.aminmax(out)):  # nan comes through; faster than isfinite
            raise TwilbertError(f"{self.file}: {self.name} holds numbers that are not finite; get the file again")
        return out


@dataclass(frozen=True)
class StoredLayer:
    """A layer's tensors in order."""

    group: str
    """The group that holds them: the layer's, or that of a model inside the model."""
    name: str
    tensors: tuple[StoredTensor, ...]

    @property
    def kind(self) -> str:
        """The name without Keras' running number: "dense" of "dense_4"."""
        return re.sub(r"_\d+$", "", self.name)

    @property
    def number(self) -> int:
        """Keras' running number, larger for a later layer; 0 where there is none."""
        match = re.search(r"_(\d{1,9})$", self.name)
        return int(match[1]) if match else 0


@dataclass(frozen=True)
class KerasFile:
    """An open weight file's layers, in its order."""

    path: str
    groups: tuple[str, ...]
    """Names of all layers of the outermost model, those without weights too."""
    layers: tuple[StoredLayer, ...]
    """Layers with weights."""


@contextlib.contextmanager
def open_keras(path: str) -> Iterator[KerasFile]:
    """Open the file at `path` for the context.

    UsageError when there is none or it is no HDF5 at all; TwilbertError when it is cut off, damaged, or holds links,
    objects or sizes that a Keras weight file does not have.
    """
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file; give a weight file of the original on this machine (.hdf5, .h5)")
    if not h5py.is_hdf5(path):
        raise UsageError(f"{path}: not an HDF5 file; give a weight file of the original (.hdf5, .h5)")
    with contextlib.ExitStack() as stack:
        with _explained(path, "its structure"):
            file = stack.enter_context(h5py.File(path, "r", locking=False))
        yield _checked_file(path, file)


def _checked_file(path: str, file: Any) -> KerasFile:
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
    """Return the layers of one group: several for a model inside the model."""
    if not isinstance(group, h5py.Group):
        raise TwilbertError(f"{path}: {group_name} is no group; not a weight file that Keras wrote")
    layers: list[tuple[str, list[StoredTensor]]] = []
    for name in _names(path, group, "weight_names"):
        owner, member = name.split("/")[0], group
        for part in name.split("/"):
            member = _child(path, member, part)
        if not layers or layers[-1][0] != owner:
            layers.append((owner, []))
        layers[-1][1].append(_checked_tensor(path, f"{group_name}/{name}" if owner != group_name else name, member))
    return [StoredLayer(group_name, owner, tuple(tensors)) for owner, tensors in layers]


def _checked_tensor(path: str, name: str, dataset: Any) -> StoredTensor:
    """Return a dataset that passes the checks which need no reading."""
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
    elif (needed := math.prod(shape) * dtype.itemsize) > (stored := dataset.id.get_storage_size()):
        fault = f"declares {list(shape)}, which is {needed:,} bytes, and holds {stored:,}"
    if fault:
        raise TwilbertError(f"{path}: {name} {fault}; such a file is not read")
    return StoredTensor(path, name, tuple(shape), dataset)


def _child(path: str, group: Any, name: str) -> Any:
    """Return the member `name` of `group`; TwilbertError unless it is a hard link."""
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
    """Return a list of names from a group's attributes, joined where Keras has split it; [] when there is none."""
    if attribute in group.attrs:
        return _names_of(path, group, attribute)
    names: list[str] = []
    for part in range(_MAX_PARTS):
        if f"{attribute}{part}" not in group.attrs:
            break
        names += _names_of(path, group, f"{attribute}{part}")
    return names


def _names_of(path: str, group: Any, attribute: str) -> list[str]:
    stored = group.attrs.get_id(attribute)
    shape, dtype = stored.shape, stored.dtype
    if shape == (0,):  # Keras writes an empty list as floats
        return []
    if dtype.kind != "S" or len(shape) != 1:
        raise TwilbertError(f"{path}: {group.name}: {attribute} is no list of names ({dtype}, {shape})")
    if math.prod(shape) * dtype.itemsize > _MAX_NAMES_BYTES:
        raise TwilbertError(f"{path}: {group.name}: {attribute} is {shape[0]:,} names long; no model has so many")
    return [name.decode("utf-8") for name in group.attrs[attribute].tolist()]


@contextlib.contextmanager
def _explained(path: str, what: str) -> Iterator[None]:
    """Turn h5py's errors for damaged files into one message."""
    try:
        yield
    except TwilbertError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TwilbertError(
            f"{path}: {what} cannot be read ({reason}); the file is cut off or damaged: get it again"
        ) from error
