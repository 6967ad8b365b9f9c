"""The folders of third-party encoders, which may come from anybody: downloaded, and checked before they are opened."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from twilbert import cli, storage
from twilbert.errors import TwilbertError, UsageError, is_panic
from twilbert.model.tensor_files import shapes_of
from twilbert.parsing import read_record
from twilbert.plugins import UntrustedCode

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_NEVER = ["*.h5", "*.msgpack", "*.onnx", "*.ot", "*.gguf", "*.tflite"]  # weights of other programs
_CODE = ["*.py", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*/*"]
_TOKENIZER = ["tokenizer*.json", "special_tokens_map.json", "vocab*", "*.model", "config.json"]
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SECONDS = 5.0  # for the hub's first answer
_MOST_LAYERS, _MOST = 1_000, 2**24
_REPEATED = ("layer", "block", "group", "expert")
"""Parts of the names of settings that say how often something is built."""


def is_hub_id(name: str) -> bool:
    """Return whether `name` has the form of a hub id, owner/name."""
    return _HUB_ID.fullmatch(name) is not None


def download_tokenizer(name: str) -> str:
    """Return the cached folder of a hub id's tokenizer, as `download`; no weights come with it."""
    return download(name, False, _TOKENIZER)


def download(name: str, trust_remote_code: bool, only: Sequence[str] | None = None) -> str:
    """Return the cached folder of a hub id, downloaded where needed; UsageError where the hub does not provide it.

    `only`: patterns of the files wanted. Where the hub does not answer within seconds, what was downloaded earlier is
    used.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted: dict[str, Any] = {
        "ignore_patterns": _NEVER + ([] if trust_remote_code else _CODE), "allow_patterns": only,
    }  # fmt: skip
    try:
        HfApi().model_info(name, timeout=_SECONDS)
        return snapshot_download(name, **wanted)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        with contextlib.suppress(LocalEntryNotFoundError):
            folder = snapshot_download(name, local_files_only=True, **wanted)
            cli.say(f"{name}: the hub does not answer ({reason}); what was downloaded earlier is used: {folder}")
            return folder
        if isinstance(error, OSError) and error.filename is not None:
            raise UsageError(
                f"{error.filename}: cannot be written ({error.strerror}), but downloads go there; name another "
                "folder: HF_HOME=DIR"
            ) from error
        raise UsageError(
            f"{name}: no model folder, checkpoint or run here, and not fetched from the hub ({reason}); check the name "
            "and the network, or give a folder. What was downloaded once is found without network (HF_HOME); "
            "HF_HUB_OFFLINE=1 uses no network at all"
        ) from error


def require_no_code(folder: str) -> None:
    """UntrustedCode where transformers would import, unpickle or download what the folder names.

    Python files are no fault: without trust_remote_code transformers imports none of them.
    """
    names = storage.list_dir(folder)
    if not {_WEIGHTS, _INDEX} & set(names):
        raise UntrustedCode(
            f"{folder}: has no {_WEIGHTS}; pickled weights are not read, as they can run code. Save the model anew as "
            "safetensors, or give --trust-remote-code where you know and trust it"
        )
    config = read_record(storage.join(folder, _CONFIG), dict[str, Any])
    faults = [f"{key}: {value!r:.80}" for key, value in _kernels(config)]
    faults += ["an adapter of another model"] if "adapter_config.json" in names else []
    if faults:
        raise UntrustedCode(
            f"{folder}: asks for code or weights from elsewhere ({'; '.join(faults)}); nothing of it was run. Give "
            "--trust-remote-code where you know and trust it"
        )


def _kernels(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield the implementations that a configuration, or a part of it, names by a hub id."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        if "_implementation" in key and "/" in str(value):
            yield key, value
        yield from _kernels(value)


def check_sizes(folder: str, config: Any, build: Callable[[], nn.Module]) -> None:
    """TwilbertError where a configuration needs many more numbers than the folder's weights hold.

    `build` returns the encoder; it is called on torch's meta device, which takes no memory.
    """
    for key, value in _numbers(config.to_dict()):
        most = _MOST_LAYERS if any(part in key for part in _REPEATED) else _MOST
        if isinstance(value, int) and abs(value) > most:
            raise TwilbertError(f"{storage.join(folder, _CONFIG)}: {key} is {value}; expected at most {most:,}")
    stored = _stored_numbers(folder)
    if stored is None:
        return
    with torch.device("meta"):
        encoder = build()
    needed = sum(tensor.numel() for tensor in (*encoder.parameters(), *encoder.buffers()))
    if needed > 2 * stored + _MOST:
        raise TwilbertError(
            f"{folder}: {_CONFIG} needs {needed:,} numbers, the weights hold {stored:,}; they do not belong together"
        )


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a configuration with their names, or the names of their lists."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item, key)
    else:
        yield key, value


def _stored_numbers(folder: str) -> int | None:
    """Count the numbers in the safetensors files of a folder; None where it has no such file."""
    names = storage.list_dir(folder)
    files = [_WEIGHTS]
    if _WEIGHTS not in names:
        if _INDEX not in names:
            return None
        places = read_record(storage.join(folder, _INDEX), dict[str, Any]).get("weight_map")
        files = sorted({str(file) for file in places.values()}) if isinstance(places, Mapping) else []
        if not files or any("/" in file or file not in names for file in files):
            raise TwilbertError(
                f"{storage.join(folder, _INDEX)}: names files that the folder does not have; copy it anew"
            )
    return sum(
        math.prod(shape) for file in files for shape in shapes_of(storage.join(folder, file), foreign=True).values()
    )


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn any error of transformers, or panic of tokenizers, on opening a folder into one UsageError."""
    try:
        yield
    except TwilbertError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "trust_remote_code" in str(error):
            raise UntrustedCode(
                f"{name}: needs code that it brings along, which was not run ({reason:.300}); give --trust-remote-code "
                "where you know and trust it"
            ) from error
        raise UsageError(
            f"{name}: neither a model of ours nor one that transformers can open ({reason:.300}); give a model folder, "
            "a checkpoint, a run's name, a transformers folder, or a hub id (which needs the network once)"
        ) from error
