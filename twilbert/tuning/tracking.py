"""W&B runs of a sweep: one for each trial, grouped by task and sweep, written by the driver.

A trial's process may die or be stopped at any moment: the driver logs the evaluations that reach it, and reads the rest
in the trial's records. Ray's own callback needs two processes for each trial and logs the host's name.
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
    """All W&B runs of a sweep; only `close` makes sure that they are on the disk."""

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
        """A line that says where the runs are written."""
        mode = self._wandb.mode
        if mode == "disabled":
            return f"tracking: W&B disabled{self._wandb.why}"
        upload = f"; to upload later: wandb sync {self._folder}/wandb/offline-run-*" if mode == "offline" else ""
        return f"tracking: W&B {mode}{self._wandb.why}, one run a trial, in {self._folder}{upload}"

    def repair(self) -> None:
        """Write the runs of trials that ended in an earlier process, and may not have reached the disk, again."""
        for key, plan in self._plans.items():
            if records.read(plan.folder).status != "open" and key not in self._done:
                self.end(plan)

    def row(self, plan: TrialPlan, evaluation: Evaluation) -> None:
        """Log an evaluation, unless it was logged before the trial was started again."""
        if self._wandb.mode == "disabled" or evaluation.step <= self._steps.get(plan.key, 0):
            return
        if plan.key not in self._runs:
            self._runs[plan.key] = self._open(plan)
        self._runs[plan.key].log({"step": evaluation.step, **evaluation.row()})
        self._steps[plan.key] = evaluation.step

    def end(self, plan: TrialPlan) -> None:
        """Log what is missing of an ended trial and its result, and end its run."""
        if self._wandb.mode == "disabled":
            return
        state = records.read(plan.folder)
        for evaluation in state.evaluations:
            self.row(plan, evaluation)
        run = self._runs.pop(plan.key, None) or self._open(plan)
        best = state.best(plan.metric)
        run.finish({"status": state.status, "starts": state.starts, "best_score": best and best.score})
        self._done.add(plan.key)

    def close(self) -> None:
        """Wait for the disk; runs of open trials are ended too, and written again when those have ended."""
        self._wandb.close()
        self._runs.clear()
        if self._done:
            storage.write_json_atomic(storage.join(self._out, _DONE), sorted(self._done))

    def _open(self, plan: TrialPlan) -> Run:
        run_id = uuid.uuid5(uuid.NAMESPACE_URL, f"{self._out}/{plan.key}").hex[:12]
        if self._wandb.mode == "offline":  # an earlier process's part of this run
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
