"""The plan as a picture: memory by ZeRO stage, and time over numbers of devices."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

from twilbert.errors import UsageError

_PARTS = ("weights", "masters", "moments", "gradients", "buffers", "activations", "temporaries")
_BOUNDS = ("compute", "collectives", "data")


def require_matplotlib() -> None:
    """Raise UsageError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot: needs the package matplotlib: pip install 'twilbert[train]'")


def draw(plan: dict[str, Any], suffix: str) -> bytes:
    """Return the picture as PNG or SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (memory, times) = plt.subplots(1, 2, figsize=(11, 4.4), constrained_layout=True)
    _memory(memory, plan)
    _times(times, plan)
    device = plan["device"]
    figure.suptitle(f"{plan['parameters']['total'] / 1e6:.1f} M parameters, {plan['precision']}, {device['name']}")
    buffer = io.BytesIO()
    name = "twilbert-plan"  # by which outputs.py knows the file
    metadata = {"Date": None, "Creator": name} if suffix == "svg" else {"Software": name}
    figure.savefig(buffer, format=suffix, dpi=130, metadata=metadata)
    plt.close(figure)
    return buffer.getvalue()


def _memory(axes: Any, plan: dict[str, Any]) -> None:
    rows = plan["memory"]["stages"]
    names = [f"{row['stage']}\n{row['precision']}" for row in rows]
    below = [0.0] * len(rows)
    for part in _PARTS:
        values = [row["at_peak"].get(part, 0) / 1e9 for row in rows]
        axes.bar(names, values, bottom=below, label=part, width=0.6)
        below = [a + b for a, b in zip(below, values, strict=True)]
    limit = plan["device"]["memory"]
    if limit is not None and limit < 3e9 * max(below):
        axes.axhline(limit / 1e9, color="tab:red", lw=1, ls="--", label="the device's")
    axes.set(
        xlabel="ZeRO stage",
        ylabel="GB a device",
        title=f"Tensors alive at the peak, {plan['device']['devices']} devices",
    )
    axes.legend(frameon=False, fontsize=8)


def _times(axes: Any, plan: dict[str, Any]) -> None:
    rows = plan["time"]["devices"]
    worlds = [row["devices"] for row in rows]
    axes.plot(worlds, [row["step"] for row in rows], "k-o", lw=2, ms=4, label="a step")
    for bound, style in zip(_BOUNDS, ("-", "--", ":"), strict=True):
        known = [(world, row[bound]) for world, row in zip(worlds, rows, strict=True) if row[bound] > 0]
        axes.plot(*zip(*known, strict=True), lw=1, ls=style, label=bound)
    axes.set(xscale="log", yscale="log", xlabel="devices", ylabel="seconds", title="Time of a step")
    axes.set_xticks(worlds, [str(world) for world in worlds])
    axes.minorticks_off()
    hours = axes.twinx()
    low, high = axes.get_ylim()
    scale = plan["time"]["max_steps"] / 3600
    hours.set(yscale="log", ylim=(low * scale, high * scale), ylabel=f"hours of {plan['time']['max_steps']:,} steps")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
