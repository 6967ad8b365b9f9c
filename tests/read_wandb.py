"""The records of an offline W&B run: 7 bytes of header, then LevelDB's log framing in blocks of 32 KiB."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32 * 1024
_HEADER = 7  # of a chunk: crc32 (4), length (2), kind (1): 1 whole, 2 first, 3 middle, 4 last


def payloads(data: bytes) -> Iterator[bytes]:
    """The framed byte strings of a .wandb file."""
    at, parts = _HEADER, b""  # the file's own header is seven bytes too
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:  # a block's last bytes are padding
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += _HEADER
        parts += data[at : at + length]
        at += length
        if kind in (1, 4):
            yield parts
            parts = b""


def records(file: Path) -> list[Any]:
    """The file's protobuf records."""
    from wandb.proto import wandb_internal_pb2

    parsed = []
    for payload in payloads(file.read_bytes()):
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        record.ParseFromString(payload)
        parsed.append(record)
    return parsed


def series(file: Path) -> list[dict[str, Any]]:
    """The rows that were logged, without W&B's own keys."""
    rows = []
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows
