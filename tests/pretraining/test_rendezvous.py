"""Workers of a local run meet in a file; those of a cluster as Ray Train has them meet."""

from __future__ import annotations

import torch.distributed as dist
from ray.train.torch import TorchConfig

from twilbert.cluster import local_ray
from twilbert.pretraining import rendezvous


def test_a_cluster_is_left_to_ray_train():
    assert type(rendezvous.torch_config("gloo", 600)) is TorchConfig


def test_collectives_wait_longer_than_the_watchdog():
    assert [rendezvous.torch_config("gloo", seconds).timeout_s for seconds in (12, 600, 7200)] == [612, 1200, 14400]


def test_workers_of_a_local_run_meet_in_a_new_file_and_open_no_store(tmp_path, monkeypatch):
    monkeypatch.setattr(local_ray, "folder", lambda: str(tmp_path))
    monkeypatch.setattr("ray.get", lambda values: values)
    monkeypatch.setattr("ray.train.get_context", lambda: Context())
    for name in ("RANK", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "lo" if name == "GLOO_SOCKET_IFNAME" else "")
    config = rendezvous.torch_config("gloo", 600)
    backend = config.backend_cls()
    try:
        backend.on_start(Group(), config)
        assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["rendezvous"]
    finally:
        dist.destroy_process_group()


class Context:
    def get_node_rank(self) -> int:
        return 0

    get_local_rank, get_local_world_size = get_node_rank, lambda self: 1


class Group:
    """A worker group of this process alone."""

    def __len__(self) -> int:
        return 1

    def execute_single_async(self, rank: int, function, *args):
        return function(*args)
