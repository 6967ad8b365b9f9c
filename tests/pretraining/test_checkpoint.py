"""Checkpoints: optimiser state by parameter name for any world size and stage, damage detected, careful deletion."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
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

# ---- state across world sizes and stages ---------------------------------------------------------------------------

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


# ---- the manifest --------------------------------------------------------------------------------------------------


def commit(run: Path, step: int, run_id: str = "0123abcd") -> Path:
    """A small committed checkpoint."""
    folder = run / checkpoint.folder_name(step)
    contents = {"model/model.safetensors": b"weights" * 100, "state.json": b'{"step": 1}', "recipe.yaml": b"run: {}"}
    contents |= {"model/config.json": b"{}"} | dict.fromkeys(map(checkpoint.optimizer_file, (0, 1), (2, 2)), b"moments")
    written = [checkpoint.write_file(str(folder), file, data) for file, data in contents.items()]
    checkpoint.write_manifest(str(folder), run_id, step, written)
    return folder


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGES = {
    "no manifest.json": lambda folder: (folder / "manifest.json").unlink(),
    "manifest.json is damaged": lambda folder: (folder / "manifest.json").write_text('{"format": 1, "files": {'),
    "model/model.safetensors has 699 bytes, the manifest says 700": lambda folder: truncate(
        folder / "model" / "model.safetensors"
    ),
    "model/model.safetensors does not match its sha256": lambda folder: flip_bit(
        folder / "model" / "model.safetensors"
    ),
    "state.json is missing": lambda folder: (folder / "state.json").unlink(),
    "belongs to another run (ffff0000)": lambda folder: checkpoint.write_manifest(str(folder), "ffff0000", 1, []),
}


def test_a_whole_checkpoint_verifies(tmp_path):
    folder = commit(tmp_path, 500)
    assert folder.name == "checkpoint-000500"
    assert checkpoint.verify(str(folder), "0123abcd") is None
    assert checkpoint.verify(str(folder)) is None, "whoever's it is"


@pytest.mark.parametrize("reason", DAMAGES)
def test_every_damage_is_named(tmp_path, reason):
    folder = commit(tmp_path, 1)
    DAMAGES[reason](folder)
    said = checkpoint.verify(str(folder), "0123abcd")
    assert said is not None
    assert reason in said


@pytest.mark.parametrize("content", ['{"files": {"state.json": 3}, "run": "0123abcd"}', "[]", "{}", '{"run": "x"}'])
def test_a_manifest_of_another_shape_is_damage_too(tmp_path, content):
    folder = commit(tmp_path, 1)
    (folder / "manifest.json").write_text(content)
    assert "manifest.json is damaged" in str(checkpoint.verify(str(folder), "0123abcd"))


def rewrite(folder: Path, change: Callable[[dict], object]) -> str:
    """What `verify` says once the list of files in the manifest was changed."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest["files"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(checkpoint.verify(str(folder), "0123abcd"))


def test_a_manifest_lists_what_a_checkpoint_needs_and_nothing_outside_it(tmp_path):
    (tmp_path / "outside").write_bytes(b"weights" * 100)
    outside = {"size": 700, "sha256": checkpoint.describe_file(str(tmp_path), "outside").sha256}
    assert rewrite(commit(tmp_path, 1), lambda files: files.clear()) == "manifest.json does not list model/config.json"
    needed = ["state.json", "recipe.yaml", "model/model.safetensors", checkpoint.optimizer_file(1, 2)]
    for step, file in enumerate(needed, 2):
        lacking = "optimizer-00000-of-00001.safetensors" if file.startswith("optimizer") else file
        assert rewrite(commit(tmp_path, step), lambda files, file=file: files.pop(file)).endswith(f"not list {lacking}")
    commit(tmp_path, 8).joinpath("model", ".hidden").write_bytes(b"weights" * 100)
    hidden = lambda files: files.update({"model/.hidden": outside})  # noqa: E731
    assert rewrite(tmp_path / checkpoint.folder_name(8), hidden) == "None", "a model folder may hold more"
    for step, file in enumerate(
        [
            "../outside",
            "model/..",
            "model/.",
            "model//x",
            str(tmp_path / "outside"),
            "model/../../outside",
            "..",
            "",
            "a/b",
        ],
        9,
    ):
        said = rewrite(commit(tmp_path, step), lambda files, file=file: files.update({file: outside}))
        assert said == f"manifest.json lists {file!r}, which is no file of a checkpoint"


def test_a_folder_in_the_place_of_a_file_is_damage(tmp_path):
    for step, file in enumerate(["state.json", "manifest.json", "model/model.safetensors"]):
        folder = commit(tmp_path, step)
        (folder / file).unlink()
        (folder / file).mkdir()
        assert "a folder" in str(checkpoint.verify(str(folder), "0123abcd"))


