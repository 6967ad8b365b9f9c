"""Pre-train TWilBERT: the main job, on this machine or a Ray cluster.

driver   recipe ─ checks ─ Ray ─ encode when missing ─ run folder ─ Ray Train ─ progress, Ctrl-C ─ model/
worker   stream ─▶ micro-batches ─▶ DeepSpeed engine ─▶ metrics, checkpoints         (`_train`: the visible step)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twilbert import cli, devices, storage
from twilbert.cluster import ray_session
from twilbert.cluster.joining import wait_for_room
from twilbert.data import checksums
from twilbert.errors import Interrupted, TwilbertError, UsageError
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Recipe, run_identity

if TYPE_CHECKING:
    from twilbert.tracking.page import PretrainingRun

# ---- the worker ----------------------------------------------------------------------------------------------------


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in every worker; config["job"] is a `twilbert.pretraining.job.Job`."""
    import ray
    from ray.train import get_context

    from twilbert.pretraining.failures import describe, is_recoverable

    job = config["job"]
    context = get_context()
    if context.get_world_rank() == 0:
        ray.get(job.control.attempt.remote(job.recipe.cluster.max_restarts))
    if ray.get(job.control.failed.remote()):  # nothing to restart
        return
    os.environ.update(ray.get(job.control.secrets.remote()))
    ranks = context.get_world_rank(), context.get_world_size(), context.get_local_world_size()
    try:
        from ray.train.torch import get_device

        from twilbert.pretraining.worker import Worker

        ray_session.quiet_ray_data()
        with contextlib.closing(Worker(job, *ranks, get_device())) as worker:
            _train(worker)
    except TwilbertError as error:
        ray.get(job.control.fail.remote(error))
        raise
    except Exception as error:
        ray.get(job.control.crashed.remote(describe(error), is_recoverable(error)))
        raise


def _train(worker: Any) -> None:
    import ray.train

    from twilbert.evaluation import scoring
    from twilbert.model.memory import discard_running_statistics, update_running_statistics
    from twilbert.optim.schedules import learning_rate
    from twilbert.pretraining.control import STOP_REASONS

    recipe, training, tracker = worker.job.recipe, worker.job.recipe.training, worker.tracker
    engine, optimizer, device = worker.engine, worker.optimizer, worker.device
    log = scoring.Interval(worker.interrupted)
    order, scores = 0, {}

    for step, micro_batches, waited in worker.steps():
        optimizer.update = step - len(worker.skipped)  # a skipped step advances the data, not the schedule
        optimizer.taken = optimizer.skip = False
        optimizer.learning_rate = learning_rate(recipe, optimizer.update)
        n_masked, n_rop = worker.normalisers(micro_batches)
        sums = scoring.zero_sums(device)
        for number, micro_batch in enumerate(micro_batches):
            worker.seed_dropout(step, number)
            out = engine(*scoring.tensors(micro_batch, device))
            # DeepSpeed divides by the accumulation and averages over workers: multiply by both, so that the gradient
            # is that of the mean over the global batch, for any partition.
            loss = out.mlm_loss_sum / n_masked + out.rop_loss_sum / n_rop
            engine.backward(loss * (worker.accumulation * worker.world_size))
            sums += scoring.sums_of(out, micro_batch)
            if number + 1 == worker.accumulation:  # before the weights move: all workers see the same loss and order
                totals, order = worker.reduce(sums)
                loss_is_finite = log.add(totals, n_masked, n_rop, waited)
                optimizer.skip = not loss_is_finite
            engine.step()  # reduces, clips and updates at the last accumulation
        worker.step = step
        if optimizer.taken:
            update_running_statistics(engine.module)
        else:
            discard_running_statistics(engine.module)
            worker.skip(step, "its gradient is not finite" if loss_is_finite else f"its loss is {log.loss}")
        worker.watchdog.touch()
        worker.trace(step, micro_batches)
        worker.heartbeat(step, log.loss, log.tokens_per_second)
        worker.commit()

        last = step == training.max_steps
        if step % training.logging_steps == 0 or last:
            worker.measure_update()
            if tracker:
                tracker.log(step, log.row() | worker.row(log))
            log = scoring.Interval()
        trained = time.monotonic()
        if step % training.eval_steps == 0 or last:
            scores = worker.evaluate(step)
            if tracker and scores:
                tracker.log(step, {f"valid/{key}": value for key, value in scores.items()} | worker.memory_usage)
                worker.say(f"step {step}: held-out {scoring.summary(scores)}")
            ray.train.report({"step": step, **scores})
        is_best = worker.best is not None and worker.best["step"] == step
        if step % training.save_steps == 0 or last or order or is_best:
            worker.save(step, log.state(trained))
        worker.watchdog.touch()
        log.started += time.monotonic() - trained  # evaluating and saving do not count as training time
        if order in STOP_REASONS:
            break

    worker.commit(wait=True)
    if tracker:
        published = worker.publish()
        stop = order if order in STOP_REASONS else 0
        stop = stop if worker.step < training.max_steps else 0  # a stop at the very end: it is done
        outcome = {"step": worker.step, "stop": stop, "scores": scores, "published": published}
        ray.get(worker.job.control.finish.remote(outcome))


