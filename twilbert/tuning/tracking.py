"""W&B of a sweep: one run a trial, grouped by task and sweep, written by the driver.

Trials die with their processes and are stopped without a word; the driver hears of every evaluation, and what it has
not heard it reads in the trial's record, so that no history is lost. Ray's own callback needs two processes a trial and
logs the host's name.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from twilbert import cli, storage
from twilbert.finetuning.encoders import short_name
from twilbert.finetuning.train import Evaluation
from twilbert.parsing import read_record
from twilbert.recipe.finetuning import Tracking
from twilbert.tracking.wandb_runs import Run, Wandb
from twilbert.tuning import records
from twilbert.tuning.records import TrialPlan

_DONE = "wandb-done.json"


class SweepLog:
    """All W&B runs of a sweep. `close` must be called: what is written before may not be on the disk."""

    def __init__(self, out: str, settings: Tracking, plans: Sequence[TrialPlan]) -> None:
        self._wandb = Wandb(settings.project, settings.mode, cli.say)
        self._sweep = out.rsplit("/", 1)[-1]
        self._out = out
        self._folder = storage.join(out, "wandb") if storage.is_local(out) else tempfile.mkdtemp(prefix="twilbert-")
        self._runs: dict[str, Run] = {}
        self._steps: dict[str, int] = {}
        done = storage.join(out, _DONE)
        self._done: set[str] = set(read_record(done, list[str])) if storage.exists(done) else set()
        self._plans = {plan.key: plan for plan in plans}

    @property
    def first_line(self) -> str:
        """Where the runs go."""
        mode = self._wandb.mode
        if mode == "disabled":
            return f"tracking: W&B disabled{self._wandb.why}"
        upload = f"; to upload later: wandb sync {self._folder}/wandb/offline-run-*" if mode == "offline" else ""
        return f"tracking: W&B {mode}{self._wandb.why}, one run a trial, in {self._folder}{upload}"

    def repair(self) -> None:
        """Write the runs of trials that ended before this process, and may not have reached the disk, anew."""
        for key, plan in self._plans.items():
            if records.read(plan.folder).status != "open" and key not in self._done:
                self.end(plan)

    def row(self, plan: TrialPlan, seen: Evaluation) -> None:
        """One look at dev; one that was logged before a trial was started again is not logged twice."""
        if self._wandb.mode == "disabled" or seen.step <= self._steps.get(plan.key, 0):
            return
        if plan.key not in self._runs:
            self._runs[plan.key] = self._open(plan)
        self._runs[plan.key].log({"step": seen.step, **seen.row()})
        self._steps[plan.key] = seen.step

    def end(self, plan: TrialPlan) -> None:
        """The trial is over: what was not heard of it, its result, and the run's end."""
        if self._wandb.mode == "disabled":
            return
        state = records.read(plan.folder)
        for seen in state.evaluations:
            self.row(plan, seen)
        run = self._runs.pop(plan.key, None) or self._open(plan)
        best = state.best(plan.metric)
        run.finish({"status": state.status, "starts": state.starts, "best_score": best and best.score})
        self._done.add(plan.key)

    def close(self) -> None:
        """End runs of trials that are not over (they are written anew when they are), and wait for the disk."""
        self._wandb.close()
        self._runs.clear()
        if self._done:
            storage.write_json_atomic(storage.join(self._out, _DONE), sorted(self._done))

    def _open(self, plan: TrialPlan) -> Run:
        run_id = uuid.uuid5(uuid.NAMESPACE_URL, f"{self._out}/{plan.key}").hex[:12]
        if self._wandb.mode == "offline":  # what an earlier process left of this run
            for old in Path(self._folder, "wandb").glob(f"offline-run-*-{run_id}"):
                shutil.rmtree(old)
        config = {"sweep": self._sweep, "study": plan.study, "trial": plan.number, "task": plan.task}
        config |= {"drawn": plan.drawn, "model": short_name(plan.recipe.model or "")}
        config |= plan.recipe.model_dump(mode="json", include={"text", "encoder", "head", "loss", "training"})
        mode = self._wandb.mode
        run = self._wandb.open(
            self._folder, f"{self._sweep}/{plan.key}", config, run_id,
            group=f"{plan.task} {self._sweep}", kind="trial", beside_others=True,
        )  # fmt: skip
        if self._wandb.mode != mode:
            cli.say(self.first_line)
        return run
