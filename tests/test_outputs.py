"""Output folders and files: whole or not at all, claimed by one command, replaced by their own alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.make_finetuning import make_base
from twilbert import outputs, storage
from twilbert.data.tokenizer.wordpiece import save_wordpiece_folder
from twilbert.errors import Interrupted, TwilbertError, UsageError
from twilbert.tracking import run_folder


def write(folder: Path, by: str = "sample", *names: str, **options) -> None:
    with outputs.new_folder(str(folder), by, **options) as work:
        for name in names or ("a", "below/b"):
            storage.write_bytes_atomic(storage.join(work, name), name.encode())


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), outputs.new_folder(str(tmp_path / "out"), "sample") as work:
        Path(work, "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "out")
    assert json.loads(storage.read_bytes(str(tmp_path / "out" / outputs.RECORD))) == {"sample": ["a", "below/b"]}


def test_an_old_folder_goes_when_the_new_one_stands(tmp_path):
    out = tmp_path / "out"
    out.mkdir()  # an empty one is no obstacle
    write(out)
    with pytest.raises(UsageError, match="already holds something; choose another folder, or --overwrite it"):
        write(out)
    with pytest.raises(RuntimeError), outputs.new_folder(str(out), "sample", overwrite=True):
        raise RuntimeError
    assert (out / "below" / "b").exists()
    write(out, "sample", "c", overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [outputs.RECORD, "c"] and len(list(tmp_path.iterdir())) == 1


def test_what_comes_while_the_command_works_stays(tmp_path):
    out = tmp_path / "out"
    write(out)
    with (
        pytest.raises(UsageError, match=r"did not write \(notes\)"),
        outputs.new_folder(str(out), "sample", overwrite=True) as work,
    ):
        Path(work, "a").write_text("new")
        (out / "notes").write_text("mine")
    assert (out / "a").read_text() == "a" and (out / "notes").exists()
    with pytest.raises(UsageError, match="already holds something"), outputs.new_folder(str(tmp_path / "o2"), "sample"):
        (tmp_path / "o2").mkdir()
        (tmp_path / "o2" / "theirs").write_text("theirs")
    assert (tmp_path / "o2" / "theirs").exists()


def test_strangers_files_move_along_where_nobody_can_be_asked(tmp_path):
    out = tmp_path / "model"
    write(out)
    (out / "mine").write_text("mine")
    (out / "empty").mkdir()
    (out / "link").symlink_to("nowhere")
    write(out, "sample", "a", overwrite=True, keep=True)
    assert sorted(path.name for path in out.iterdir()) == [outputs.RECORD, "a", "empty", "link", "mine"]


def test_a_kill_where_folders_cannot_change_places_is_mended_by_the_next_start(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(out)
    monkeypatch.setattr(storage, "_RENAME_EXCHANGE", 1 << 30)  # a flag that no file system knows
    write(out, "sample", "c", overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [outputs.RECORD, "c", "out"]
    real = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        write(out, overwrite=True)
    assert (out / "c").exists() and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    out.rename(tmp_path / f".out.{storage._HOST}01234567.old")  # killed there
    with pytest.raises(UsageError, match="already holds something"):
        write(out)
    assert (out / "c").exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_command_left_goes_and_what_another_writes_now_stays(kind, tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from twilbert import storage\n"
        "with storage.temporary(Path(sys.argv[1]), folder=sys.argv[2] == 'folder') as work:\n"
        "    print('writing', flush=True); sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)"
    )

    def start() -> subprocess.Popen:
        command = [sys.executable, "-c", code, str(tmp_path / "out"), kind]
        started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert started.stdout and started.stdout.readline() == "writing\n"
        return started

    def hidden() -> int:
        return sum(storage.is_temporary(path.name) for path in tmp_path.iterdir())

    def again() -> None:
        if kind == "file":
            storage.write_bytes_atomic(str(tmp_path / "out"), b"")
        else:
            write(tmp_path / "out", overwrite=True)

    (tmp_path / ".out.tmp").write_text("mine"), (tmp_path / ".out.0123456789ab.tmp").write_text("another machine's")
    first, second = start(), start()
    again()
    assert hidden() == 2, "both are alive"
    first.communicate("die\n")
    assert hidden() == 2
    again()
    assert hidden() == 1, "the killed one's is gone, the other's is not"
    second.communicate("die\n")
    again()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.0123456789ab.tmp", ".out.tmp", "out"]


@pytest.mark.parametrize("record", ["", "[]", "{", '{"sample": 3}', '{"vocab": ["a", "below/b"]}'])
def test_a_record_of_another_shape_names_nothing(record, tmp_path):
    write(tmp_path / "out")
    (tmp_path / "out" / outputs.RECORD).write_text(record)
    with pytest.raises(UsageError, match="did not write"):
        write(tmp_path / "out", overwrite=True)


def test_a_run_does_not_settle_among_other_files(tmp_path):
    from twilbert.recipe import loading

    recipe = loading.build({"run": {"storage_path": str(tmp_path)}})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"not a run \(recipe.yaml\)"):
        run_folder.claim(recipe, "mine", {})
    assert (tmp_path / "mine" / "recipe.yaml").read_text() == "mine"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["recipe.yaml"]


def claim(folder: Path, **identity: object) -> outputs.Claim:
    return outputs.Claim(str(folder), "a sweep", identity, "choose another --out")


@pytest.mark.parametrize("record", ["begun.json", "begun.yaml"])
def test_a_folder_is_resumed_by_the_same_identity_alone(record, tmp_path):
    out, same = tmp_path / "out", {"training": {"epochs": 3, "seed": None}, "tasks": ["a"]}
    claim(out, **same).begin(record)
    claim(out, **same | {"new setting": None}).begin(record)
    other = {"training": {"epochs": 4}, "tasks": [], "data": "f00d"}
    with pytest.raises(UsageError) as refused:
        claim(out, **other).begin(record)
    assert str(refused.value) == (
        f"{out}: holds a sweep with other settings or data:\n  data: was unset, now f00d\n  tasks: was ['a'], now []\n"
        "  training.epochs: was 3, now 4\n  choose another --out"
    )
    (out / record).write_text("[]\n")
    with pytest.raises(TwilbertError, match=rf"{out / record}: not the settings of a sweep"):
        claim(out, **same).begin(record)
    (out / record).rename(out / "notes")
    with pytest.raises(UsageError, match=r"not a sweep \(notes\); choose another --out"):
        claim(out, **same).begin(record)


def test_two_commands_do_not_work_in_one_folder_and_an_interrupted_one_leaves_no_new_folder(tmp_path):
    out = claim(tmp_path / "out")
    with out.held(lambda: True), pytest.raises(UsageError, match="another command works there"), out.held(lambda: True):
        raise AssertionError("held twice")
    for how in (KeyboardInterrupt, Interrupted):
        for has_results in (True, False):
            new = tmp_path / f"new {has_results}"
            with pytest.raises(how), claim(new).held(lambda has=has_results: has):
                claim(new).begin("begun.json")
                raise how("stopped")
            assert new.exists() == has_results


def test_a_vocabulary_folder_is_not_replaced(tmp_path):
    make_base(tmp_path)
    with pytest.raises(UsageError, match="already holds something"):
        save_wordpiece_folder(str(tmp_path / "vocab"), str(tmp_path / "tokenizer"))
