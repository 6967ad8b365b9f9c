"""The state of a training worker and its slow operations: resume, evaluate, save. The step itself is in pretrain.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist

from twilbert import storage
from twilbert.data.stream.micro_batch import MicroBatch
from twilbert.data.stream.ray_stream import ray_micro_batches
from twilbert.data.stream.stream import accumulation_for, evaluation_batches
from twilbert.devices import usable_cores
from twilbert.errors import TwilbertError
from twilbert.evaluation import scoring
from twilbert.hub.folder import ModelFolder, empty_model
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.optim.fragments import Fragment
from twilbert.pretraining import checkpoint
from twilbert.pretraining.control import SAVE_NOW
from twilbert.pretraining.engine import full_weights, make_engine
from twilbert.pretraining.job import Job
from twilbert.pretraining.measure import evaluate_held_out, step_metrics
from twilbert.pretraining.saver import CheckpointSaver, Snapshot
from twilbert.pretraining.shards import local_fragments, owned
from twilbert.pretraining.watchdog import Watchdog
from twilbert.tracking.metrics import Histogram, MetricsFile, Tracker
from twilbert.tracking.wandb_runs import Wandb

TRACE_FILE = "trace.jsonl"
DIVERGED = "Lower training.learning_rate, set training.max_grad_norm=1.0, or use precision=fp32, under another run.name"


class Worker:
    """One of `world_size` training processes."""

    def __init__(self, job: Job, rank: int, world_size: int, local_world_size: int, device: torch.device) -> None:
        self.job, self.rank, self.world_size, self.device = job, rank, world_size, device
        recipe = job.recipe
        if device.type == "cpu":  # Ray leaves one thread
            own_share = max(1, usable_cores() // local_world_size)
            torch.set_num_threads(recipe.cluster.threads_per_worker or own_share)
        training = recipe.training
        torch.backends.cuda.matmul.allow_tf32 = training.tf32
        self.accumulation = accumulation_for(
            job.encoded,
            "train",
            training.global_batch_size,
            world_size,
            training.micro_batch_tokens,
            recipe.corpus.lanes,
        )
        self.plan = job.stream_plan(world_size, self.accumulation)
        self.step = 0  # steps completed
        self.best: dict[str, float] | None = None  # step and loss of the best held-out evaluation
        self.skipped: list[int] = []  # steps whose loss or gradient was not finite: the weights stayed as they were
        self.interrupted: dict[str, Any] | None = None  # the metrics interval that the checkpoint fell into
        self.update_norm = 0.0  # L2 norm of the latest change of all weights
        self.memory_usage: dict[str, float] = {}  # pkm/ metrics of the latest evaluation
        resumed = self._agree_on_checkpoint()
        self.config, model = self._model(resumed)
        self.engine, self.optimizer = make_engine(recipe, model, job.precision, self.accumulation, world_size, device)
        if resumed is not None:
            self._restore(resumed)
        self.saver = CheckpointSaver(job.run, recipe, self.config, job.encoded.cleaning, rank, world_size)
        self.saver.committed_step = self._reported_step = self.step if resumed is not None else None
        self.first_step = self.step
        self.tracker, self._trace = self._open_logs() if rank == 0 else (None, None)
        self.watchdog = Watchdog(recipe.training.hang_timeout * 60, self._report_hang)
        self.started = time.monotonic()
        self._last_heartbeat = 0.0
        self._order = 0  # what rank 0 was asked to do: stop or save
        self._all_written = False

    def close(self) -> None:
        """Close the logs."""
        self.watchdog.close()
        if self._trace is not None:
            self._trace.close()
        if self.tracker is not None:
            self.tracker.close()

    # ---- start and resume ----

    def _agree_on_checkpoint(self) -> str | None:
        """The newest checkpoint that verifies on rank 0, broadcast to every rank."""
        result: list[Any] = [None]
        if self.rank == 0:
            try:
                result = [checkpoint.newest(self.job.run.path, self.job.run.id, self.say)]
            except Exception as error:  # noqa: BLE001 - raised below, on every rank at once
                result = [error]
        dist.broadcast_object_list(result)
        if isinstance(result[0], Exception):
            raise result[0]
        return result[0]

    def _model(self, resumed: str | None) -> tuple[ModelConfig, PretrainingModel]:
        recipe = self.job.recipe
        config = ModelConfig.from_dict(recipe.architecture(self.job.encoded.vocab_size))
        source = storage.join(resumed, "model") if resumed else recipe.model.init_from
        if source is None:
            torch.manual_seed(recipe.training.seed)
            return config, PretrainingModel(config)
        model = ModelFolder.open(source).load_pretrained()
        if model.config != config:  # in dropout alone: `inherit` has checked the rest
            weights, model = model.state_dict(), empty_model(config)
            model.load_state_dict(weights, assign=True)
        return config, model

    def _restore(self, folder: str) -> None:
        state = checkpoint.read_state(folder)
        self.step, self.best, self.skipped = state["step"], state["best"], state["skipped"]
        self.interrupted = state.get("interval")  # None in checkpoints of 0.2
        reader = checkpoint.OptimizerReader(folder)
        reader.restore(local_fragments(self.engine), self.optimizer.moments)
        if self.rank == 0:
            self.say(f"resumed from {folder} at step {self.step}")

    def _open_logs(self) -> tuple[Tracker, MetricsFile | None]:
        recipe, run = self.job.recipe, self.job.run
        wandb = Wandb(recipe.tracking.project, recipe.tracking.mode, self.say)
        config = recipe.model_dump(mode="json", exclude={"cluster": {"address"}})  # W&B need not know users' hosts
        tracker = Tracker(run.path, run.name, wandb, config, run.id, last_step=self.step)
        self.say(tracker.first_line)
        trace = storage.join(run.path, TRACE_FILE) if recipe.tracking.trace_samples else None
        return tracker, MetricsFile(trace, self.step) if trace else None

    # ---- the step ----

    def steps(self) -> Iterator[tuple[int, list[MicroBatch], float]]:
        """Yield (step from 1, this worker's micro-batches, seconds waited for them) for every step that remains."""
        last = self.job.recipe.training.max_steps
        stream = ray_micro_batches(self.plan, self.rank, self.step, last)
        try:
            for step in range(self.step + 1, last + 1):
                requested = time.monotonic()
                micro_batches = [next(stream) for _ in range(self.accumulation)]
                yield step, micro_batches, time.monotonic() - requested
        finally:
            stream.close()

    def normalisers(self, micro_batches: list[MicroBatch]) -> tuple[int, int]:
        """(masked tokens, samples with a reply) of the whole global batch, at least 1 each."""
        n_masked, n_rop = micro_batches[0].n_masked, micro_batches[0].n_rop
        if n_masked is None or n_rop is None:  # masks are drawn by probability, or workers read different groups
            masked = sum(len(m.masked_index) for m in micro_batches)
            replied = sum(int((m.rop_labels >= 0).sum()) for m in micro_batches)
            sums = torch.tensor([masked, replied], device=self.device)
            dist.all_reduce(sums)
            n_masked, n_rop = map(int, sums.tolist())
        return max(1, n_masked), max(1, n_rop)

    def seed_dropout(self, step: int, number: int) -> None:
        """Seed dropout by (seed, step, micro-batch, rank)."""
        mixed = hash((self.job.recipe.training.seed, step, number, self.rank)) & (
            2**63 - 1
        )  # stable: hashes of integers are not salted
        torch.manual_seed(mixed)

    def reduce(self, sums: torch.Tensor) -> tuple[list[float], int]:
        """(`sums` [n] float64 over all workers, rank 0's order to stop or save) by the one all-reduce of a step.

        It also counts the workers that have written their part of the current checkpoint.
        """
        order = float(self._order if self.rank == 0 else 0)
        packed = torch.cat([sums, sums.new_tensor([order, float(self.saver.written())])])
        dist.all_reduce(packed)
        *totals, order, written = (float(value) for value in packed.cpu().numpy())
        if order == SAVE_NOW:
            self._order = 0
        self._all_written = self.saver.on_its_way and written == self.world_size
        return totals, int(order)

    def measure_update(self) -> None:
        """Set `update_norm` to the norm of the latest update; collective, so only where it is logged."""
        square = self.optimizer.update_square / (1 if self.optimizer.sharded else self.world_size)
        square = square.to(self.device)  # a zero on the CPU where no step was taken yet
        dist.all_reduce(square)
        self.update_norm = float(square) ** 0.5

    def skip(self, step: int, why: str) -> None:
        """Count a step that left the weights unchanged; TwilbertError after too many in a row; collective."""
        self.skipped.append(step)
        most = self.job.recipe.training.max_skipped_steps
        if self.rank == 0:
            self.say(f"step {step} skipped: {why}; {len(self.skipped)} in all")
        if self.skipped[-most:] == list(range(step - most + 1, step + 1)):
            self.saver.finish()  # the last sound weights may still be being written
            latest = (
                "none was written yet"
                if self.saver.committed_step is None
                else f"is of step {self.saver.committed_step}"
            )
            raise TwilbertError(
                f"steps {step - most + 1} to {step} were skipped, the latest since {why}; the last checkpoint "
                f"{latest}. {DIVERGED}"
            )

    def trace(self, step: int, micro_batches: list[MicroBatch]) -> None:
        """Log the sample ids of the step, where tracking.trace_samples is set; collective."""
        if not self.job.recipe.tracking.trace_samples:
            return
        own_ids = [int(i) for micro_batch in micro_batches for i in micro_batch.sample_ids]
        by_rank: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(own_ids, by_rank)
        if self._trace is not None and by_rank is not None:
            ids = sorted(i for part in by_rank for i in part)
            skipped = step in self.skipped[-1:]
            self._trace.append({"step": step, "epoch": micro_batches[0].epoch, "skipped": skipped, "ids": ids})

    # ---- messages to the driver ----

    def say(self, line: str) -> None:
        """Print a line on the driver."""
        self.job.control.say.remote(line)

    def _report_hang(self, stacks: str) -> None:
        minutes = self.job.recipe.training.hang_timeout
        what = f"no step in {minutes:g} minutes (training.hang_timeout), after step {self.step}"
        text = f"worker {self.rank}: {what}\n{stacks}"
        self.say(text)
        storage.write_bytes_atomic(storage.join(self.job.run.path, f"hang-worker-{self.rank:05d}.txt"), text.encode())

    def heartbeat(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Rank 0, twice a second: send the progress to the driver and receive an order to stop or save."""
        training = self.job.recipe.training
        now = time.monotonic()
        if self.rank or now - self._last_heartbeat < 0.5:
            return
        self._last_heartbeat = now
        seconds_per_step = (now - self.started) / max(1, step - self.first_step)
        import ray

        progress = {
            "step": step,
            "max_steps": training.max_steps,
            "loss": loss,
            "tokens_per_second": tokens_per_second,
            "seconds_left": seconds_per_step * (training.max_steps - step),
        }
        order = ray.get(self.job.control.heartbeat.remote(progress))
        self._order = self._order or cast(int, order)

    def row(self, log: scoring.Interval) -> dict[str, float | Histogram]:
        """Metrics of the latest update and of the interval: optim/, data/ and speed/ keys."""
        training = self.job.recipe.training
        metrics = {
            "optim/update_norm": self.update_norm,
            "optim/skipped_steps": len(self.skipped),
            "data/epoch": self.step * training.global_batch_size / self.plan.counts.samples,
        }
        return metrics | step_metrics(self.engine, self.optimizer, self.config, self.device, self.world_size, log)

    # ---- evaluation and checkpoints ----

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out scores of the current weights, the same on every rank; updates the best step.

        Empty for a corpus without held-out pairs: then there is no best step.
        """
        encoded, training, ranks = self.job.encoded, self.job.recipe.training, (self.rank, self.world_size)
        batches = evaluation_batches(
            encoded, "valid", *ranks, training.micro_batch_tokens, self.plan.masking, training.seed
        )
        sums, self.memory_usage = evaluate_held_out(self.engine, self.config, batches, self.device)
        if not any(sums.tolist()):
            return {}
        scores = scoring.scores_of(sums.tolist())
        if self.best is None or scores["loss"] < self.best["loss"]:
            self.best = {"step": step, "loss": scores["loss"]}
        return scores

    def save(self, step: int, interval: dict[str, Any]) -> None:
        """Begin the checkpoint of `step`, which is written while training goes on; collective.

        `interval`: the state of the current metrics interval.
        """
        fragments = owned(local_fragments(self.engine), self.job.recipe.training.zero_stage, self.rank, self.world_size)
        self._refuse_broken_weights(step, fragments)
        state = {
            "step": step,
            "epoch": self.plan.epoch_of_step(step),
            "run": self.job.run.id,
            "best": self.best,
            "skipped": self.skipped,
            "interval": interval,
        }
        protected = {int(self.best["step"])} if self.best else set()
        weights = full_weights(self.engine, self.rank)
        self.saver.begin(Snapshot(step, state, protected), fragments, self.optimizer.moments, weights)
        if self.tracker is not None:
            self.tracker.flush()

    def commit(self, *, wait: bool = False) -> None:
        """Commit the current checkpoint if every rank has written its part, or `wait` for that; collective."""
        if wait:
            self.saver.finish()
        elif self._all_written:
            self.saver.commit()
        if self.saver.committed_step != self._reported_step and self.rank == 0:
            self._reported_step = self.saver.committed_step
            self.job.control.committed.remote()

    def _refuse_broken_weights(self, step: int, fragments: list[Fragment]) -> None:
        """TwilbertError on all workers when a weight is not finite: such a checkpoint would replace a sound one.

        A gradient can overflow at a finite loss, which shows only in the loss of the next step.
        """
        broken = torch.tensor([sum(not bool(f.values.isfinite().all()) for f in fragments)], device=self.device)
        dist.all_reduce(broken)
        if int(broken):
            raise TwilbertError(f"step {step}: weights are no longer finite; nothing was saved. {DIVERGED}")

    def publish(self) -> str:
        """Rank 0: copy the model of the best (else the last) checkpoint to the model folder; its step's name."""
        run, step = self.job.run, self.saver.committed_step
        if self.best is not None and storage.exists(self._manifest(int(self.best["step"]))):
            step = int(self.best["step"])
        assert step is not None
        return run.publish(step, trained_steps=self.step)

    def _manifest(self, step: int) -> str:
        return storage.join(self.job.run.path, checkpoint.folder_name(step), "manifest.json")
