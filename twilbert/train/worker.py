"""A training worker's state and slow operations: start or resume, evaluate, save. The step itself is in pretrain.py."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist

from twilbert import recipe_file, scoring, storage
from twilbert.data.encoded import EncodedCorpus
from twilbert.data.microbatch import MicroBatch
from twilbert.data.objectives import MaskingSettings
from twilbert.data.plan import StreamPlan
from twilbert.data.ray_stream import ray_micro_batches
from twilbert.data.stream import accumulation_for, evaluation_batches
from twilbert.errors import TwilbertError, UsageError
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.model.memory import ProductKeyMemory, memories, usage_statistics
from twilbert.model.transformers_api import load_model_folder, save_model_folder
from twilbert.recipe import Recipe
from twilbert.train import checkpoint
from twilbert.train.control import STOP_TIME
from twilbert.train.engine import full_weights, make_engine
from twilbert.train.flops import device_peak, useful_flops
from twilbert.train.optimizer import Lamb
from twilbert.train.run_folder import RunFolder
from twilbert.train.shards import Fragment, local_fragments, owned
from twilbert.train.tracking import Histogram, Tracker
from twilbert.train.trust import trust_ratio_metrics

DIVERGED = (
    "the last checkpoint is intact. Lower training.learning_rate, set training.max_grad_norm=1.0, or use "
    "precision=fp32, under another run.name"
)


@dataclass(frozen=True)
class Job:
    """What the driver tells every worker; picklable, all paths absolute."""

    recipe: Recipe
    run: RunFolder
    encoded: EncodedCorpus
    precision: str
    control: Any
    """Handle of the RunControl actor."""


def masking_settings(recipe: Recipe) -> MaskingSettings:
    """The recipe's masked language model as the stream takes it."""
    masked = recipe.objective.masked_lm
    return MaskingSettings(
        kind=masked.type, max_span=masked.max_span, budget=masked.budget, **masked.probs.model_dump()
    )


