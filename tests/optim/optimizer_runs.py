"""Training runs with LAMB or Muon that record the optimiser's input and output, and their distance from a reference.

`play` runs a list of places in the processes of one world size; each rank returns its pieces, and `Whole` joins them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from tests.optim import reference
from tests.optim.muon_reference import NaiveMuon, ReferenceMuon, SmallBuckets
from tests.pretraining.training_runs import CPU, model_of, plan_of, rate, spawn
from twilbert import storage
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream.stream import micro_batches
from twilbert.evaluation import scoring
from twilbert.model.memory import update_running_statistics
from twilbert.optim.fragments import Fragment
from twilbert.optim.optimizers import OPTIMIZERS
from twilbert.pretraining import checkpoint
from twilbert.pretraining.engine import full_weights, make_engine
from twilbert.pretraining.shards import local_fragments, owned
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Recipe

WEIGHTS_BOUND, RATIO_BOUND = 2e-5, 1e-6
SETTINGS = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-6, "weight_decay": 0.01}
MAX_GRAD_NORM = 1.0
RATES = {"lamb": 1e-2, "muon": 3e-3}
NAIVE = {"lamb": reference.NaiveLamb, "muon": NaiveMuon}
REFERENCES = {"lamb": reference.ReferenceLamb, "muon": ReferenceMuon}


@dataclass(frozen=True)
class Place:
    """The configuration of a run: precision, ZeRO stage, world size, micro-batches a step and worker."""

    precision: str
    stage: int
    world: int
    accumulation: int
    pkm: bool = True
    naive: bool = False
    """Whether it runs the negative control: an optimiser that sees a rank's piece of a tensor as the whole."""
    optimizer: str = "lamb"

    def __str__(self) -> str:
        kind = f"{self.optimizer}{'-pkm' * self.pkm}-{self.precision}"
        return f"{kind}-stage{self.stage}-world{self.world}-acc{self.accumulation}"


def recipe_of(place: Place) -> Recipe:
    """A tiny model whose sizes divide by nothing: a shared block, factorised embeddings, one memory layer."""
    model = {
        "hidden_size": 30, "embedding_size": 13, "factorize_embeddings": True, "n_encoders": 3, "n_heads": 3,
        "attention_size": 5, "cross_sharing": True, "pkm": place.pkm,
        "pkm_params": {
            "factorize_embeddings": True, "k_dim": 6, "memory_size": 7, "n_heads": 2, "knn": 3, "in_layers": [1],
        },
    }  # fmt: skip
    training = {
        "optimizer": place.optimizer, "schedule": "linear", "learning_rate": RATES[place.optimizer], "warmup_steps": 5,
        "max_steps": 40,
        "global_batch_size": 24, "precision": place.precision, "zero_stage": place.stage,
        "max_grad_norm": MAX_GRAD_NORM, **SETTINGS,
    }  # fmt: skip
    rop = {"n_hidden": 1, "hidden_size": 17}
    return loading.build({"corpus": {"max_len": 20}, "model": model, "objective": {"rop": rop}, "training": training})


