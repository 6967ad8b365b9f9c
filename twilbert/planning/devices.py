"""Rates, memory and links of devices: of GPUs by their makers' data sheets, of a CPU by calibration."""

from __future__ import annotations

from dataclasses import dataclass

from twilbert.errors import UsageError
from twilbert.model.flops import PEAK

KINDS = ("h100", "h200", "a100", "l4", "cpu")


@dataclass(frozen=True)
class Device:
    """The device of one training process and its links. Rates are per second, in one direction, of one device."""

    kind: str
    name: str
    memory: int | None
    """Bytes; None where unknown."""
    gemm: dict[str, float]
    """FLOP/s of large matrix products by precision, before any loss."""
    stream: float
    """Bytes of memory read and written."""
    link: float
    """Bytes over the link among a node's devices."""
    network: float
    """Bytes over the network between nodes."""
    source: str
    per_node: int = 8
    """Devices that share the fast link."""
    launch: float = 6e-6
    """Seconds that the host takes to launch one kernel; a step cannot be faster than its launches."""
    reserve: int = 1536 * 2**20
    """Bytes that no tensor of the training uses: context, libraries, the process itself."""


_GPUS = {
    # the driver's name, name, bytes, fp32 FLOP/s, memory, link, network; of NVLink's two directions one
    "h100": ("NVIDIA H100 80GB HBM3", "H100 SXM 80 GB", 80 * 10**9, 67e12, 3.35e12, 450e9, 50e9),
    "h200": ("NVIDIA H200", "H200 SXM 141 GB", 141 * 10**9, 67e12, 4.8e12, 450e9, 50e9),
    "a100": ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB", 80 * 10**9, 19.5e12, 2.039e12, 300e9, 25e9),
    "l4": ("NVIDIA L4", "L4 24 GB", 24 * 10**9, 30.3e12, 300e9, 32e9, 1.56e9),
}


def device_of(kind: str, flops: float | None = None, stream: float | None = None) -> Device:
    """Return the device of a kind; UsageError for an unknown one.

    Of a CPU, `flops`: FLOP/s of its large matrix products, `stream`: measured bytes/s of its memory.
    """
    if kind in _GPUS:
        driver_name, name, memory, fp32, rate, link, network = _GPUS[kind]
        gemm = {"bf16": PEAK[driver_name], "fp32": fp32}
        return Device(kind, name, memory, gemm, rate, link, network, f"NVIDIA {name} data sheet")
    if kind != "cpu":
        raise UsageError(f"--kind {kind}: unknown; known are {', '.join(KINDS)}")
    return Device(
        kind="cpu",
        name="CPU of one worker",
        memory=None,
        gemm=dict.fromkeys(("bf16", "fp32"), flops or 0.0),
        stream=stream or 20e9,
        link=1.25e9,
        network=1.25e9,
        source="calibration on this machine" if stream else "--flops; memory of 20 GB/s assumed",
        per_node=1,
        launch=0.0,
        reserve=600_000_000,
    )
