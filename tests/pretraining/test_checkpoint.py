"""Checkpoints: damage is detected by name, deletion is careful."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from twilbert.errors import TwilbertError
from twilbert.optim.fragments import Fragment
from twilbert.pretraining import checkpoint

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
    damage = checkpoint.verify(str(folder), "0123abcd")
    assert damage is not None
    assert reason in damage


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
    more = rewrite(tmp_path / checkpoint.folder_name(8), lambda files: files.update({"model/.hidden": outside}))
    assert more == "None", "a model folder may hold more"
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
        reason = rewrite(commit(tmp_path, step), lambda files, file=file: files.update({file: outside}))
        assert reason == f"manifest.json lists {file!r}, which is no file of a checkpoint"


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
    messages: list[str] = []
    newest = checkpoint.newest(str(tmp_path), "0123abcd", messages.append)
    assert newest == str(tmp_path / "checkpoint-000020")
    assert messages == [
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
    messages: list[str] = []
    with pytest.raises(TwilbertError, match=r"no checkpoint verifies.*run\.name"):
        checkpoint.newest(str(tmp_path), "0123abcd", messages.append)
    assert len(messages) == 2


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