def test_only_listed_optimizer_files_of_their_own_shape_are_read(tmp_path):
    def moments(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(flat), torch.zeros_like(flat)

    flat = torch.arange(6.0)
    places = checkpoint.places_of([Fragment("a", (6,), 0, 6, flat, 0)])
    flats = {kind: flat.clone() for kind in checkpoint.KINDS}
    sound = checkpoint.optimizer_bytes(places, flats)
    written = checkpoint.write_file(str(tmp_path), checkpoint.optimizer_file(0, 1), sound)
    checkpoint.write_manifest(str(tmp_path), "0123abcd", 1, [written])
    (tmp_path / "optimizer-00007-of-00001.safetensors").write_bytes(b"stray")
    (tmp_path / "optimizer-notes.txt").write_text("stray")
    read = torch.zeros(6)
    checkpoint.OptimizerReader(str(tmp_path)).restore([Fragment("a", (6,), 0, 6, read, 0)], moments)
    assert torch.equal(read, flat)

    longer = [place | {"length": 7} for place in places]
    shapes = {
        "empty": b"",
        "short": b"\x05",
        "endless": b"\xff" * 8 + b"{}",
        "no header": (5).to_bytes(8, "little") + b"hello",
        "no metadata": (2).to_bytes(8, "little") + b"{}",
        "other places": checkpoint.optimizer_bytes([{"name": "a"}], flats),
        "negative": checkpoint.optimizer_bytes([places[0] | {"start": -1}], flats),
        "longer than its tensors": checkpoint.optimizer_bytes(longer, flats),
        "one kind": checkpoint.optimizer_bytes(places, {"master": flat}),
        "of another type": checkpoint.optimizer_bytes(places, flats | {"exp_avg": flat.half()}),
        "cut off": sound[:-4],
    }
    for what, content in shapes.items():
        (tmp_path / checkpoint.optimizer_file(0, 1)).write_bytes(content)
        with pytest.raises(TwilbertError, match="optimizer-00000-of-00001"):
            checkpoint.OptimizerReader(str(tmp_path)).restore([Fragment("a", (6,), 0, 6, read, 0)], moments)
            raise AssertionError(what)


def test_moments_that_are_not_finite_are_refused_by_tensor(tmp_path):
    flat = torch.arange(6.0)
    places = checkpoint.places_of([Fragment("a.weight", (6,), 0, 6, flat, 0)])
    flats = {kind: flat.clone() for kind in checkpoint.KINDS}
    flats["exp_avg_sq"][2] = math.inf
    written = checkpoint.write_file(
        str(tmp_path), checkpoint.optimizer_file(0, 1), checkpoint.optimizer_bytes(places, flats)
    )
    checkpoint.write_manifest(str(tmp_path), "0123abcd", 1, [written])
    with pytest.raises(TwilbertError, match=r"00001.safetensors: tensor exp_avg_sq of a.weight: 1 of 6 numbers"):
        fragment = Fragment("a.weight", (6,), 0, 6, torch.zeros(6), 0)
        checkpoint.OptimizerReader(str(tmp_path)).restore([fragment], lambda p: (torch.zeros(6), torch.zeros(6)))


def test_resume_takes_the_newest_that_verifies_and_reports_what_it_skipped(tmp_path):
    for step in (10, 20, 30, 40):
        commit(tmp_path, step)
    (tmp_path / "checkpoint-000040" / "manifest.json").unlink()
    flip_bit(tmp_path / "checkpoint-000030" / "state.json")
    (tmp_path / "model").mkdir()  # not a checkpoint
    said: list[str] = []
    found = checkpoint.newest(str(tmp_path), "0123abcd", said.append)
    assert found == str(tmp_path / "checkpoint-000020")
    assert said == [
        "skipped checkpoint-000040: no manifest.json: its writing was not finished",
        "skipped checkpoint-000030: state.json does not match its sha256",
    ]


def test_a_run_without_checkpoints_starts_anew(tmp_path):
    assert checkpoint.newest(str(tmp_path / "nowhere"), "0123abcd", print) is None
    (tmp_path / "checkpoint-000010").mkdir()  # was being written when the run was killed
    assert checkpoint.newest(str(tmp_path), "0123abcd", lambda _: None) is None


def test_a_run_whose_checkpoints_are_all_damaged_is_not_overwritten(tmp_path):
    for step in (10, 20):
        flip_bit(commit(tmp_path, step) / "state.json")
    said: list[str] = []
    with pytest.raises(TwilbertError, match=r"no checkpoint verifies.*run\.name"):
        checkpoint.newest(str(tmp_path), "0123abcd", said.append)
    assert len(said) == 2


# ---- retention -----------------------------------------------------------------------------------------------------


def steps_left(run: Path) -> list[int]:
    return checkpoint.steps_in(str(run))


def test_the_newest_and_the_best_stay(tmp_path):
    for step in (10, 20, 30, 40, 50):
        commit(tmp_path, step)
    (tmp_path / "checkpoint-000015").mkdir()  # never committed
    checkpoint.retire(str(tmp_path), written=50, keep=2, protected={20})
    assert steps_left(tmp_path) == [20, 40, 50]
    checkpoint.retire(str(tmp_path), written=50, keep=9, protected=set())
    assert steps_left(tmp_path) == [20, 40, 50]


def test_the_last_one_is_never_removed(tmp_path):
    commit(tmp_path, 10)
    checkpoint.retire(str(tmp_path), written=10, keep=1, protected=set())
    assert steps_left(tmp_path) == [10]


def test_damaged_checkpoints_of_later_steps_do_not_push_out_sound_ones(tmp_path):
    """The run resumed at 10, since 30 and 40 were damaged, and has just saved 20: the only sound ones are 10 and 20."""
    for step in (10, 20, 30, 40):
        folder = commit(tmp_path, step)
        if step > 20:
            flip_bit(folder / "state.json")
    checkpoint.retire(str(tmp_path), written=20, keep=1, protected=set())
    assert 20 in steps_left(tmp_path)
    assert checkpoint.newest(str(tmp_path), "0123abcd", lambda _: None) == str(tmp_path / "checkpoint-000020")