class Run:
    """A training run in this process, one of `place.world` ranks; from a checkpoint's optimiser state if given."""

    def __init__(self, rank: int, place: Place, encoded: EncodedCorpus, source: str | None = None) -> None:
        self.rank, self.place, self.encoded = rank, place, encoded
        self.recipe = recipe_of(place)
        model = model_of(self.recipe, encoded)
        if source is not None:  # as the checkpoint's model folder does
            whole = [Fragment(n, tuple(p.shape), 0, p.numel(), p, 0) for n, p in model.named_parameters()]
            checkpoint.OptimizerReader(source).restore(whole, lambda p: (torch.empty_like(p), torch.empty_like(p)))
        with patch.dict(OPTIMIZERS, NAIVE if place.naive else {"muon": SmallBuckets}):
            self.engine, self.optimizer = make_engine(
                self.recipe, model, place.precision, place.accumulation, place.world
            )
        self.fragments = local_fragments(self.engine)
        if source is not None:
            checkpoint.OptimizerReader(source).restore(self.fragments, self.optimizer.moments)
            model.load_state_dict(torch.load(f"{source}/buffers.pt"), strict=False)
        if isinstance(self.optimizer, reference.NaiveLamb):
            self.optimizer.fragments = self.fragments
        self.begun = self.weights()
        self.gradients: list[np.ndarray] = []
        self.ratios: list[np.ndarray] = []
        self.update_squares: list[float] = []
        self.reduces: list[int] = []  # all_reduces inside each step
        self._record()

    def _record(self) -> None:
        step = self.optimizer.step

        def recorded(closure: Any = None) -> None:
            assert all(f.flat.grad is not None for f in self.fragments)
            self.gradients.append(self._together(lambda flat: flat.grad))
            with patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
                step(closure)
            self.reduces.append(all_reduce.call_count)
            self.ratios.append(getattr(self.optimizer, "trust_ratios", torch.zeros(0)).numpy().copy())
            self.update_squares.append(float(self.optimizer.update_square))

        self.optimizer.step = recorded

    def _together(self, buffer: Any) -> np.ndarray:
        return np.concatenate([f.of(buffer(f.flat)).float().numpy() for f in self.fragments])  # a copy

    def weights(self) -> np.ndarray:
        """The fp32 weights of this rank's fragments, one after the other."""
        return self._together(lambda flat: flat)

    def steps(self, begin: int, end: int) -> None:
        place = self.place
        plan = plan_of(self.recipe, self.encoded, place.world, place.accumulation)
        for batch in micro_batches(plan, self.rank, begin, end):
            self.optimizer.update, self.optimizer.learning_rate = batch.step + 1, rate(self.recipe, batch.step + 1)
            out = self.engine(*scoring.tensors(batch, CPU))
            assert batch.n_masked is not None
            loss = out.mlm_loss_sum / batch.n_masked + out.rop_loss_sum / batch.n_rop
            self.engine.backward(loss * (place.accumulation * place.world))
            last = self.engine.is_gradient_accumulation_boundary()
            self.engine.step()
            if last:
                update_running_statistics(self.engine.module)

    def save(self, folder: str) -> None:
        """What a checkpoint has of the optimiser, and the model's buffers beside it."""
        fragments = owned(self.fragments, self.place.stage, self.rank, self.place.world)
        flats = checkpoint.copy_to_host(fragments, self.optimizer.moments)
        data = checkpoint.optimizer_bytes(checkpoint.places_of(fragments), flats)
        checkpoint.write_file(folder, checkpoint.optimizer_file(self.rank, self.place.world), data)
        dist.barrier()
        if self.rank == 0:
            names = [checkpoint.optimizer_file(rank, self.place.world) for rank in range(self.place.world)]
            checkpoint.write_manifest(folder, "lamb", 0, [checkpoint.describe_file(folder, name) for name in names])
            torch.save(dict(self.engine.module.named_buffers()), f"{folder}/buffers.pt")
        dist.barrier()

    def record(self) -> dict[str, Any]:
        """The run's results as plain numpy, for the parent process."""
        named = list(self.engine.module.named_parameters())
        return {
            "shapes": {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in named},
            "layout": [(f.name, f.start, f.length) for f in self.fragments],
            "begun": self.begun, "ended": self.weights(), "gradients": self.gradients, "ratios": self.ratios,
            "moments": [self._together(lambda flat, k=k: self.optimizer.moments(flat)[k]) for k in (0, 1)],
            "update_squares": self.update_squares, "reduces": self.reduces, "names": self.optimizer.tensor_names,
            "model": {name: value.float().numpy() for name, value in full_weights(self.engine, self.rank).items()},
        }  # fmt: skip


def play(rank: int, world: int, encoded_path: str, places: list[Place], steps: int) -> list[dict[str, Any]]:
    """This rank's records of runs from the start at `places`, all of this world size."""
    encoded, records = EncodedCorpus.open(encoded_path), []
    for place in places:
        run = Run(rank, place, encoded)
        run.steps(0, steps)
        records.append(run.record())
    return records


def play_checkpoints(
    rank: int, world: int, encoded_path: str, root: str, cuts: tuple[int, int], saves: list[Place], pairs: list[Any]
) -> dict[Any, dict[str, Any]]:
    """Runs that save at step cuts[0] and go on to cuts[1]; then runs that resume there: (source, place) in `pairs`."""
    encoded, records = EncodedCorpus.open(encoded_path), {}
    middle, end = cuts
    for place in saves:
        run = Run(rank, place, encoded)
        run.steps(0, middle)
        run.save(storage.join(root, str(place)))
        run.steps(middle, end)
        records[place] = run.record()
    for source, place in pairs:
        run = Run(rank, place, encoded, storage.join(root, str(source)))
        run.steps(middle, end)
        records[source, place] = run.record()
    return records


