"""twilbert-runs: states of runs, curves without duplicate steps, and a page that compares runs."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.parsing import parsed, shows_texts_as_they_are
from twilbert import storage
from twilbert.errors import TwilbertError, UsageError
from twilbert.recipe import loading
from twilbert.recipe.pretraining import run_identity
from twilbert.runs import main
from twilbert.tracking import history, page, run_folder
from twilbert.tracking.history import Pretraining
from twilbert.tracking.run_folder import STATUS_FILE, Heartbeat, Status

LOST = 3600.0  # seconds without a heartbeat after which a run counts as lost


def rows(last: int, every: int = 10, ended: float = 5.0) -> list[dict[str, Any]]:
    """Metrics of a run up to step `last`, evaluated every 20; its losses end at `ended`."""
    metrics: list[dict[str, Any]] = []
    for step in range(every, last + 1, every):
        loss = ended + 5 * (1 - step / last)
        metrics.append({"step": step, "train/loss": loss + 0.6, "train/mlm_loss": loss, "speed/step_seconds": 2.0})
        if step % 20 == 0:
            metrics.append({"step": step, "valid/loss": loss + 0.7, "valid/mlm_loss": loss, "valid/rop_accuracy": 0.5})
    return metrics


def make_run(folder: Path, *overrides: str, metrics: list[dict[str, Any]], state: str = "", age: float = 0) -> Path:
    """A run's folder without checkpoints; `state`: the last record of its driver, `age` seconds old."""
    recipe = loading.build({}, ["training.max_steps=100", *overrides])
    identity = run_identity(recipe, {"data.corpus": "0123456789abcdef", "training.precision": "fp32"})
    storage.write_json_atomic(str(folder / "identity.json"), {"id": "01234567", "identity": identity})
    storage.write_json_atomic(str(folder / "owner.json"), {"token": "mine"})
    (folder / "recipe.yaml").write_text(loading.dump(recipe))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if state:
        storage.write_json_atomic(str(folder / STATUS_FILE), {"state": state, "why": "", "driver": "mine"})
    for file in folder.iterdir():
        os.utime(file, (time.time() - age,) * 2)
    return folder


def publish(run: Path, step: int) -> None:
    storage.write_json_atomic(str(run / "model" / "training.json"), {"trained_steps": step})
    storage.write_json_atomic(str(run / "model" / "config.json"), {})


# ---- states --------------------------------------------------------------------------------------------------------


def state_of(run: Path) -> str:
    return Pretraining.read(str(run)).state


def test_the_last_record_is_the_state_and_a_silent_driver_is_dead(tmp_path):
    for state in ("running", "finished", "stopped", "failed"):
        assert state_of(make_run(tmp_path / state, metrics=rows(40), state=state)) == state
    lost = Pretraining.read(str(make_run(tmp_path / "lost", metrics=rows(40), state="running", age=LOST)))
    assert lost.state == "failed"
    assert lost.status.why == "its driver was killed or lost: silent for 60 minutes"
    assert state_of(make_run(tmp_path / "old", metrics=rows(40), state="finished", age=LOST)) == "finished"


def test_the_state_without_a_record_follows_from_the_files(tmp_path):
    """Older runs, and runs that are just starting."""
    done = make_run(tmp_path / "done", metrics=rows(100), age=LOST)
    publish(done, 100)
    stopped = make_run(tmp_path / "stopped", metrics=rows(40), age=LOST)
    publish(stopped, 40)
    going = make_run(tmp_path / "going", metrics=rows(40), age=500)
    (going / ".ray").mkdir()
    killed = make_run(tmp_path / "killed", metrics=rows(40), age=LOST)
    (killed / ".ray").mkdir()
    starting = make_run(tmp_path / "starting", metrics=[], state="stopped")
    storage.write_json_atomic(str(starting / "owner.json"), {"token": "a newer driver's"})
    assert {run.name: run.state for run in history.all_in(str(tmp_path))} == {
        "done": "finished", "stopped": "stopped", "going": "running", "killed": "failed", "starting": "running"
    }  # fmt: skip


