"""The W&B workspace of pre-training, as code: panels for health, loss, optimiser, speed, data and memories.

    python -m tools.wandb_workspace ENTITY [--project twilbert]     # save it as a view: needs WANDB_API_KEY
    python -m tools.wandb_workspace ENTITY --json workspace.json    # what would be saved: no key, no network

ENTITY is the W&B user or team. Needs `pip install 'twilbert[train,workspace]'`. The histograms of trust ratios
(optim/trust_ratios/…) have no panel here: W&B's own automatic workspace shows them.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Any

from twilbert import cli, storage
from twilbert.errors import TwilbertError, UsageError


@dataclass(frozen=True)
class Panel:
    """Lines over optimiser steps: series by name, or all that a pattern finds."""

    title: str
    series: tuple[str, ...] = ()
    pattern: str = ""
    unit: str = ""
    log: bool = False


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Health": (
        Panel("Loss", ("train/loss", "valid/loss"), unit="nats"),
        Panel("Gradient norm", ("optim/grad_norm",), log=True),
        Panel("Skipped steps", ("optim/skipped_steps",), unit="steps"),
        Panel("Tokens a second", ("speed/tokens_per_second",), unit="tokens/s"),
        Panel("Waiting for data", ("speed/data_wait_share",), unit="share of time"),
        Panel("Update norm", ("optim/update_norm",), log=True),
    ),
    "Loss and accuracy": (
        Panel("MLM loss", ("train/mlm_loss", "valid/mlm_loss"), unit="nats"),
        Panel("MLM accuracy", ("train/mlm_accuracy", "valid/mlm_accuracy"), unit="share"),
        Panel("MLM loss at [MASK]", ("train/mlm_loss_at_mask", "valid/mlm_loss_at_mask"), unit="nats"),
        Panel("MLM accuracy at [MASK]", ("train/mlm_accuracy_at_mask", "valid/mlm_accuracy_at_mask"), unit="share"),
        Panel("ROP loss", ("train/rop_loss", "valid/rop_loss"), unit="nats"),
        Panel("ROP accuracy", ("train/rop_accuracy", "valid/rop_accuracy"), unit="share"),
    ),
    "Optimiser": (
        Panel("Learning rate", ("optim/learning_rate",)),
        Panel("Norm of gradient and update", ("optim/grad_norm", "optim/update_norm"), log=True),
        Panel(
            "LAMB's trust ratios",
            ("optim/trust_ratio_min", "optim/trust_ratio_median", "optim/trust_ratio_max"),
            log=True,
        ),
    ),
    "Speed": (
        Panel("Tokens a second", ("speed/tokens_per_second",), unit="tokens/s"),
        Panel("Samples a second", ("speed/samples_per_second",), unit="samples/s"),
        Panel("Time of a step", ("speed/step_seconds",), unit="s"),
        Panel("Useful FLOPs a second", ("speed/flops",), unit="FLOP/s"),
        Panel("Useful share of the GPUs' peak", ("speed/mfu",), unit="share"),
        Panel("Peak memory of a GPU", ("speed/peak_memory_bytes",), unit="bytes"),
    ),
    "Data": (
        Panel("Epochs", ("data/epoch",), unit="epochs"),
        Panel("Padding", ("data/padding",), unit="share of tokens"),
        Panel("Waiting for data", ("speed/data_wait_share",), unit="share of time"),
    ),
    "Product-key memories": (
        Panel("Values that are read at all", pattern=r"^pkm/layer_\d+_used$", unit="share"),
        Panel("Entropy of the reading", pattern=r"^pkm/layer_\d+_entropy$", unit="nats"),
        Panel("Divergence from an even reading", pattern=r"^pkm/layer_\d+_kl$", unit="nats"),
    ),
}
_COLUMNS = 3


def workspace(entity: str, project: str, name: str) -> Any:
    """The workspace, not yet saved: a wandb_workspaces.workspaces.Workspace. UsageError where that is not installed."""
    try:
        import wandb_workspaces.reports.v2.interface as reports
        import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError as error:
        raise UsageError(f"needs the package {error.name}: pip install 'twilbert[train,workspace]'") from error

    def plot(number: int, panel: Panel) -> Any:
        return reports.LinePlot(
            title=panel.title,
            x="step",  # every row carries its own: W&B's starts again at 0 when a run is resumed
            y=list(panel.series),
            metric_regex=panel.pattern or None,
            title_y=panel.unit or None,
            log_y=panel.log or None,
            layout=reports.Layout(x=number % _COLUMNS * 8, y=number // _COLUMNS * 6, w=8, h=6),
        )

    sections = [
        workspaces.Section(
            name=title,
            panels=[plot(number, panel) for number, panel in enumerate(panels)],
            is_open=title in ("Health", "Loss and accuracy"),
            layout_settings=workspaces.SectionLayoutSettings(columns=_COLUMNS, rows=-(-len(panels) // _COLUMNS)),
        )
        for title, panels in SECTIONS.items()
    ]
    settings = workspaces.WorkspaceSettings(x_axis="step", group_by_prefix="first")
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=sections, settings=settings)


def as_json(made: Any) -> dict[str, Any]:
    """A workspace's sections, panels and settings."""
    from pydantic import TypeAdapter

    return TypeAdapter(type(made)).dump_python(made, mode="json", exclude_none=True)


def save(made: Any) -> str:
    """Save it as a new view of the project; its address. UsageError without a key, TwilbertError when W&B refuses."""
    if not os.environ.get("WANDB_API_KEY"):
        raise UsageError(
            "saving a workspace needs a W&B key in the environment: set WANDB_API_KEY (wandb.ai/authorize); "
            "--json FILE writes the workspace without one"
        )
    try:
        return made.save_as_new_view().url
    except Exception as error:
        raise TwilbertError(f"W&B did not take the workspace: {error}; check entity, project and key") from error


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="wandb_workspace", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("entity", metavar="ENTITY", help="W&B user or team")
    made.add_argument("--project", default="twilbert", help="as tracking.project of the recipe (default: twilbert)")
    made.add_argument("--name", default="TWilBERT pre-training", help="what the view is called")
    made.add_argument("--json", metavar="FILE", help="write it there instead of saving it")
    return made


def _command(args: argparse.Namespace) -> str:
    made = workspace(args.entity, args.project, args.name)
    count = f"{sum(map(len, SECTIONS.values()))} panels in {len(SECTIONS)} sections"
    if args.json:
        storage.write_json_atomic(args.json, as_json(made))
        return f"{count}: {storage.absolute(args.json)}"
    return f"{count}: {save(made)}"


def main(argv: list[str] | None = None) -> int:
    """Exit codes as those of the commands."""
    return cli.run(_parser(), _command, argv)


if __name__ == "__main__":
    raise SystemExit(main())
