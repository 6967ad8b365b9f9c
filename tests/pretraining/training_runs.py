"""Small training runs without Ray: DeepSpeed in spawned processes over gloo, and the same in plain PyTorch."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream.masking import MaskingSettings
from twilbert.data.stream.order import StreamPlan
from twilbert.data.stream.stream import micro_batches
from twilbert.evaluation import scoring
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.optim.fragments import Fragment
from twilbert.optim.optimizers import OPTIMIZERS
from twilbert.optim.schedules import learning_rate
from twilbert.pretraining.engine import make_engine
from twilbert.recipe import loading
from twilbert.recipe.pretraining import Recipe

CPU = torch.device("cpu")


def small_recipe(**training: Any) -> Recipe:
    """A model of two layers with every part that has no randomness; 32 samples a step."""
    values = {
        "corpus": {"max_len": 20},
        "model": {"hidden_size": 32, "embedding_size": 32, "n_encoders": 2, "n_heads": 2, "attention_size": 8},
        "objective": {"rop": {"n_hidden": 1, "hidden_size": 24}},
        "training": {
            "schedule": "linear", "learning_rate": 1e-2, "warmup_steps": 5, "max_steps": 20, "global_batch_size": 32,
            "precision": "fp32", "zero_stage": 1,
        }
        | training,
    }  # fmt: skip
    return loading.build(values)


def plan_of(recipe: Recipe, encoded: EncodedCorpus, world_size: int, accumulation: int) -> StreamPlan:
    return StreamPlan(
        encoded, recipe.training.seed, recipe.training.global_batch_size, world_size, accumulation, MaskingSettings()
    )


def model_of(recipe: Recipe, encoded: EncodedCorpus) -> PretrainingModel:
    torch.manual_seed(recipe.training.seed)
    return PretrainingModel(ModelConfig.from_dict(recipe.architecture(encoded.vocab_size)))


def rate(recipe: Recipe, step: int) -> float:
    return learning_rate(recipe, step)


def plain_losses(recipe: Recipe, encoded: EncodedCorpus, steps: int) -> list[float]:
    """The reference: one process, torch autograd on the whole global batch, no DeepSpeed."""
    model = model_of(recipe, encoded)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    t = recipe.training
    optimizer = OPTIMIZERS[t.optimizer](
        model.parameters(), beta1=t.beta1, beta2=recipe.beta2, epsilon=t.epsilon, weight_decay=t.weight_decay
    )
    fragments = [Fragment(n, tuple(p.shape), 0, p.numel(), p, 0) for n, p in model.named_parameters()]
    optimizer.bind(fragments, shapes)
    losses = []
    for batch in micro_batches(plan_of(recipe, encoded, 1, 1), 0, 0, steps):
        out = model(*scoring.tensors(batch, CPU))
        assert batch.n_masked is not None
        loss = out.mlm_loss_sum / batch.n_masked + out.rop_loss_sum / batch.n_rop
        loss.backward()
        if t.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), t.max_grad_norm)
        optimizer.update, optimizer.learning_rate = batch.step + 1, rate(recipe, batch.step + 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return losses


def spawn(target: Any, world_size: int, *args: Any) -> list[Any]:
    """Run `target(rank, world_size, *args)` in `world_size` gloo processes; what each returned, by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_child, args=(target, rank, world_size, port, queue, args)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=480) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    failed = [value for value in results.values() if isinstance(value, str) and value.startswith("Traceback")]
    assert not failed, failed[0]
    return [results[rank] for rank in range(world_size)]


def _child(target: Any, rank: int, world_size: int, port: int, queue: Any, args: tuple[Any, ...]) -> None:
    import traceback

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(world_size), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group("gloo")
        queue.put((rank, target(rank, world_size, *args)))
        torch.distributed.destroy_process_group()
    except BaseException:  # noqa: BLE001 - whatever it was, the parent shows it
        queue.put((rank, traceback.format_exc()))


def engine_losses(
    rank: int, world_size: int, cuts: list[tuple[Recipe, int]], folder: str, steps: int
) -> list[tuple[list[float], list[list[int]]]]:
    """For each (recipe, accumulation): each step's loss over all workers, this worker's sample ids."""
    encoded = EncodedCorpus.open(folder)
    return [_engine_run(rank, world_size, recipe, encoded, accumulation, steps) for recipe, accumulation in cuts]


def _engine_run(
    rank: int, world_size: int, recipe: Recipe, encoded: EncodedCorpus, accumulation: int, steps: int
) -> tuple[list[float], list[list[int]]]:
    model = model_of(recipe, encoded)
    engine, optimizer = make_engine(recipe, model, recipe.training.precision, accumulation, world_size)
    losses, ids = [0.0] * steps, [[] for _ in range(steps)]
    for batch in micro_batches(plan_of(recipe, encoded, world_size, accumulation), rank, 0, steps):
        optimizer.update, optimizer.learning_rate = batch.step + 1, rate(recipe, batch.step + 1)
        out = engine(*scoring.tensors(batch, CPU))
        assert batch.n_masked is not None
        loss = out.mlm_loss_sum / batch.n_masked + out.rop_loss_sum / batch.n_rop
        engine.backward(loss * (accumulation * world_size))
        engine.step()
        losses[batch.step] += float(loss.detach())
        ids[batch.step] += batch.sample_ids.tolist()
    total = torch.tensor(losses, dtype=torch.float64)
    torch.distributed.all_reduce(total)
    return total.tolist(), ids


def encoded_folder(tmp_path: Path) -> str:
    from tests.make_encoded import make_encoded

    return make_encoded(tmp_path, rows_per_row_group=[60, 50], vocab_size=200, valid_rows=20).path
