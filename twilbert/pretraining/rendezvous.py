"""Rendezvous of the workers of a local run: through a file, then over the loopback interface.

Ray Train's default is a TCP store of torch, which listens on every interface without authentication.
"""

from __future__ import annotations

import math
import os
import socket
import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ray.train.torch import TorchConfig

from twilbert.cluster import local_ray


def torch_config(backend: str, hang_timeout: float) -> TorchConfig:
    """The setup of torch.distributed for Ray Train: through a file on a local Ray, Ray Train's own on a cluster.

    Collectives time out well after `hang_timeout` (seconds), so that the watchdog dumps the stacks first.
    """
    settings: dict[str, Any] = {"backend": backend, "timeout_s": math.ceil(max(2 * hang_timeout, hang_timeout + 600))}
    folder = local_ray.folder()
    return _FileConfig(**settings, folder=folder) if folder else TorchConfig(**settings)


@dataclass
class _FileConfig(TorchConfig):
    folder: str = ""

    @property
    def backend_cls(self) -> Any:
        return _FileBackend


class _FileBackend(TorchConfig().backend_cls):
    def on_start(self, worker_group: Any, backend_config: _FileConfig) -> None:
        import ray

        file = str(Path(backend_config.folder, f"rendezvous-{uuid.uuid4().hex}"))  # a new one for every start
        world_size = len(worker_group)
        joining = [
            worker_group.execute_single_async(i, _join, backend_config, file, i, world_size) for i in range(world_size)
        ]
        ray.get(joining)


def _join(config: _FileConfig, file: str, rank: int, world_size: int) -> None:
    import torch.distributed as dist
    from ray.train import get_context

    here = get_context()
    names = {"RANK": rank, "WORLD_SIZE": world_size, "NODE_RANK": here.get_node_rank()}
    names |= {"LOCAL_RANK": here.get_local_rank(), "LOCAL_WORLD_SIZE": here.get_local_world_size()}
    os.environ |= {name: str(value) for name, value in names.items()}
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if loopback:
            os.environ.setdefault(variable, loopback)
    dist.init_process_group(
        config.backend,
        store=dist.FileStore(file, world_size),  # pyright: ignore[reportPrivateImportUsage] - it is documented
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=config.timeout_s),
    )