# ---- the driver ----------------------------------------------------------------------------------------------------


def run(recipe: str | Mapping[str, Any] | Recipe = "base.yaml", **overrides: Any) -> PretrainingRun:
    """Pre-train from Python: the run, with its curves and model. `recipe`: a file, a shipped one's name, or values.

    Overrides have two underscores for a dot: run("tiny.yaml", training__max_steps=200), or run("tiny.yaml",
    **{"training.max_steps": 200}). As with the command, the same recipe resumes, and an interrupt (Ctrl-C, a notebook's
    stop button) saves a checkpoint; the run that is returned is then "stopped". UsageError, TwilbertError likewise.
    """
    from twilbert.tracking.page import PretrainingRun

    if isinstance(recipe, str):
        return PretrainingRun.read(train(loading.load(recipe, loading.as_overrides(overrides)), recipe)["run"])
    values = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else dict(recipe)
    return PretrainingRun.read(train(loading.build(values, loading.as_overrides(overrides)))["run"])


def train(recipe: Recipe, recipe_name: str = "recipe") -> dict[str, Any]:
    """Pre-train as `recipe` says and return {"run", "model", "step", "stop", "scores"}.

    UsageError or TwilbertError as the command reports them.
    """
    from twilbert.pretraining.control import STOP_REASONS
    from twilbert.pretraining.initial_model import check_initial_model, check_room
    from twilbert.tracking import run_folder

    began = time.monotonic()
    recipe = resolve(recipe)
    corpus, tokenizer = open_data(recipe)
    least, most = recipe.cluster.least_workers, recipe.cluster.most_workers
    # One logical CPU for each worker's stream: a stream that waits for another's would delay the step of both.
    num_cpus = most + max(ray_session.DATA_CPUS, most)
    with contextlib.ExitStack() as claims, ray_session.ensure_ray(num_cpus, recipe.cluster.address):
        ray_session.check_resources(least, 1, recipe.cluster.use_gpu)
        wait_for_room([{"CPU": 1} | ({"GPU": 1} if recipe.cluster.use_gpu else {})] * least)
        precision = resolve_precision(recipe)
        identity = _identity(recipe, corpus, tokenizer, precision)
        name = recipe.run.name or run_folder.default_name(recipe_name, identity)
        known = run_folder.find(recipe, name, identity)
        check_room(recipe, tokenizer.vocab_size)
        if known is None:
            check_initial_model(recipe, tokenizer)  # a run that resumes does not need it
        elif known.trained_steps >= recipe.training.max_steps:
            done = known.trained_steps
            run_folder.mark_finished(known)
            cli.say(f"already finished at step {done}; raise training.max_steps or change the recipe to train more")
            return {"run": known.path, "model": known.model, "step": done, "stop": 0, "scores": {}}
        storage.probe_write(recipe.run.storage_path)
        if len(ray_session.nodes()) > 1:
            ray_session.probe_storage_everywhere(recipe.run.storage_path)
        encoded = _encoded(recipe, corpus, tokenizer)
        folder = claims.enter_context(run_folder.claimed(recipe, name, identity))  # until all workers have ended
        cli.say(f"run {name} in {folder.path}{' (found, resuming)' if known else ''}; precision {precision}")
        with run_folder.Heartbeat(folder) as heartbeat:
            outcome = _fit(recipe, folder, encoded, precision, began)
            heartbeat.end(STOP_REASONS.get(outcome["stop"], ""))
    return {"run": folder.path, "model": folder.model, **outcome}


