"""The plan as tables on standard output."""

from __future__ import annotations

from typing import Any

from twilbert import cli

_PARTS = ("weights", "masters", "moments", "gradients", "buffers", "activations", "temporaries", "peak")


def show(plan: dict[str, Any]) -> None:
    """Print every part of a plan and its assumptions."""
    for part in (_parameters, _flops, _memory, _times, _disk):
        part(plan)
        print()
    print("assumed:")
    for sentence in plan["assumptions"]:
        print(f"  - {sentence}")


def size(number: float) -> str:
    """Return bytes in a readable unit: 1.30 GB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    """Return seconds in a readable unit: 38 ms, 2.1 s, 14 h, 3.2 days."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 600:
        return f"{seconds:.3g} s"
    hours = seconds / 3600
    return f"{hours:.3g} h" if hours < 72 else f"{hours / 24:.4g} days"


def _parameters(plan: dict[str, Any]) -> None:
    rows = [[name, f"{count:,}"] for name, count in plan["parameters"].items() if count]
    cli.table(["part", "parameters"], [[name, count.rjust(13)] for name, count in rows])


def _flops(plan: dict[str, Any]) -> None:
    step, flops = plan["step"], plan["flops"]
    rows = [[name, f"{value / 1e6:.2f}"] for name, value in flops["token"].items() if value]
    cli.table(["MFLOPs a token, forward and backward", ""], rows)
    print(
        f"a step: {step['samples']:,} samples, {step['real_tokens']:,.0f} tokens ({step['padded_tokens']:,.0f} with "
        f"padding), {step['masked_tokens']:,.0f} masked; {flops['useful_step'] / 1e12:.3g} useful TFLOPs, "
        f"{flops['executed_step'] / 1e12:.3g} computed"
    )


def _memory(plan: dict[str, Any]) -> None:
    own, device = plan["memory"]["own"], plan["device"]
    rows = [
        [f"{row['stage']} ({row['precision']})", *(size(row[part]) for part in _PARTS)]
        for row in plan["memory"]["stages"]
    ]
    print(
        f"memory of one of {device['devices']} devices, by ZeRO stage, at {plan['step']['accumulation']} micro-batches"
    )
    cli.table(["stage", *_PARTS], rows)
    rows = [
        [f"{row['micro_batch_tokens']:,}", row["accumulation"], *(size(row[f"stage_{s}"]) for s in range(4))]
        for row in plan["memory"]["micro_batches"]
    ]
    print()
    cli.table(["micro_batch_tokens", "accumulation", *(f"in all, stage {s}" for s in range(4))], rows)
    line = f"this recipe, stage {own['stage']}: {size(own['total'])} a device, {size(own['reserve'])} of it not tensors"
    if own["share"] is not None:
        line += f"; {own['share']:.0%} of the device's: {'fits' if own['fits'] else 'DOES NOT FIT'}"
    print(f"{line}; a checkpoint takes {size(own['checkpoint_host'])} of host memory on the first worker")


def _times(plan: dict[str, Any]) -> None:
    rows = [
        [
            row["devices"], duration(row["step"]), duration(row["hours"] * 3600), f"{row['device_hours']:,.1f}",
            f"{row['tokens_per_second']:,.0f}", "" if row["useful_share"] is None else f"{row['useful_share']:.1%}",
            duration(row["compute"]), duration(row["collectives"]), duration(row["data"]), row["bound"],
        ]
        for row in plan["time"]["devices"]
    ]  # fmt: skip
    headers = ["devices", "a step", f"{plan['time']['max_steps']:,} steps", "device hours", "tokens/s", "of peak",
               "compute", "collectives", "data", "bound by"]  # fmt: skip
    cli.table(headers, rows)


def _disk(plan: dict[str, Any]) -> None:
    disk = plan["disk"]
    rows = [
        [f"corpus, {disk['corpus_rows']:,} rows of text", size(disk["corpus_text"])],
        ["the same as token ids", size(disk["corpus_encoded"])],
        [f"checkpoints, {disk['checkpoints_kept']} of {size(disk['checkpoint'])}", size(disk["checkpoints"])],
        ["the model's folder", size(disk["model"])],
        ["in all", size(disk["total"])],
    ]
    cli.table(["disk", ""], rows)
