"""Read weights from safetensors files of any origin: names and shapes are checked first, then that all are finite."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from twilbert import storage
from twilbert.errors import TwilbertError

_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Bytes of the number formats that weights may have."""
_OTHERS = {"I64": 8, "I32": 4, "BOOL": 1}
"""Number formats that third-party encoders store beside weights: positions, masks."""
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


def read_header(file: str) -> dict[str, dict[str, Any]]:
    """Return a safetensors file's header: name → dtype, shape, data_offsets; and `__metadata__`.

    TwilbertError where the file is another kind or truncated.
    """
    system, inner = storage.filesystem(file)
    try:
        with system.open_input_file(inner) as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(_LONGEST_HEADER, stream.size() - 8):
                raise ValueError(f"its header would have {length:,} bytes")
            header = json.loads(stream.read(length))
        if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
            raise ValueError("its header is no list of tensors")
    except (OSError, struct.error, ValueError, RecursionError) as error:
        raise TwilbertError(
            f"{file}: not readable as safetensors ({error}); the file is damaged: restore it"
        ) from error
    return header


def shapes_of(file: str, *, foreign: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's tensors; TwilbertError where they are no weights or the file is truncated.

    `foreign`: a third-party encoder's file, which may hold whole numbers too.
    """
    header = read_header(file)
    header.pop("__metadata__", None)
    shapes, total, sizes = {}, 0, _BYTES | (_OTHERS if foreign else {})
    for name, entry in header.items():
        dtype, shape = entry.get("dtype"), entry.get("shape")
        if not isinstance(dtype, str) or dtype not in sizes:
            raise TwilbertError(
                f"{file}: tensor {name} is of type {dtype!r:.20}; weights are read as {', '.join(_BYTES)}: save the "
                "model in one of these"
            )
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise TwilbertError(f"{file}: tensor {name} has the shape {shape!r:.80}; the file is damaged: restore it")
        shapes[name] = tuple(shape)
        total += sizes[dtype] * math.prod(shape)
    size = storage.size(file)
    if not total < size <= total + 8 + _LONGEST_HEADER:
        raise TwilbertError(
            f"{file}: has {size:,} bytes, its tensors {total:,}; the file is incomplete or damaged: restore it"
        )
    return shapes


def read_weights(file: str, model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of `model` from a file, in the file's number format; `model` may be on the meta device.

    TwilbertError for the first tensor that is missing, unknown, of another shape, or not finite.
    """
    check_shapes(file, model, shapes_of(file))
    try:
        tensors = load_safetensors(storage.read_bytes(file))
    except SafetensorError as error:
        raise TwilbertError(
            f"{file}: not readable as safetensors ({error}); the file is damaged: restore it"
        ) from error
    require_finite(file, tensors)
    return tensors


def check_shapes(source: str, model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """TwilbertError naming the first tensor of `source` that is missing, unknown or unlike that of `model`."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in shapes:
            raise TwilbertError(f"{source}: tensor {name} {list(shape)} is missing; these are not this model's weights")
        if tuple(shapes[name]) != shape:
            raise TwilbertError(
                f"{source}: tensor {name} has shape {list(shapes[name])}, the configuration has {list(shape)}; "
                "configuration and weights do not belong together"
            )
    unknown = sorted(set(shapes) - set(expected))
    if unknown:
        raise TwilbertError(
            f"{source}: holds {len(unknown)} tensors this model does not have, the first is {unknown[0]}; "
            "configuration and weights do not belong together"
        )


def require_finite(source: str, tensors: Mapping[str, Tensor]) -> None:
    """TwilbertError naming the first tensor of `source` with a nan or an infinite number."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not all(map(torch.isfinite, torch.aminmax(tensor))):
            count = int((~tensor.isfinite()).sum())
            raise TwilbertError(
                f"{source}: tensor {name}: {count:,} of {tensor.numel():,} numbers are not finite (nan or infinite); "
                "the weights are damaged, or their training had failed: restore the file, or take an earlier one"
            )
