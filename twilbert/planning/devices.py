"""What devices can do: peaks, memory and links of GPUs by their makers' data sheets, of a CPU by calibration."""

from __future__ import annotations

from dataclasses import dataclass

from twilbert.errors import UsageError
from twilbert.model.flops import PEAK

KINDS = ("h100", "h200", "a100", "l4", "cpu")
GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One training process's device and its links. Rates are a second, of one direction, of one device."""

    kind: str
    name: str
    memory: int | None
    """Bytes; None where it is not known."""
    gemm: dict[str, float]
    """FLOP/s of large matrix products by precision, before any loss."""
    stream: float
    """Bytes of memory read and written."""
    per_node: int
    """Devices that share the fast link."""
    link: float
    """Bytes over the fast link."""
    network: float
    """Bytes over the network between nodes."""
    launch: float
    """Seconds the host takes to start one kernel; a step cannot go faster than its kernels are started."""
    reserve: int
    """Bytes that no tensor of the training uses: context, libraries, the process itself."""
    source: str


def _gpu(kind: str, name: str, memory_gb: int, fp32: float, stream: float, link: float, network: float) -> Device:
    return Device(
        kind=kind,
        name=name,
        memory=memory_gb * 10**9,
        gemm={"bf16": PEAK[kind.upper()], "fp32": fp32},
        stream=stream,
        per_node=8,
        link=link,
        network=network,
        launch=6e-6,
        reserve=int(1.5 * GIB),
        source=f"NVIDIA {name} data sheet",
    )


_GPUS = {
    # NVLink figures are of both directions together in the data sheets: half of them here.
    "h100": _gpu("h100", "H100 SXM 80 GB", 80, 67e12, 3.35e12, 450e9, 50e9),
    "h200": _gpu("h200", "H200 SXM 141 GB", 141, 67e12, 4.8e12, 450e9, 50e9),
    "a100": _gpu("a100", "A100 SXM 80 GB", 80, 19.5e12, 2.039e12, 300e9, 25e9),
    "l4": _gpu("l4", "L4 24 GB", 24, 30.3e12, 300e9, 32e9, 1.56e9),
}


def device_of(kind: str, flops: float | None = None, stream: float | None = None) -> Device:
    """The device of a kind; for a CPU of a machine whose large matrix products reach `flops` a second.

    `stream`: bytes a second its memory moves, where that was measured. UsageError for a kind that is not known here.
    """
    if kind in _GPUS:
        return _GPUS[kind]
    if kind != "cpu":
        raise UsageError(f"--kind {kind}: unknown; known are {', '.join(KINDS)}")
    return Device(
        kind="cpu",
        name="CPU of one worker",
        memory=None,
        gemm=dict.fromkeys(("bf16", "fp32"), flops or 0.0),
        stream=stream or 20e9,
        per_node=1,
        link=1.25e9,
        network=1.25e9,
        launch=0.0,
        reserve=600_000_000,
        source="calibration on this machine" if stream else "--flops; memory of 20 GB/s assumed",
    )
