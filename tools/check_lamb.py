"""LAMB on shards against LAMB on whole tensors: every ZeRO stage, precision, world size and accumulation.

    python -m tools.check_lamb [--part agreement|resume ...] [--json OUT.json]

Runs of a tiny TWilBERT (a shared block, factorised embeddings, a product-key memory; sizes that divide by nothing) in
processes over gloo. "agreement": 20 steps at every cut, against a float64 reference without shards (written apart, in
tests/train/lamb_reference.py) that is fed the gradients the optimiser saw, and against one that computes its own; with
two naive LAMBs that must fail the same check. "resume": saved at every (stage, world), resumed at every other, 10
further steps. Exit 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.make_encoded import make_encoded
from tests.train import lamb_reference as reference
from tests.train.lamb_runs import (
    RATIO_BOUND,
    WEIGHTS_BOUND,
    OwnRun,
    Place,
    Whole,
    against_fed_reference,
    against_undisturbed,
    model_holds_its_masters,
    own_run,
    play,
    resumed_runs,
)
from tests.train.training_runs import spawn
from twilbert import cli
from twilbert.data.encoded import EncodedCorpus

STEPS, MIDDLE = 20, 10
WORLDS, ACCUMULATIONS = (1, 2, 3), (1, 4)
KINDS = [("fp32", 0)] + [(precision, stage) for precision in ("fp32", "bf16") for stage in (1, 2, 3)]
TOGETHER = 11  # runs of one set of processes: on a busy machine, too, they end before `spawn` gives them up
CONTROL = 100  # the naive ratio must miss the bound by more than this


def main() -> int:
    """Run the parts asked for, print their tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[str, dict[str, Any]], list[str]]] = {"agreement": agreement, "resume": resume}
    parser.add_argument("--part", action="append", choices=list(parts), help="only this part; may be repeated")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    figures: dict[str, Any] = {"bounds": {"weights": WEIGHTS_BOUND, "ratio": RATIO_BOUND, "control": CONTROL}}
    missed: list[str] = []
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        encoded = make_encoded(folder, rows_per_row_group=[60, 50], vocab_size=199, valid_rows=20).path
        for part in args.part or parts:
            began = time.monotonic()
            missed += parts[part](encoded, figures)
            figures[f"{part}_seconds"] = round(time.monotonic() - began, 1)
    figures["missed"] = missed
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"written: {args.json}")
    print("\n".join(["bounds MISSED:", *missed]) if missed else "all bounds kept")
    return 1 if missed else 0


# ---- agreement -----------------------------------------------------------------------------------------------------


def agreement(encoded: str, figures: dict[str, Any]) -> list[str]:
    """The table of all cuts, the tensors of zero gradient, the naive controls; what was missed."""
    opened = EncodedCorpus.open_folder(encoded)
    rows, zero = [], {}
    for world in WORLDS:
        cuts = [Place(*kind, world, n, pkm) for pkm in (True, False) for kind in KINDS for n in ACCUMULATIONS]
        cuts = [place for place in cuts if place.pkm or place.precision == "fp32"]
        shapes = [(pkm, n) for pkm in (True, False) for n in ACCUMULATIONS]
        own = {(pkm, n): own_run(Place("fp32", 0, world, n, pkm), opened, STEPS) for pkm, n in shapes}
        zero |= {"with memory" if pkm else "without": own[pkm, 1].zero_gradient for pkm in (True, False)}
        runs = played(encoded, world, cuts)
        rows += [judged(place, run, own[place.pkm, place.accumulation]) for place, run in runs]
    rows.sort(key=lambda row: not row["pkm"])
    naive = [row for world in WORLDS for row in control(encoded, world)]
    figures |= {"agreement": rows, "naive": naive, "zero_gradient": zero}
    print_agreement(figures)
    return faults_of(figures)


