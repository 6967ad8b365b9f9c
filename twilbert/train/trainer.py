"""Ray Train's trainer without the actors that serve nothing here.

Each is a Python process that wakes over a hundred times a second, half a percent of a core; where all cores compute,
the training step waits for it. What they would do: watch for nodes about to be taken (control.py does), hand out the
datasets given to a trainer (workers make their own streams), and, on a cluster that outlives the driver, free the
workers' places should the controller die.
"""

from __future__ import annotations

import os
from typing import Any

from ray.train.torch import TorchTrainer

from twilbert import cluster


class Trainer(TorchTrainer):
    """A TorchTrainer; what it leaves out on a Ray that ends with the command is more than elsewhere."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        # Read by Ray Train when it starts; a user's own setting stays.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        if cluster.is_local():
            os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")  # for a Prometheus that is not there
        super().__init__(*args, **settings)

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if cluster.is_local() else set())
        return [made for made in super()._create_default_callbacks() if type(made).__name__ not in unused]
