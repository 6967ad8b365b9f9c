"""Optimiser state by parameter name, read at any world size and ZeRO stage."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.pretraining.training_runs import CPU, encoded_folder, model_of, plan_of, rate, small_recipe, spawn
from twilbert import storage
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream.stream import micro_batches
from twilbert.errors import TwilbertError
from twilbert.evaluation import scoring
from twilbert.optim.fragments import Fragment
from twilbert.pretraining import checkpoint
from twilbert.pretraining.engine import make_engine
from twilbert.pretraining.shards import local_fragments, owned

SAVED, END = 3, 6  # steps before the checkpoint and at the end
Place = tuple[str, int, int]  # precision, ZeRO stage, world size
State = dict[str, dict[str, np.ndarray]]  # kind -> parameter -> values

SOURCES: list[Place] = [("fp32", stage, world) for stage in (0, 1, 2, 3) for world in (1, 2)] + [("bf16", 1, 2)]


def readers(source: Place) -> list[Place]:
    """Itself, another stage at the same world size, another stage at the other world size."""
    precision, stage, world = source
    if precision == "bf16":
        return [source, ("bf16", 3, 1)]
    return [source, ("fp32", (stage + 2) % 4, world), ("fp32", (stage + 1) % 4, 3 - world)]


def name_of(place: Place) -> str:
    return "{}-stage{}-world{}".format(*place)


class _Run:
    """A training run over gloo in this process, one of `world` ranks."""

    def __init__(self, rank: int, place: Place, encoded: EncodedCorpus, source: str | None) -> None:
        precision, stage, self.world = place
        self.rank, self.encoded = rank, encoded
        self.recipe = small_recipe(zero_stage=stage, precision=precision, max_grad_norm=0.5)
        self.accumulation = 4 // self.world  # the same micro-batches at both world sizes
        model = model_of(self.recipe, encoded)
        if source is not None:  # as the checkpoint's model folder does
            whole = [Fragment(n, tuple(p.shape), 0, p.numel(), p, 0) for n, p in model.named_parameters()]
            checkpoint.OptimizerReader(source).restore(whole, lambda p: (torch.empty_like(p), torch.empty_like(p)))
        self.engine, self.optimizer = make_engine(self.recipe, model, precision, self.accumulation, self.world)
        if source is not None:
            checkpoint.OptimizerReader(source).restore(local_fragments(self.engine), self.optimizer.moments)

    def steps(self, begin: int, end: int) -> None:
        plan = plan_of(self.recipe, self.encoded, self.world, self.accumulation)
        for batch in micro_batches(plan, self.rank, begin, end):
            self.optimizer.update, self.optimizer.learning_rate = batch.step + 1, rate(self.recipe, batch.step + 1)
            out = self.engine(*scoring.tensors(batch, CPU))
            assert batch.n_masked is not None
            loss = out.mlm_loss_sum / batch.n_masked + out.rop_loss_sum / batch.n_rop
            self.engine.backward(loss * (self.accumulation * self.world))
            self.engine.step()

    def save(self, folder: str) -> None:
        fragments = owned(local_fragments(self.engine), self.recipe.training.zero_stage, self.rank, self.world)
        flats = checkpoint.copy_to_host(fragments, self.optimizer.moments)
        data = checkpoint.optimizer_bytes(checkpoint.places_of(fragments), flats)
        checkpoint.write_file(folder, checkpoint.optimizer_file(self.rank, self.world), data)
        torch.distributed.barrier()
        if self.rank == 0:
            files = [checkpoint.describe_file(folder, file) for file in storage.list_dir(folder)]
            checkpoint.write_manifest(folder, "0123abcd", SAVED, files)
        torch.distributed.barrier()

    def pieces(self) -> list[tuple[str, tuple[int, ...], int, list[np.ndarray]]]:
        """(parameter, shape, start, [weights, first, second moment]) of what this rank holds."""
        found = []
        for f in local_fragments(self.engine):
            kinds = [f.values, *(f.of(moment) for moment in self.optimizer.moments(f.flat))]
            found.append((f.name, f.shape, f.start, [kind.float().numpy().copy() for kind in kinds]))
        return found


def play(rank: int, world: int, root: str, encoded_path: str, writes: bool, reads: bool) -> dict[Any, Any]:
    """Write at every place of this world size and go on; read what others wrote, and go on."""
    encoded = EncodedCorpus.open(encoded_path)
    results: dict[Any, Any] = {}
    for place in SOURCES if writes else []:
        if place[2] == world:
            run = _Run(rank, place, encoded, None)
            run.steps(0, SAVED)
            run.save(storage.join(root, name_of(place)))
            run.steps(SAVED, END)
            results[place, "end"] = run.pieces()
    for source in SOURCES if reads else []:
        for place in readers(source):
            if place[2] == world:
                run = _Run(rank, place, encoded, storage.join(root, name_of(source)))
                results[source, place, "read"] = run.pieces()
                run.steps(SAVED, END)
                results[source, place, "end"] = run.pieces()
    return results


def assembled(by_rank: list[dict[Any, Any]], key: Any) -> State:
    """The ranks' pieces as whole tensors; every element must come from somewhere."""
    state: State = {kind: {} for kind in checkpoint.KINDS}
    for results in by_rank:
        for name, shape, start, kinds in results[key]:
            for kind, values in zip(checkpoint.KINDS, kinds, strict=True):
                whole = state[kind].setdefault(name, np.full(int(np.prod(shape)), np.nan, np.float32))
                whole[start : start + len(values)] = values
    assert not any(np.isnan(whole).any() for tensors in state.values() for whole in tensors.values())
    return state