def claimed(folder: Path) -> run_folder.RunFolder:
    make_run(folder, metrics=rows(40))
    return run_folder.RunFolder(str(folder), folder.name, "01234567", {}, token="mine")


def test_a_driver_sends_heartbeats_until_its_end(tmp_path):
    run = claimed(tmp_path / "run")
    sign = tmp_path / "run" / STATUS_FILE
    with Heartbeat(run, every=0.01) as heartbeat:
        assert state_of(tmp_path / "run") == "running"
        os.utime(sign, (0, 0))
        while sign.stat().st_mtime == 0:
            time.sleep(0.01)
        heartbeat.end("")
    assert state_of(tmp_path / "run") == "finished"
    with Heartbeat(run) as heartbeat:
        heartbeat.end("training.max_time reached")
    assert Pretraining.read(run.path).status.why == "training.max_time reached"
    sign.rename(sign.with_name("state.json"))  # as version 0.2 named it
    assert state_of(tmp_path / "run") == "stopped"
    with pytest.raises(KeyboardInterrupt), Heartbeat(run):
        raise KeyboardInterrupt
    assert state_of(tmp_path / "run") == "stopped"
    with pytest.raises(TwilbertError), Heartbeat(run):
        raise TwilbertError("weights are no longer finite;\nnothing was saved")
    assert Pretraining.read(run.path).status.why == "weights are no longer finite; nothing was saved"
    assert state_of(tmp_path / "run") == "failed"


def test_a_driver_that_has_lost_its_run_to_another_writes_no_more(tmp_path):
    run = claimed(tmp_path / "run")
    with pytest.raises(TwilbertError, match="gives way"), Heartbeat(run):
        storage.write_json_atomic(str(tmp_path / "run" / "owner.json"), {"token": "a newer driver's"})
        (tmp_path / "run" / STATUS_FILE).unlink()
        run.check_owner()
    assert not (tmp_path / "run" / STATUS_FILE).exists()


def test_a_heartbeat_that_cannot_be_written_ends_no_training(tmp_path, capsys):
    run = claimed(tmp_path / "run")
    (tmp_path / "run" / STATUS_FILE).mkdir()
    with Heartbeat(run) as heartbeat:
        heartbeat.end("")
    assert f"{STATUS_FILE} could not be written" in capsys.readouterr().err


# ---- curves --------------------------------------------------------------------------------------------------------


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", metrics=rows(20), state="running")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 30, "train/lo')
    assert [step for step, _ in Pretraining.read(str(run)).curve("train/loss")] == [10, 20]


def test_rows_of_a_restart_replace_those_after_its_checkpoint(tmp_path):
    before = [{"step": s, "train/loss": float(s)} for s in (10, 20, 30, 40)]
    before.append({"step": 40, "valid/loss": 9.0})
    after = [{"step": s, "train/loss": -1.0} for s in (30, 40)]
    run = make_run(tmp_path / "run", metrics=before + after)
    curves = {"train/loss": [(10, 10.0), (20, 20.0), (30, -1.0), (40, -1.0)]}
    assert Pretraining.read(str(run)).metrics == curves


def test_histograms_are_no_curves_and_a_missing_series_names_similar_ones(tmp_path):
    metrics = [{"step": 1, "train/mlm_loss": 2.0, "optim/trust_ratios/heads": {"edges": [0, 1], "counts": [3]}}]
    run = Pretraining.read(str(make_run(tmp_path / "run", metrics=metrics)))
    assert run.metrics == {"train/mlm_loss": [(1, 2.0)]}
    with pytest.raises(UsageError, match="no series 'valid/mlm_loss'; there are train/mlm_loss"):
        run.curve("valid/mlm_loss")