# ---- records made whole --------------------------------------------------------------------------------------------


class Whole:
    """The ranks' records of one run as whole tensors; AssertionError where ranks disagree or an element is missing."""

    def __init__(self, by_rank: list[dict[str, Any]], stage: int) -> None:
        first = by_rank[0]
        self.shapes: dict[str, tuple[int, ...]] = first["shapes"]
        self.names: list[str] = first["names"]
        self.ratios: list[np.ndarray] = first["ratios"]
        if stage == 0:
            for other in by_rank[1:]:
                assert np.array_equal(other["ended"], first["ended"]), "ranks of stage 0 went apart"
            by_rank = by_rank[:1]
        else:
            assert all(np.array_equal(a, b) for r in by_rank for a, b in zip(r["ratios"], self.ratios, strict=True))
        self.moved = np.sqrt(np.sum([r["update_squares"] for r in by_rank], axis=0))
        self.reduces = sorted({count for record in by_rank for count in record["reduces"]})
        self._by_rank = by_rank
        self.begun = self._assemble("begun")
        self.ended = self._assemble("ended")
        self.moments = [self._assemble("moments", k) for k in (0, 1)]
        self.model = {n: torch.from_numpy(first["model"][n]) for n in self.shapes}

    @property
    def gradients(self) -> Iterator[reference.Tensors]:
        """The optimiser's gradients of each step: reduced and clipped."""
        return (self._assemble("gradients", step) for step in range(len(self.ratios)))

    def _assemble(self, kind: str, index: int | None = None) -> reference.Tensors:
        whole = {n: np.full(int(np.prod(shape)), np.nan, np.float32) for n, shape in self.shapes.items()}
        for record in self._by_rank:
            values, at = record[kind] if index is None else record[kind][index], 0
            for name, start, length in record["layout"]:
                assert np.isnan(whole[name][start : start + length]).all(), "two ranks hold the same element"
                whole[name][start : start + length] = values[at : at + length]
                at += length
            assert at == len(values)
        assert not any(np.isnan(values).any() for values in whole.values()), f"{kind}: no rank holds some elements"
        return {name: torch.from_numpy(values).view(self.shapes[name]) for name, values in whole.items()}


@dataclass(frozen=True)
class Fed:
    """The distance of a run from the reference that took the run's gradients."""

    weights: dict[str, float]  # ‖p - p_ref‖ / ‖p_ref‖ of each logical tensor
    ratio: float  # largest relative error of a trust ratio at any step
    moved: float  # the same of the update norm
    clipped: int  # steps whose gradient was at the limit

    @property
    def worst(self) -> tuple[str, float]:
        return max(self.weights.items(), key=lambda item: item[1])


def against_fed_reference(run: Whole, place: Place) -> Fed:
    """Feed a run's gradients to the float64 reference and compare weights, trust ratios and update norms."""
    recipe = recipe_of(place)
    expected_run = REFERENCES[place.optimizer](run.begun, **SETTINGS)
    ratio = moved = 0.0
    clipped = 0
    for number, gradients in enumerate(run.gradients):
        norm = float(torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt())
        assert norm <= MAX_GRAD_NORM * (1 + 1e-5), "the optimiser sees clipped gradients"
        clipped += norm > MAX_GRAD_NORM * (1 - 1e-5)
        expected = expected_run.step(gradients, rate(recipe, number + 1))
        if not place.naive:
            moved = max(moved, abs(run.moved[number] / expected_run.moved - 1))
        if place.optimizer == "lamb" and not place.naive:
            got = dict(zip(run.names, run.ratios[number], strict=True))
            assert got.keys() == expected.keys()
            ratio = max(ratio, *(abs(got[name] / expected[name] - 1) for name in expected))
    assert expected_run.t > 0
    return Fed(reference.relative_errors(run.ended, expected_run.weights), ratio, moved, clipped)


