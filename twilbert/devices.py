"""Devices by name, their bf16 arithmetic, and the cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from twilbert.errors import UsageError


def find_device(name: str | None) -> torch.device:
    """Return the device of that name, or a GPU when there is one; UsageError where it cannot be used."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        fault = str(error).strip().splitlines()[0]
        raise UsageError(f"device {name!r}: not usable here ({fault}); try cpu, or leave it out") from error
    return device


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 arithmetic."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in checks)


_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of CPU in a period ("max": any number), and the period


def usable_cores() -> int:
    """Return the cores that this process may use: by affinity (Slurm, taskset) and container quota (Kubernetes)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
    except OSError:  # no Linux, or cgroups of version 1
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def device_computes_bf16(use_gpu: bool) -> bool:
    """Whether the devices that will train have bf16 arithmetic: this CPU, or the GPU of a Ray worker."""
    if not use_gpu:
        return computes_bf16(torch.device("cpu"))
    import ray

    return ray.get(ray.remote(num_gpus=1, num_cpus=0)(computes_bf16).remote(torch.device("cuda")))
