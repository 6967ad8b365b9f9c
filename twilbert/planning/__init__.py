"""Estimates of what a pre-training run needs, from its recipe: parameters, memory, time, disk.

    recipe ─ model sizes ─┬─ operations.py   FLOPs, and bytes an update moves ─┐
    lengths ─ workload.py ┴─ activations.py ─ memory.py: bytes a device         ├─ timing.py ─┐
                             devices.py, calibration.py: rates ─────────────────┘             ├─ whole.py ─▶ JSON
                             memory.py: corpus and checkpoints on disk ───────────────────────┘   tables.py, plot.py

Nothing here starts a training; every figure that is assumed, not computed, is a sentence of `whole.assumptions`.
"""