def model_holds_its_masters(run: Whole, place: Place) -> bool:
    """Whether the weights the model computes with are the optimiser's fp32 ones, rounded to the run's precision."""
    kind = torch.bfloat16 if place.precision == "bf16" else torch.float32
    return all(torch.equal(run.model[n], run.ended[n].to(kind).float()) for n in run.shapes)


# ---- the reference's own run ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnRun:
    """The float64 reference's run with its own gradients of whole batches."""

    weights: reference.Tensors
    zero_gradient: list[str]  # tensors whose gradient is zero but for float64's rounding, at every step


def own_run(place: Place, encoded: EncodedCorpus, steps: int) -> OwnRun:
    """One process, float64 throughout, one forward for what all workers of `place` forward at once."""
    recipe = recipe_of(replace(place, precision="fp32", stage=0))
    model: nn.Module = model_of(recipe, encoded).double().train()
    lamb = reference.ReferenceLamb(dict(model.named_parameters()), **SETTINGS)
    largest = dict.fromkeys(lamb.weights, 0.0)
    plan = plan_of(recipe, encoded, place.world, place.accumulation)
    ranks = [list(micro_batches(plan, rank, 0, steps)) for rank in range(place.world)]
    together = list(zip(*ranks, strict=True))
    for step in range(steps):
        parts = together[step * place.accumulation : (step + 1) * place.accumulation]
        gradients, _ = reference.gradients_of(model, parts, MAX_GRAD_NORM)
        for name, part in reference.logical(gradients).items():
            largest[name] = max(largest[name], float(part.norm()))
        lamb.step(gradients, rate(recipe, step + 1))
        reference.put_weights(model, lamb.weights)
    return OwnRun(lamb.weights, [name for name, norm in largest.items() if norm < 1e-12])


# ---- save and resume -----------------------------------------------------------------------------------------------


def resumed_runs(
    encoded: str, root: str, cuts: tuple[int, int], places: list[Place], pairs: list[tuple[Place, Place]]
) -> dict[Any, Whole]:
    """The undisturbed runs of `places` and the runs that resume at pair[1] what pair[0] saved; worlds of 1 and 2."""
    for place in places:
        (Path(root) / str(place)).mkdir()
    runs: dict[Any, Whole] = {}
    for world in (1, 2, 1):  # a world of 1 resumes in the end what 2 wrote
        first = not any(isinstance(key, Place) and key.world == world for key in runs)
        saves = [place for place in places if place.world == world and first]
        now = [pair for pair in pairs if pair[1].world == world and (pair[0].world <= world if first else True)]
        now = [pair for pair in now if pair not in runs]
        if not saves and not now:
            continue
        by_rank = spawn(play_checkpoints, world, encoded, root, cuts, saves, now)
        for key in by_rank[0]:
            stage = key.stage if isinstance(key, Place) else key[1].stage
            runs[key] = Whole([records[key] for records in by_rank], stage)
    return runs


def worst_resumed(runs: dict[Any, Whole], pairs: list[tuple[Place, Place]]) -> float:
    """The largest distance from the undisturbed run: none, bitwise, at the same place, else within the bound."""
    worst = 0.0
    for source, place in pairs:
        resumed = against_undisturbed(runs[source], runs[source, place])
        worst = max(worst, resumed.weights)
        assert resumed.weights <= WEIGHTS_BOUND, (source, place, resumed)
        assert resumed.bitwise or source != place, (source, place)
    return worst


@dataclass(frozen=True)
class Resumed:
    """The distance of a resumed run from the undisturbed one."""

    tensor: str
    weights: float  # ‖p - p_undisturbed‖ / ‖p_undisturbed‖ of the worst tensor
    bitwise: bool  # weights and both moments


def against_undisturbed(undisturbed: Whole, resumed: Whole) -> Resumed:
    """Compare a resumed run; AssertionError when a tensor did not change."""
    assert not any(torch.equal(resumed.begun[n], resumed.ended[n]) for n in resumed.ended), "a tensor did not move"
    pairs = [(undisturbed.ended, resumed.ended), *zip(undisturbed.moments, resumed.moments, strict=True)]
    errors = reference.relative_errors(resumed.ended, reference.logical(undisturbed.ended))
    tensor, worst = max(errors.items(), key=lambda item: item[1])
    return Resumed(tensor, worst, all(torch.equal(a[n], b[n]) for a, b in pairs for n in a))