def played(encoded: str, world: int, places: Sequence[Place]) -> list[tuple[Place, Whole]]:
    """Every place's run, whole; several in one set of processes, which takes seconds to start."""
    runs = []
    for at in range(0, len(places), TOGETHER):
        some = list(places[at : at + TOGETHER])
        cli.say(f"world {world}: {len(some)} runs of {STEPS} steps")
        by_rank = spawn(play, world, encoded, some, STEPS)
        runs += [(place, Whole([records[i] for records in by_rank], place.stage)) for i, place in enumerate(some)]
    return runs


def judged(place: Place, run: Whole, own: OwnRun) -> dict[str, Any]:
    """One row: against the reference fed the run's gradients, and, in fp32, against the reference's own run."""
    fed = against_fed_reference(run, place)
    row = {
        "precision": place.precision, "stage": place.stage, "world": place.world, "accumulation": place.accumulation,
        "pkm": place.pkm, "weights": fed.worst[1], "worst_tensor": fed.worst[0], "ratio": fed.ratio,
        "update_norm": fed.moved, "clipped_steps": fed.clipped, "tensors": len(fed.weights), "reduces": run.reduces,
        "model_holds_masters": model_holds_its_masters(run, place),
    }  # fmt: skip
    if place.precision == "fp32":
        errors = reference.relative_errors(run.ended, own.weights)
        ended = reference.logical(run.ended)
        row["own_zero_gradient"] = {name: float(ended[name].norm()) for name in own.zero_gradient}
        errors = {name: error for name, error in errors.items() if name not in own.zero_gradient}
        row["own_worst_tensor"], row["own"] = max(errors.items(), key=lambda item: item[1])
    return row


def control(encoded: str, world: int) -> list[dict[str, Any]]:
    """The same check of LAMBs that take each shard, or each rank's piece of a tensor, for a tensor."""
    kinds = ("shard", "piece") if world > 1 else ("shard",)
    places = [Place("fp32", stage, world, 1, naive=kind) for kind in kinds for stage in (1, 2, 3)]
    rows = []
    for place, run in played(encoded, world, places):
        name, error = against_fed_reference(run, place).worst
        rows.append({"ratio_of": place.naive, "stage": place.stage, "world": world, "weights": error, "tensor": name})
    return rows


def print_agreement(figures: dict[str, Any]) -> None:
    """The three tables."""
    rows = figures["agreement"]
    print(f"{STEPS} steps, gradients clipped; ‖p - p_ref‖/‖p_ref‖ of the worst tensor, trust ratios' relative error")
    cells = []
    for row in rows:
        own = f"{row['own']:.1e} {row['own_worst_tensor']}" if "own" in row else ""
        cut = [row["precision"], row["stage"], row["world"], row["accumulation"], "yes" if row["pkm"] else "no"]
        fed = [f"{row['weights']:.1e} {row['worst_tensor']}", f"{row['ratio']:.1e}", f"{row['update_norm']:.1e}"]
        cells.append([*cut, row["clipped_steps"], *fed, own])
    cli.table(
        ["precision", "ZeRO", "world", "accum.", "memory", "clipped", "weights, fed the run's gradients",
         "trust ratios", "update norm", "weights, own gradients"], cells,
    )  # fmt: skip
    print(
        "\nWith a memory, own gradients are reported, not bounded: where scores tie to fp32's rounding, the run "
        "reads another value than the reference, and the two part from there."
    )
    print("\nTensors whose true gradient is zero (they follow rounding; not bounded with own gradients):")
    for model, names in figures["zero_gradient"].items():
        print(f"  {model}: {', '.join(names) or 'none'}")
    largest = {}
    for row in rows:
        for name, norm in row.get("own_zero_gradient", {}).items():
            largest[name] = max(largest.get(name, 0.0), norm)
    for name, norm in largest.items():
        print(f"  {name}: began at zero; its norm after {STEPS} steps is at most {norm:.1e} in any fp32 run")
    print("\nNegative control: the naive ratio, by the same check")
    naive = [
        [f"of each {row['ratio_of']}", row["stage"], row["world"], f"{row['weights']:.1e}", row["tensor"],
         f"{row['weights'] / WEIGHTS_BOUND:.0f}"]
        for row in figures["naive"]
    ]  # fmt: skip
    cli.table(["ratio", "ZeRO", "world", "weights", "tensor", "times the bound"], naive)
    print()