def test_damaged_lines_are_named_and_left_out(tmp_path, capsys):
    damaged = make_run(tmp_path / "damaged", metrics=rows(40), state="finished")
    lines = (damaged / "metrics.jsonl").read_text().splitlines(keepends=True)
    others = ["\0\0\0\n", "[]\n", '{"step": 3, "tra{"step": 4}\n', '{"step": "5"}\n', '{"step": -1}\n']
    (damaged / "metrics.jsonl").write_text("".join([lines[0], "{broken\n", *others, *lines[1:]]))
    for command in ([str(tmp_path)], [str(damaged), "--out", str(tmp_path / "page.html")]):
        assert main(command) == 0
        err = capsys.readouterr().err
        assert f"{damaged}/metrics.jsonl: line 2 and 5 others damaged, skipped" in err
    assert [step for step, _ in Pretraining.read(str(damaged)).curve("train/loss")] == [10, 20, 30, 40]


def test_long_curves_are_drawn_from_means_of_neighbours():
    curve = [(float(step), step % 2.0) for step in range(1, 100_001)]
    drawn = page.thin(curve, most=200)
    assert len(drawn) == 200 and drawn[-1][0] == 100_000
    assert all(value == 0.5 for _, value in drawn)
    assert page.thin(curve[:200], most=200) == curve[:200]


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path) -> Path:
    """Storage of two runs, one of them with LAMB."""
    make_run(tmp_path / "adam", metrics=rows(100), state="finished")
    lamb = [row | ({"optim/trust_ratio_median": 0.1} if "train/loss" in row else {}) for row in rows(60, ended=4.0)]
    overrides = "training.optimizer=lamb", "training.learning_rate=0.01", "cluster.num_workers=2"
    make_run(tmp_path / "lamb", *overrides, metrics=lamb, state="running")
    return tmp_path


def test_a_folder_of_runs_is_listed(two, capsys):
    assert main([str(two)]) == 0
    header, _, *lines, last = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["run", "recipe", "state", "step", "of"]
    cells = {line.split()[0]: line.split()[1:] for line in lines}
    assert cells["adam"][1:8] == ["finished", "100", "100", "5.600", "5.700", "5.700", "(100)"]
    assert cells["lamb"][1:8] == ["running", "60", "100", "4.600", "4.700", "4.700", "(60)"]
    assert cells["adam"][0] != cells["lamb"][0] and re.fullmatch("[0-9a-f]{8}", cells["adam"][0])
    assert last.startswith(f"2 runs in {two}")


