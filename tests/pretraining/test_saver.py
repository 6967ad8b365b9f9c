"""A checkpoint whose writing was cut off at any point is none, and the one before it is untouched."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest

from tests.pretraining import saver_child
from twilbert import storage
from twilbert.errors import TwilbertError
from twilbert.pretraining import checkpoint


def child(*args) -> int | None:
    """Exit code of `saver_child.save(*args)` in a process forked from one that has loaded everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pretraining.saver_child"])
    process = context.Process(target=saver_child.save, args=args)
    process.start()
    process.join(timeout=60)
    return process.exitcode


def contents(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): storage.sha256_file(str(f)) for f in folder.rglob("*") if f.is_file()}


def test_sigkill_at_every_stage_of_writing_leaves_the_checkpoint_before(tmp_path):
    run = tmp_path / "run"
    assert child(str(run), 10) == 0
    whole = contents(run / "checkpoint-000010")
    files = (tmp_path / "order.txt").read_text().split()
    assert set(files) > {"model.safetensors", "config.json", "state.json", "recipe.yaml"}
    assert files[0].startswith("optimizer-")
    assert files[-1] == "manifest.json", "what makes it a checkpoint comes last"
    points = [(n, when) for n in range(len(files)) for when in ("before", "within", "after")]
    for number, when in points:
        assert child(str(run), 20, (number, when)) == -signal.SIGKILL, (files[number], when)
        messages: list[str] = []
        newest = checkpoint.newest(str(run), saver_child.RUN_ID, messages.append)
        if (number, when) == points[-1]:  # the manifest is there: so is the checkpoint
            assert newest == str(run / "checkpoint-000020")
            assert messages == []
        else:
            assert newest == str(run / "checkpoint-000010"), (files[number], when)
            assert (
                messages == ["skipped checkpoint-000020: no manifest.json: its writing was not finished"] or number == 0
            )
        assert contents(run / "checkpoint-000010") == whole

    assert child(str(run), 20) == 0, "what a broken attempt left is in nobody's way"
    assert child(str(run), 30) == 0
    assert checkpoint.steps_in(str(run)) == [20, 30]
    assert not list(run.rglob("*.tmp"))


def test_a_run_that_another_command_took_over_is_left_alone(tmp_path):
    run = tmp_path / "run"
    assert child(str(run), 10) == 0
    saver = saver_child.RunFolder(str(run), "run", saver_child.RUN_ID, {}, token="older")
    with pytest.raises(TwilbertError, match="another command has since been started"):
        saver.check_owner()