def faults_of(figures: dict[str, Any]) -> list[str]:
    """What the agreement's figures miss."""
    faults = []
    for row in figures["agreement"]:
        label = " ".join(f"{key}={row[key]}" for key in ("precision", "stage", "world", "accumulation", "pkm"))
        checks = {
            f"weights {row['weights']:.1e} fed the run's gradients": row["weights"] <= WEIGHTS_BOUND,
            f"trust ratios {row['ratio']:.1e}": row["ratio"] <= RATIO_BOUND,
            f"update norm {row['update_norm']:.1e}": row["update_norm"] <= RATIO_BOUND,
            f"{row['reduces']} all_reduces a step": row["reduces"] == [min(row["stage"], 1)],
            "no step was clipped": row["clipped_steps"] > 0,
            "the model does not hold its masters": row["model_holds_masters"],
            f"weights {row.get('own', 0):.1e} with own gradients": row["pkm"] or row["own"] <= WEIGHTS_BOUND,
        }
        faults += [f"{label}: {what}" for what, kept in checks.items() if not kept]
    for row in figures["naive"]:
        if row["weights"] <= CONTROL * WEIGHTS_BOUND:
            faults.append(
                f"negative control ({row['ratio_of']}, ZeRO {row['stage']}, world {row['world']}) is only "
                f"{row['weights'] / WEIGHTS_BOUND:.0f} times over the bound"
            )
    return faults


# ---- save and resume -----------------------------------------------------------------------------------------------


def resume(encoded: str, figures: dict[str, Any]) -> list[str]:
    """Every pair of (stage, world) without memory, and each place with itself with memory; what was missed."""
    grid = [Place("fp32", stage, world, 4 // world, pkm=False) for world in (1, 2) for stage in (0, 1, 2, 3)]
    selves = [Place(*kind, world, 4 // world, pkm=True) for world in (1, 2) for kind in KINDS]
    pairs = [(source, place) for source in grid for place in grid] + [(place, place) for place in selves]
    with tempfile.TemporaryDirectory() as root:
        cli.say(f"{len(grid + selves)} runs save, {len(pairs)} resume")
        runs = resumed_runs(encoded, root, (MIDDLE, STEPS), grid + selves, pairs)
    rows, missed = [], []
    for source, place in pairs:
        found = against_undisturbed(runs[source], runs[source, place])
        if found.weights > WEIGHTS_BOUND or (source == place and not found.bitwise):
            missed.append(f"resume {source} at {place}: {found}")
        row = {"source": str(source), "place": str(place), "weights": found.weights, "tensor": found.tensor}
        rows.append(row | {"bitwise": found.bitwise})
    figures["resume"] = rows
    _print_resume(rows, grid, selves)
    return missed


def _print_resume(rows: list[dict[str, Any]], grid: list[Place], selves: list[Place]) -> None:
    print(f"Saved at step {MIDDLE} (row), resumed (column), step {STEPS} against the undisturbed run: worst tensor")
    found = {(row["source"], row["place"]): row for row in rows}
    cells = []
    for source in grid:
        across = [found[str(source), str(place)] for place in grid]
        name = f"ZeRO {source.stage}, world {source.world}"
        cells.append([name, *("bitwise" if row["bitwise"] else f"{row['weights']:.1e}" for row in across)])
    cli.table(["saved at", *(f"{place.stage}/{place.world}" for place in grid)], cells)
    bitwise = sum(found[str(place), str(place)]["bitwise"] for place in selves)
    print(f"With memory, fp32 and bf16, each place resumed by itself: {bitwise} of {len(selves)} bitwise\n")


if __name__ == "__main__":
    raise SystemExit(main())