def test_two_runs_are_compared_on_one_page_that_needs_nothing_else(two, capsys):
    out = two / "compared.html"
    assert main(["adam", "lamb", "--runs", str(two), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"page of 2 runs in {out}"
    identity_part, free_part = printed.split("setting that changes no result")
    assert re.search(r"training\.optimizer +adam +lamb", identity_part)
    assert re.search(r"cluster\.num_workers +1 +2", free_part) and "num_workers" not in identity_part
    html = out.read_text()
    text = " ".join(parsed(html).texts)
    for part in ("adam · lamb", "training.learning_rate", "0.01", "MLM loss, held out", "finished at step 100"):
        assert part in text
    assert "<b>4.700</b>" in html, "the better score is set off"
    (chart,) = re.findall(r"<figure>(?:(?!</figure>).)*Trust ratio, median.*?</figure>", html, re.S)
    assert 'polyline class="c2"' in chart and 'polyline class="c1"' not in chart, "a run keeps its colour"


def test_runs_of_unlike_batches_are_also_drawn_over_samples(two):
    make_run(two / "large", "training.global_batch_size=8192", metrics=rows(20), state="finished")
    runs = [history.find(name, str(two)) for name in ("adam", "large")]
    html = page.of_runs(runs)
    assert "over samples" in html and "163,840" in html  # 20 steps of 8,192
    assert "over samples" not in page.of_runs([runs[0], history.find("lamb", str(two))])


def test_the_page_of_one_run_has_its_settings(two):
    html = page.of_runs([history.find("lamb", str(two))])
    text = " ".join(parsed(html).texts)
    assert "training.global_batch_size" in text and "Differences" not in text
    assert "1 min" in text, "40 steps of 2 seconds are left"


def test_names_and_settings_of_users_are_shown_as_they_are(two):
    plain = Pretraining.read(str(two / "adam"))

    def with_text(text: str, n_runs: int) -> str:
        changes = {"status": Status("failed", text), "recipe": dict(plain.recipe) | {"model.name": text, text: 1}}
        metrics = dict(plain.metrics) | {text: [(20, 1.0)]}
        runs = [replace(plain, path=f"{text}/run", metrics=metrics, **changes) for _ in range(n_runs)]
        runs[-1] = replace(runs[-1], identity=dict(plain.identity) | {f"corpus.{text}": f"{text}{text}"})
        return page.of_runs(runs)

    shows_texts_as_they_are(lambda text: with_text(text, 1), 7)
    shows_texts_as_they_are(lambda text: with_text(text, 3), 20)


def test_a_watched_page_loads_itself_again_until_the_runs_end(two, monkeypatch, capsys):
    out, pages = two / "live.html", []

    def sleep(seconds: float) -> None:
        pages.append(out.read_text())
        assert seconds == 7
        if len(pages) == 2:
            make_run(two / "lamb", metrics=rows(100), state="finished")

    monkeypatch.setattr("twilbert.runs.time.sleep", sleep)
    assert main([str(two / "lamb"), "--watch", "7", "--out", str(out)]) == 0
    assert ['http-equiv="refresh" content="7"' in text for text in [*pages, out.read_text()]] == [True, True, False]
    assert "finished at step 100" in out.read_text()
    assert "running at step 60" in capsys.readouterr().err
    assert not list(two.glob(".*tmp")), "written whole or not at all"
    main([str(two / "adam"), "--watch", "7", "--out", str(out)])
    assert len(pages) == 2, "of a finished run nothing is waited for"


def test_a_path_that_is_no_run_is_one_message(two, tmp_path, capsys):
    for folder, files in {
        "sweep": ["sweep.yaml"],
        "tuned": ["results.json", "report.html"],
        "model": ["config.json"],
        "adam/model": ["config.json"],
        "empty": [],
    }.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        for file in files:
            (tmp_path / folder / file).write_text("{}")
    (tmp_path / "file.html").write_text("")
    for name, message in {
        "sweep": "a sweep of twilbert-tune",
        "tuned": "a fine-tuning",
        "model": "a model folder without its run",
        "adam/model": f"a part of a run; give the run: {two / 'adam'}",
        "empty": "not a run",
        "nowhere": "no such run or folder",
        "file.html": "not a run",
    }.items():
        assert main([str(tmp_path / name), "--runs", str(two)]) == 2
        printed = capsys.readouterr().err
        assert message in printed and "adam, lamb" in printed and "Traceback" not in printed
    assert main([str(two), str(two / "adam")]) == 2
    assert "a folder of runs; name those to compare: adam, lamb" in capsys.readouterr().err
    assert main(["adam", "adam", "--runs", str(two)]) == 2
    assert main([*"abcdefg", "--runs", str(two)]) == 2
    assert "a page can show 6 at once" in capsys.readouterr().err
    assert main([str(two), "--watch", "5"]) == 2
    assert main(["--runs", str(tmp_path / "empty")]) == 2
    assert main(["adam", "--runs", str(two), "--watch", "0"]) == 2


@pytest.mark.ray
def test_a_real_runs_series_all_have_their_place_on_the_page(trained):
    assert trained.state == "finished" and trained.step == 6 and trained.best_step in (3, 6)
    text = " ".join(parsed(trained.html()).texts)
    assert "Further" not in text, "a series that the page does not know"
    for part in ("Trust ratio, median", "pkm/layer_1_used", "Update norm", "Skipped steps", "finished at step 6"):
        assert part in text
    record = json.loads(Path(trained.path, STATUS_FILE).read_text())
    assert record["state"] == "finished" and not {"host", "user", "pid"} & record.keys()
