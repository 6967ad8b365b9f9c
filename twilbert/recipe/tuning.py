"""The recipe of a sweep: tasks, models, search space, scheduler and resources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from twilbert.errors import UsageError
from twilbert.recipe import loading, search_space
from twilbert.recipe.finetuning import Tracking
from twilbert.recipe.pretraining import Count, Index, Section

SHIPPED = "tune.yaml"


class Search(Section):
    kind: Literal["random", "grid"] = "random"
    """random: trials are drawn; grid: every combination of the choices."""
    trials: Annotated[Count, Field(le=10_000)] = 16
    """Trials of each study; for grid as many as there are combinations."""
    seed: Index = 0
    """Seed of the draws. A task's trials are the same for every model."""


class Scheduler(Section):
    kind: Literal["asha", "none"] = "asha"
    """asha: trials worse than others of their study stop early (Li et al. 2020); none: all train to the end."""
    grace_epochs: Count = 1
    """Epochs of train before a trial may be stopped."""
    reduction: Annotated[Count, Field(ge=2)] = 3
    """One in this many trials continues after each rung; rungs are at grace_epochs · reduction^k epochs."""


class Final(Section):
    seeds: Count = 1
    """1: the best trial is scored; more: its settings are trained with further seeds and mean and sd reported."""


class Cluster(Section):
    address: str | None = None
    """Ray cluster to join; null = that of RAY_ADDRESS or of the surrounding Ray job, else a local one."""
    num_cpus: Count | None = None
    """Logical CPUs of a local Ray; null = this machine's."""
    cpus_per_trial: Count = 1
    """Logical CPUs, and threads, of one trial."""
    gpus_per_trial: float | None = Field(default=None, ge=0)
    """Share of a GPU, or a whole number of them; null = a quarter where there are GPUs, else none."""
    max_concurrent: Count | None = None
    """Trials at a time; null = as many as the resources allow."""
    max_failures: Index = 3
    """Restarts of a trial whose process died."""


class TuneRecipe(Section):
    """A sweep."""

    tasks: tuple[str, ...] = ()
    """Registered tasks or task files, or `all`; --task replaces it."""
    models: tuple[str, ...] = ()
    """As --model of finetune, one study a task and model; empty = the newest finished run. --model replaces it."""
    random_weights: bool = False
    """Tune each model from random weights too, as the baseline without pre-training."""
    data_dir: str | None = None
    """Where the folders of registered tasks lie; null = `tasks` under the working directory."""
    runs: str = "runs"
    """Folder in which run names are looked up."""
    search: Search = Search()
    scheduler: Scheduler = Scheduler()
    text: dict[str, Any] = Field(default_factory=dict)
    """Settings of finetune.yaml's section, the same in every trial: texts are encoded once."""
    encoder: dict[str, Any] = Field(default_factory=dict)
    """Settings of finetune.yaml's section: values, or search spaces."""
    head: dict[str, Any] = Field(default_factory=dict)
    """Settings of finetune.yaml's section: values, or search spaces."""
    loss: dict[str, Any] = Field(default_factory=dict)
    """Settings of finetune.yaml's section: values, or search spaces."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Settings of finetune.yaml's section: values, or search spaces."""
    final: Final = Final()
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return the sections of finetune.yaml as this recipe sets them."""
        return {name: getattr(self, name) for name in search_space.SECTIONS}

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the results: not where the sweep runs or logs."""
        return self.model_dump(mode="json", exclude={"cluster", "tracking", "runs"})


def load(path: str = SHIPPED, overrides: Sequence[str] = ()) -> TuneRecipe:
    """The checked recipe of a YAML file with `a.b=c` overrides; UsageError that lists every fault."""
    return build(loading.read_values(path), overrides, path)


def build(values: Any, overrides: Sequence[str] = (), where: str = "recipe") -> TuneRecipe:
    """The checked recipe of plain `values` and overrides."""
    return loading.validated(values, overrides, where, TuneRecipe, _faults)


def _faults(recipe: TuneRecipe) -> list[str]:
    try:
        searched = search_space.dimensions(recipe.settings())
    except UsageError as error:
        return [str(error)]
    continuous = [d for d in searched if d.kind != "choice"] if recipe.search.kind == "grid" else []
    faults = [f"{d.path}: {d.kind} is continuous; for a grid give {{choice: […]}}" for d in continuous]
    faults += [f"{d.path}: texts are encoded once; give one value" for d in searched if d.path.startswith("text.")]
    gpus = recipe.cluster.gpus_per_trial or 0
    if gpus > 1 and gpus != int(gpus):
        faults.append(f"cluster.gpus_per_trial: {gpus:g} is no share of one GPU; give at most 1, or a whole number")
    if not searched:
        faults.append("nothing is searched; give a setting choices, e.g. training.learning_rate={choice: [1e-5, 1e-4]}")
    faults += search_space.setting_faults(recipe.settings())
    return faults