def on_disk(folder: Path) -> State:
    """A checkpoint's optimiser files, read by what their documentation says of them."""
    state: State = {kind: {} for kind in checkpoint.KINDS}
    for file in sorted(folder.glob("optimizer-*.safetensors")):
        data = file.read_bytes()
        (size,) = struct.unpack_from("<Q", data)
        places = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["fragments"])
        tensors, offset = load_file(file), 0
        for place in places:
            for kind in checkpoint.KINDS:
                whole = state[kind].setdefault(place["name"], np.full(int(np.prod(place["shape"])), np.nan, np.float32))
                at = slice(place["start"], place["start"] + place["length"])
                assert np.isnan(whole[at]).all(), "no element is written twice"
                whole[at] = tensors[kind].numpy()[offset : offset + place["length"]]
            offset += place["length"]
    return state


def assert_same(got: State, expected: State, bound: float, what: Any) -> None:
    assert got.keys() == expected.keys()
    for kind, tensors in expected.items():
        assert got[kind].keys() == tensors.keys(), what
        for name, values in tensors.items():
            if bound == 0:
                assert np.array_equal(got[kind][name], values), (what, kind, name)
            else:
                error = np.linalg.norm(got[kind][name] - values) / max(np.linalg.norm(values), 1e-30)
                assert error <= bound, (what, kind, name, error)


def test_state_written_at_one_stage_and_world_size_is_read_at_another(tmp_path):
    encoded = encoded_folder(tmp_path / "encoded")
    root = tmp_path / "checkpoints"
    one = spawn(play, 1, str(root), encoded, True, False)
    two = spawn(play, 2, str(root), encoded, True, True)
    back = spawn(play, 1, str(root), encoded, False, True)

    for source in SOURCES:
        written = on_disk(root / name_of(source))
        undisturbed = assembled(one if source[2] == 1 else two, (source, "end"))
        assert any((written["master"][n] != values).any() for n, values in undisturbed["master"].items())
        for place in readers(source):
            results = back if place[2] == 1 else two
            assert_same(assembled(results, (source, place, "read")), written, 0, (source, place))
            if place == source:
                assert_same(assembled(results, (source, place, "end")), undisturbed, 0, (source, place))
            elif source[0] == "fp32":
                assert_same(assembled(results, (source, place, "end")), undisturbed, 1e-5, (source, place))


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    def moments(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(flat), torch.zeros_like(flat)

    flat = torch.arange(6.0)
    fragments = [Fragment("a.weight", (2, 3), 0, 6, flat, 0)]
    data = checkpoint.optimizer_bytes(checkpoint.places_of(fragments), checkpoint.copy_to_host(fragments, moments))
    written = checkpoint.write_file(str(tmp_path), checkpoint.optimizer_file(0, 1), data)
    checkpoint.write_manifest(str(tmp_path), "0123abcd", 1, [written])
    reader = checkpoint.OptimizerReader(str(tmp_path))
    larger = Fragment("a.weight", (4, 3), 0, 12, torch.zeros(12), 0)
    with pytest.raises(TwilbertError, match=r"holds 6 of the 12 elements of a\.weight"):
        reader.restore([larger], moments)
    with pytest.raises(TwilbertError, match=r"holds 0 of the 3 elements of b\.bias"):
        reader.restore([Fragment("b.bias", (3,), 0, 3, torch.zeros(3), 0)], moments)