def _fit(recipe: Recipe, folder: Any, encoded: Any, precision: str, began: float) -> dict[str, Any]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from twilbert.pretraining.control import RunControl, watch
    from twilbert.pretraining.host_memory import allocator_environment
    from twilbert.pretraining.job import Job
    from twilbert.pretraining.rendezvous import torch_config
    from twilbert.tracking.run_folder import RAY_FOLDER

    minutes = recipe.training.max_time  # from the start of the command, `began`
    seconds = minutes and minutes * 60 - (time.monotonic() - began)
    control = ray_session.beside_driver(RunControl).remote(ray_session.worker_secrets(), seconds)
    ray_folder = storage.join(folder.path, RAY_FOLDER)
    use_gpu, workers = recipe.cluster.use_gpu, recipe.cluster.num_workers
    if isinstance(workers, tuple):
        # Ray goes on counting on a lost node for up to 20 s, and waits this long (by itself: 60) for its workers.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "25")
    environment = ray_session.worker_environment() | ({} if use_gpu else allocator_environment())
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": Job(recipe, folder, encoded, precision, control)},
        torch_config=torch_config("nccl" if use_gpu else "gloo", recipe.training.hang_timeout * 60),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=f"{int(time.time())}",  # always new: Ray Train resumes nothing
            storage_path=ray_folder,
            failure_config=FailureConfig(max_failures=-1),  # RunControl.attempt counts those without a new checkpoint
            worker_runtime_env={"env_vars": environment},
        ),
    )
    try:
        return watch(trainer.fit, control)
    finally:
        with contextlib.suppress(OSError):  # Ray may still be writing there; the next start removes what is left
            storage.delete(ray_folder)


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths and the settings of model.init_from.

    UsageError where it contradicts that model, and for relative paths inside a Ray job, whose folder is deleted.
    """
    from twilbert.pretraining.initial_model import inherit

    recipe = inherit(recipe)
    if ray_session.in_ray_job():
        relative = loading.relative_paths(recipe)
        if relative:
            raise UsageError(
                "relative paths in a Ray job lie in a temporary copy of the folder that is deleted:\n"
                + "\n".join(f"  {key}: {path}" for key, path in relative.items())
                + "\n  give absolute paths or URIs that every node sees, e.g. run.storage_path=/shared/runs"
            )
    return loading.absolute_paths(recipe)


def open_data(recipe: Recipe) -> tuple[Any, Any]:
    """(Corpus, Tokenizer) of the recipe; UsageError with the command that makes the missing one."""
    from twilbert.data.corpus.corpus import Corpus
    from twilbert.data.tokenizer.tokenizer import Tokenizer

    corpus, tokenizer = Corpus.open(recipe.corpus.path), Tokenizer.load(recipe.corpus.tokenizer)
    if not tokenizer.is_ours:
        raise UsageError(
            f"corpus.tokenizer: {recipe.corpus.tokenizer}: its special tokens are not a TWilBERT's; "
            "make a tokenizer with twilbert-vocab"
        )
    return corpus, tokenizer


def _identity(recipe: Recipe, corpus: Any, tokenizer: Any, precision: str) -> dict[str, Any]:
    data = {"data.corpus": corpus.id, "data.tokenizer": tokenizer.fingerprint}
    return run_identity(recipe, data) | {"training.precision": precision}


def resolve_precision(recipe: Recipe) -> str:
    """fp32 or bf16; auto is decided by the devices that will train."""
    training = recipe.training
    if training.precision != "auto":
        return training.precision
    return "bf16" if training.zero_stage > 0 and devices.device_computes_bf16(recipe.cluster.use_gpu) else "fp32"


def _encoded(recipe: Recipe, corpus: Any, tokenizer: Any) -> Any:
    """The encoded corpus, made now when it is missing; TwilbertError when a shard of text or ids has changed."""
    from twilbert.data.encoded import encode

    encoded = encode.find(corpus, tokenizer, recipe.corpus.max_len)
    if encoded is None:
        cli.say(f"{corpus.path}: not yet encoded with {recipe.corpus.tokenizer}; encoding it now, once")
        return encode.encode_corpus(corpus, tokenizer, recipe.corpus.max_len)
    checksums.check_files([*corpus.listed, *encoded.listed])
    return encoded


def _dry_run(recipe: Recipe, name: str) -> str:
    """Print the resolved recipe and the checks that need no Ray; UsageError as the run itself would raise it."""
    recipe = resolve(recipe)
    print(loading.dump(recipe), end="")
    try:
        corpus, tokenizer = open_data(recipe)
    except UsageError as error:
        print(f"# missing: {error}")
        return f"{name}: the recipe is valid; what is missing is listed above"
    if recipe.training.precision == "auto" and recipe.cluster.use_gpu:
        print("# run: its name depends on what the GPUs compute in; give training.precision to see it here")
        return f"{name}: the recipe is valid; nothing was started"
    from twilbert.pretraining.initial_model import check_initial_model
    from twilbert.tracking import run_folder

    identity = _identity(recipe, corpus, tokenizer, resolve_precision(recipe))
    chosen = recipe.run.name or run_folder.default_name(name, identity)
    known = run_folder.find(recipe, chosen, identity)
    if known is None:
        check_initial_model(recipe, tokenizer)
    print(f"# run: {storage.join(recipe.run.storage_path, chosen)}{' (found, would be resumed)' if known else ''}")
    return f"{name}: the recipe is valid; nothing was started"


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "pretrain",
        "Pre-train a TWilBERT as a recipe says; the same command resumes a run.",
        "twilbert-pretrain recipes/tiny.yaml training.max_steps=200",
    )
    parser.add_argument("recipe", help="YAML file, or the name of a shipped recipe (recipes/base.yaml)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")
    parser.add_argument("--dry-run", action="store_true", help="show the resolved recipe and checks, start nothing")
    return parser


def _command(args: argparse.Namespace) -> str:
    recipe = loading.load(args.recipe, args.overrides)
    if args.dry_run:
        return _dry_run(recipe, args.recipe)
    result = train(recipe, args.recipe)
    from twilbert.pretraining.control import STOP_REASONS, STOP_SIGNAL

    stopped = STOP_REASONS.get(result["stop"])
    if result["stop"] == STOP_SIGNAL:
        raise Interrupted(
            f"interrupted at step {result['step']} with a checkpoint in {result['run']}; the same command resumes"
        )
    state = f"stopped at step {result['step']} ({stopped}); the same command resumes" if stopped else "done"
    return f"{state}; model in {result['model']}"


def main(argv: list[str] | None = None) -> int:
    """The command twilbert-pretrain."""
    return cli.run(_parser(), _command, argv)


if __name__ == "__main__":
    from twilbert.pretrain import main as _main  # from its own name, so that workers find train_worker there

    raise SystemExit(_main())
