"""Ray Train's trainer without the parts that serve nothing here.

Each actor is a Python process that wakes over a hundred times a second, half a percent of a core; where all cores
compute, the training step waits for it. Left out everywhere:

    DatasetsCallback     hands out the datasets given to a trainer, and the driver's DataContext: there are none,
                         workers make their own streams and contexts

and, on a Ray that was started for the command and ends with it:

    PlacementGroupCleanerCallback    frees the workers' places should the controller die on a Ray that goes on
    …MetricsCallback                 numbers for a Prometheus
    the preemption watcher           looks for nodes about to be taken; there is one node
"""

from __future__ import annotations

import os
from typing import Any

from ray.train import Result
from ray.train.torch import TorchTrainer

from twilbert import local_ray

_EVERYWHERE = {"DatasetsCallback"}
_LOCALLY = {"PlacementGroupCleanerCallback", "ControllerMetricsCallback", "WorkerMetricsCallback"}
_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


class Trainer(TorchTrainer):
    """A TorchTrainer with less beside it."""

    def fit(self) -> Result:
        """Train, as Ray Train does; a user's own setting of its environment stays."""
        if not local_ray.address() or _WATCHER in os.environ:
            return super().fit()
        os.environ[_WATCHER] = "0"  # fit hands it to the controller
        try:
            return super().fit()
        finally:
            del os.environ[_WATCHER]

    def _create_default_callbacks(self) -> list[Any]:
        unused = _EVERYWHERE | (_LOCALLY if local_ray.address() else set())
        return [made for made in super()._create_default_callbacks() if type(made).__name__ not in unused]
