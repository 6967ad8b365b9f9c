"""twilbert-runs and resume among folders that killed processes, full disks and strangers left."""

from __future__ import annotations

import json
import os
import random
import shutil
import tracemalloc
from pathlib import Path

import pytest

from tests.test_runs import make_run, publish, rows
from twilbert import storage
from twilbert.errors import TwilbertError
from twilbert.recipe import loading
from twilbert.runs import main
from twilbert.tracking import run_folder
from twilbert.tracking.history import newest_run

RECORDS = ("identity.json", "owner.json", "status.json", "recipe.yaml", "metrics.jsonl", "model/training.json")
CONTENTS = (
    b"", b"\0" * 100, b"[]", b"[" * 5000, b"3", b"null", b'"text"', b"{}", b"\xff\xfe\x00", b'{"identity": []}',
    b'{"id": 1, "identity": {}}', b'{"token": {}}', b'{"state": "flying", "why": "", "driver": "mine"}', b"- 1\n- 2\n",
    b'{"state": "failed", "why": 3, "driver": "mine"}', b"training: {max_steps: many}", b"training: 3",
    b"training: {max_steps: true}", b'{"step": 1e400}\n', b'{"step": 5, "train/loss": ' + b"9" * 400 + b"}\n",
    b'{"trained_steps": "all"}', b'{"trained_steps": ' + b"9" * 400 + b"}", b"a: &a [*a]",
)  # fmt: skip


def listed(storage_folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The output and messages of twilbert-runs for a folder with a sound run."""
    assert main([str(storage_folder)]) == 0
    printed = capsys.readouterr()
    assert "sound" in printed.out
    return printed.out, printed.err


@pytest.fixture
def victim(tmp_path) -> Path:
    """A run beside a sound one."""
    make_run(tmp_path / "sound", metrics=rows(20), state="finished")
    run = make_run(tmp_path / "victim", metrics=rows(20), state="running")
    publish(run, 20)
    return run


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("mutations", [3, pytest.param(300, marks=pytest.mark.slow)])
def test_whatever_one_record_holds_the_others_are_listed(victim, record, mutations, capsys):
    drawn, sound = random.Random(15), (victim / record).read_bytes()
    contents = [*CONTENTS, *(mutated(drawn, sound) for _ in range(mutations))]
    for number, content in enumerate(contents):
        (victim / record).write_bytes(content)
        if record.startswith("model/"):  # read where there is no record of the driver
            (victim / "status.json").unlink(missing_ok=True)
        out, err = listed(victim.parent, capsys)
        assert "victim" in out or f"skipped: {victim / record}" in err, (record, content, err)
        if mutations > 3 or number % 8 == 0:
            main([str(victim), "--out", str(victim.parent / "page.html")])


def mutated(drawn: random.Random, sound: bytes) -> bytes:
    """A few bytes replaced by others, or by what means something in JSON or YAML."""
    content = bytearray(sound)
    for _ in range(drawn.randint(1, 4)):
        at = drawn.randrange(len(content) + 1)
        pieces = [b"", b"\0", b"[", b"{", b'"', b"-", b"null", b"1e999", b"\xff", bytes([drawn.randrange(256)])]
        content[at : at + drawn.randint(0, 4)] = drawn.choice(pieces)
    return bytes(content)


@pytest.mark.parametrize("record", RECORDS)
def test_whatever_lies_in_a_records_place_the_others_are_listed(victim, record, capsys):
    place = victim / record

    def large() -> None:
        with place.open("wb") as stream:
            stream.truncate(10**8)

    forms = {
        "folder": place.mkdir,
        "pipe": lambda: os.mkfifo(place),
        "loop": lambda: place.symlink_to(place),
        "device": lambda: place.symlink_to("/dev/zero"),
        "100 MB": large,
    }
    for form, make in forms.items():
        place.unlink(missing_ok=True)
        make()
        tracemalloc.start()
        listed(victim.parent, capsys)
        assert tracemalloc.get_traced_memory()[1] < 300 * 2**20, form
        tracemalloc.stop()
        shutil.rmtree(place) if place.is_dir() else place.unlink()


def test_a_run_without_permission_to_read_is_skipped(victim, monkeypatch, capsys):
    real = storage.exists

    def refused(path: str) -> bool:
        if path.startswith(str(victim)):
            raise PermissionError(13, f"Cannot stat {path}")
        return real(path)

    monkeypatch.setattr(storage, "exists", refused)
    _, err = listed(victim.parent, capsys)
    assert f"skipped: [Errno 13] Cannot stat {victim}" in err


def test_a_damaged_identity_is_no_other_recipe_but_one_message(victim):
    recipe = loading.build({"run": {"storage_path": str(victim.parent)}})
    for content in (b"", b"{}", b"[]", b'{"id": "x", "identity": 3}'):
        (victim / "identity.json").write_bytes(content)
        with pytest.raises(TwilbertError, match=r"identity\.json: .*restore it"):
            run_folder.find(recipe, "victim", {})
    (victim / "identity.json").write_text(json.dumps({"id": "x", "identity": {"training.seed": "y" * 10_000}}))
    with pytest.raises(TwilbertError, match=r"training\.seed: was yyy") as caught:
        run_folder.find(recipe, "victim", {})
    assert len(str(caught.value)) < 1000


def test_a_damaged_run_is_not_the_newest(victim, capsys):
    for run in ("sound", "victim"):
        publish(victim.parent / run, 100)
    (victim / "model" / "training.json").write_text("[]")
    assert newest_run(str(victim.parent)) == str(victim.parent / "sound")
    assert f"skipped: {victim}" in capsys.readouterr().err
