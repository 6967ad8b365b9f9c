"""What a pre-training run will need, worked out from its recipe: parameters, memory, time, disk.

    recipe ─ model sizes ─┬─ operations.py   FLOPs, and bytes an update moves ─┐
    lengths ─ workload.py ┴─ activations.py ─ memory.py: bytes a device         ├─ timing.py ─┐
                             devices.py, calibration.py: rates ─────────────────┘             ├─ whole.py ─▶ JSON
                             disk.py: corpus and checkpoints ─────────────────────────────────┘   tables.py, plot.py

Nothing here starts a training; every figure that is assumed and not computed is a sentence in `whole.Plan.assumptions`.
"""