class Worker:
    """One of `world_size` training processes."""

    def __init__(self, job: Job, rank: int, world_size: int, local_world_size: int, device: torch.device) -> None:
        self.job, self.rank, self.world_size, self.device = job, rank, world_size, device
        recipe = job.recipe
        if device.type == "cpu":  # Ray leaves one thread
            cores = os.cpu_count() or 1
            torch.set_num_threads(recipe.cluster.threads_per_worker or max(1, cores // local_world_size))
        self.accumulation = accumulation_for(
            job.encoded, "train", recipe.training.global_batch_size, world_size, recipe.training.micro_batch_tokens
        )
        self.plan = StreamPlan(
            encoded=job.encoded,
            seed=recipe.training.seed,
            global_batch_size=recipe.training.global_batch_size,
            world_size=world_size,
            accumulation=self.accumulation,
            masking=masking_settings(recipe),
        )
        self.step = 0  # optimiser steps done
        self.best: dict[str, float] | None = None  # step and loss of the best held-out evaluation
        self.saved_step: int | None = None
        self.update_norm = 0.0  # of all that the latest step subtracted from the weights
        self.memory_usage: dict[str, float] = {}  # pkm/ metrics of the latest evaluation
        resumed = self._agree_on_checkpoint()
        self.config, model = self._model(resumed)
        self.engine, self.optimizer = make_engine(recipe, model, job.precision, self.accumulation, world_size)
        if resumed is not None:
            self._restore(resumed)
        self.first_step = self.step
        self.tracker = self._open_tracker() if rank == 0 else None
        self.started = time.monotonic()
        self._last_beat = 0.0
        self._stop = 0

    def close(self) -> None:
        """End the logs, whatever ended the run."""
        if self.tracker is not None:
            self.tracker.close()

    # ---- start and resume ----

    def _agree_on_checkpoint(self) -> str | None:
        """The newest checkpoint that verifies, as rank 0 sees it, on every rank."""
        found: list[Any] = [None]
        if self.rank == 0:
            try:
                found = [checkpoint.newest(self.job.run.path, self.job.run.id, self.say)]
            except Exception as error:  # noqa: BLE001 - raised below, on every rank at once
                found = [error]
        dist.broadcast_object_list(found)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def _model(self, resumed: str | None) -> tuple[ModelConfig, PretrainingModel]:
        recipe = self.job.recipe
        config = ModelConfig.from_dict(recipe.architecture(self.job.encoded.vocab_size))
        source = storage.join(resumed, "model") if resumed else recipe.model.init_from
        if source is None:
            torch.manual_seed(recipe.training.seed)
            return config, PretrainingModel(config)
        _, model = load_model_folder(source)
        return config, model

    def _restore(self, folder: str) -> None:
        state = checkpoint.read_state(folder)
        self.step, self.best, self.saved_step = state["step"], state["best"], state["step"]
        reader = checkpoint.OptimizerReader(folder)
        reader.restore(local_fragments(self.engine), self.optimizer.moments)
        if self.rank == 0:
            self.say(f"resumed from {folder} at step {self.step}")

    def _open_tracker(self) -> Tracker:
        recipe, run = self.job.recipe, self.job.run
        # W&B need not know users' folders and hosts.
        places = {"run": {"storage_path"}, "corpus": {"path", "tokenizer"}, "model": {"init_from"}}
        config = recipe.model_dump(mode="json", exclude=places | {"cluster": {"address"}})
        tracker = Tracker(run.path, run.name, recipe.tracking, config, run.id, last_step=self.step)
        self.say(tracker.first_line)
        return tracker

    # ---- the stream ----

    def steps(self) -> Iterator[tuple[int, list[MicroBatch], float]]:
        """(step from 1, this worker's micro-batches, seconds waited for them) for every step that is left."""
        last = self.job.recipe.training.max_steps
        stream = ray_micro_batches(self.plan, self.rank, self.step, last)
        try:
            for step in range(self.step + 1, last + 1):
                asked = time.monotonic()
                micro_batches = [next(stream) for _ in range(self.accumulation)]
                yield step, micro_batches, time.monotonic() - asked
        finally:
            stream.close()

    def normalisers(self, micro_batches: list[MicroBatch]) -> tuple[int, int]:
        """(masked tokens, samples with a reply) of the whole global batch, at least 1 each."""
        n_masked = micro_batches[0].n_masked
        if n_masked is None:  # token masking: only the drawn masks tell
            count = torch.tensor([sum(len(m.masked_index) for m in micro_batches)], device=self.device)
            dist.all_reduce(count)
            n_masked = int(count)
        return max(1, n_masked), max(1, micro_batches[0].n_rop)

    def seed_dropout(self, step: int, number: int) -> None:
        """Make dropout a function of (seed, step, micro-batch, rank) alone."""
        mixed = hash((self.job.recipe.training.seed, step, number, self.rank)) & (2**63 - 1)  # ints: stable hash
        torch.manual_seed(mixed)

    def reduce(self, sums: torch.Tensor) -> tuple[list[float], int]:
        """The step's one all_reduce of bookkeeping: sums [n] float64 over workers, and rank 0's stop reason.

        It also adds up the update's squares, for the norm in the metrics.
        """
        square = self.optimizer.update_square / (1 if self.optimizer.sharded else self.world_size)
        packed = torch.cat([sums, sums.new_tensor([float(self._stop if self.rank == 0 else 0)]), square.view(1)])
        dist.all_reduce(packed)
        *totals, stop, update_square = (float(value) for value in packed.cpu().numpy())
        self.update_norm = update_square**0.5
        return totals, int(stop)

    # ---- talking to the driver ----

    def say(self, line: str) -> None:
        """Print a line on the driver."""
        self.job.control.say.remote(line)

    def beat(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Rank 0, twice a second: tell the driver how far we are and hear whether to stop."""
        training = self.job.recipe.training
        now = time.monotonic()
        if self.rank or now - self._last_beat < 0.5:
            return
        self._last_beat = now
        left = training.max_steps - step
        done = step - self.first_step
        seconds_left = left * (now - self.started) / max(1, done)
        if training.max_time is not None:
            remaining = training.max_time * 60 - (now - self.started)
            seconds_left = min(seconds_left, max(0.0, remaining))
            if remaining <= 0:
                self._stop = STOP_TIME
        import ray

        asked = ray.get(
            self.job.control.beat.remote(
                {
                    "step": step,
                    "max_steps": training.max_steps,
                    "loss": loss,
                    "tokens_per_second": tokens_per_second,
                    "seconds_left": seconds_left,
                }
            )
        )
        self._stop = self._stop or cast(int, asked)

    def row(self, log: scoring.Interval) -> dict[str, float | Histogram]:
        """Metrics of the latest update and of the interval that only the worker knows: optim/, data/, speed/ keys."""
        training = self.job.recipe.training
        row: dict[str, float | Histogram] = {
            "optim/learning_rate": self.optimizer.learning_rate,
            "optim/update_norm": self.update_norm,
            "data/epoch": self.step * training.global_batch_size / self.plan.counts.samples,
        }
        norm = self.engine.get_global_grad_norm()  # None at stage 0 without clipping
        row["optim/grad_norm"] = self.optimizer.gradient_norm if norm is None else float(norm)
        if isinstance(self.optimizer, Lamb):
            row |= trust_ratio_metrics(self.optimizer.tensor_names, self.optimizer.trust_ratios, self.optimizer.adapted)
        flops = useful_flops(self.config, log["real_tokens"], log["n_masked"]) / log.seconds
        row["speed/flops"] = flops
        peak = device_peak(self.device)
        if peak is not None:
            row["speed/mfu"] = flops / (peak * self.world_size)
        if self.device.type == "cuda":
            row["speed/peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
        return row

    # ---- evaluation and checkpoints ----

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out scores of the current weights, the same on every rank; remembers the best step.

        Empty for a corpus that holds nothing out: then there is no best step.
        """
        recipe = self.job.recipe
        batches = evaluation_batches(
            self.job.encoded,
            "valid",
            self.rank,
            self.world_size,
            recipe.training.micro_batch_tokens,
            self.plan.masking,
            recipe.training.seed,
        )
        layers = [memory for _, memory in memories(self.engine.module)]
        for memory in layers:
            memory.start_usage()
        self.engine.eval()
        sums = scoring.evaluate(self.engine, batches, self.device)
        self.engine.train()
        dist.all_reduce(sums)
        self.memory_usage = self._usage_of(layers)
        if not any(sums.tolist()):
            return {}
        scores = scoring.scores_of(sums.tolist())
        if self.best is None or scores["loss"] < self.best["loss"]:
            self.best = {"step": step, "loss": scores["loss"]}
        return scores

    def _usage_of(self, layers: list[ProductKeyMemory]) -> dict[str, float]:
        """How evenly each memory was read since `start_usage`, over all workers, as pkm/ metrics."""
        found: dict[str, float] = {}
        for layer, memory in zip(self.config.memory_layers, layers, strict=True):
            usage = memory.stop_usage()
            dist.all_reduce(usage)
            found |= {f"pkm/layer_{layer}_{key}": value for key, value in usage_statistics(usage).items()}
        return found

    def save(self, step: int) -> None:
        """Write and seal the checkpoint of `step`; collective."""
        job, stage = self.job, self.job.recipe.training.zero_stage
        folder = storage.join(job.run.path, checkpoint.folder_name(step))
        local = local_fragments(self.engine)
        self._refuse_broken_weights(step, local)
        if self.rank == 0:
            storage.delete(folder)  # what a broken attempt may have left
            storage.make_dir(folder)
        dist.barrier()
        weights = full_weights(self.engine, self.rank)
        fragments = owned(local, stage, self.rank, self.world_size)
        name = checkpoint.optimizer_file(self.rank, self.world_size)
        mine = [checkpoint.write_file(folder, name, checkpoint.optimizer_bytes(fragments, self.optimizer.moments))]
        if self.rank == 0:
            model = storage.join(folder, "model")
            save_model_folder(model, self.config, weights, tokenizer_folder=job.recipe.corpus.tokenizer)
            mine += [checkpoint.describe_file(folder, f"model/{file}") for file in storage.list_dir(model)]
            state = {"step": step, "epoch": self.plan.epoch_of_step(step), "run": job.run.id, "best": self.best}
            mine.append(checkpoint.write_file(folder, "state.json", json.dumps(state, indent=1).encode()))
            mine.append(checkpoint.write_file(folder, "recipe.yaml", recipe_file.dump(job.recipe).encode()))
        written: list[Any] = [None] * self.world_size
        dist.all_gather_object(written, mine)
        if self.rank == 0:
            checkpoint.write_manifest(folder, job.run.id, step, [entry for part in written for entry in part])
            protected = {int(self.best["step"])} if self.best else set()
            checkpoint.retire(job.run.path, step, job.recipe.training.save_total_limit, protected)
            assert self.tracker is not None
            self.tracker.flush()
        dist.barrier()
        self.saved_step = step

    def _refuse_broken_weights(self, step: int, fragments: list[Fragment]) -> None:
        """TwilbertError on all workers when a weight is not a finite number: such a checkpoint would hide a sound one.

        A gradient can overflow at a finite loss; the loss of the next step would tell, after the weights are saved.
        """
        broken = torch.tensor([sum(not bool(f.values.isfinite().all()) for f in fragments)], device=self.device)
        dist.all_reduce(broken)
        if int(broken):
            raise TwilbertError(f"step {step}: weights are no longer finite; nothing was saved, {DIVERGED}")

    def publish(self) -> str:
        """Rank 0: copy the best checkpoint's model (else the last one's) to the run's model folder; its step's name."""
        run, step = self.job.run, self.saved_step
        if self.best is not None and storage.exists(self._sealed(int(self.best["step"]))):
            step = int(self.best["step"])
        assert step is not None
        return run.publish(step, trained_steps=self.step)

    def _sealed(self, step: int) -> str:
        return storage.join(self.job.run.path, checkpoint.folder_name(step), "manifest.json")
