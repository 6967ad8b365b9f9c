"""twilbert-plan: figures against built models, saved tensors and training's micro-batches; messages on bad input."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.make_encoded import make_encoded
from twilbert import plan as verb
from twilbert.data.stream.stream import accumulation_for
from twilbert.errors import UsageError
from twilbert.model.config import ModelConfig
from twilbert.model.flops import useful_flops
from twilbert.model.heads import PretrainingModel
from twilbert.model.packing import Packing
from twilbert.planning import calibration, timing, whole
from twilbert.planning.activations import activations
from twilbert.planning.calibration import Rates, assumed_rates
from twilbert.planning.devices import KINDS, device_of
from twilbert.planning.memory import BUCKET, memory
from twilbert.planning.operations import flops_by_part
from twilbert.planning.workload import assumed_lengths, piece_of, workload
from twilbert.recipe import loading

RECIPES = ["tiny", "base", "large", "xlarge"]
SMALL = dict(vocab_size=300, max_len=32, hidden_size=32, embedding_size=32, n_encoders=2, n_heads=4, attention_size=8)
MEMORY = {"pkm": True, "pkm_params": {"in_layers": [1], "k_dim": 8, "memory_size": 8, "n_heads": 2, "knn": 4}}


def small(**changed) -> ModelConfig:
    return ModelConfig.from_dict(SMALL | changed)


# ---- parameters and operations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_are_the_built_models(name: str):
    recipe = loading.load(f"{name}.yaml")
    estimate = verb.plan(recipe, devices=1, kind="h100", vocab_size=8000)
    with torch.device("meta"):
        model = PretrainingModel(ModelConfig.from_dict(recipe.architecture(8000)))
    assert estimate["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert estimate["parameters"]["encoder"] == sum(p.numel() for p in model.encoder.parameters())


@pytest.mark.parametrize("changed", [{}, {"factorize_embeddings": True, "embedding_size": 16}, MEMORY])
def test_parts_of_the_operations_add_up_to_the_useful_ones(changed):
    parts = flops_by_part(small(**changed), 100, 15, 5000)
    scores = parts.pop("scores")
    assert sum(parts.values()) == pytest.approx(useful_flops(small(**changed), 100, 15))
    assert scores == 12 * 2 * 32 * 5000
    assert all(value >= 0 for value in parts.values())


# ---- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"n_encoders": 3, "output_dropout": 0.1},
        {"factorize_embeddings": True, "embedding_size": 16, "cross_sharing": True},
        MEMORY,
    ],
)
@pytest.mark.parametrize(
    "lengths",
    [[24] * 8, [23] + [24] * 7, [6, 8, 12, 14, 15, 23, 24, 24]],
    ids=["full", "padded", "packed"],
)
def test_activations_are_the_tensors_that_autograd_saves(changed, dtype, lengths):
    config, k = small(**changed), 20
    saved = saved_bytes(config, dtype, lengths, k)
    planned = activations(config, piece_of(np.array(lengths), k, gpu=False), dtype.itemsize)
    assert planned.total == pytest.approx(saved, rel=0.04)
    assert planned.peak > planned.total


def saved_bytes(config: ModelConfig, dtype: torch.dtype, lengths: list[int], k: int) -> int:
    """Bytes of the distinct storages that the graph of a forward pass saves, parameters left out."""
    b, t = len(lengths), max(lengths)
    torch.manual_seed(0)
    model = PretrainingModel(config).to(dtype)
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # referenced, so that its address is not reused
        return tensor

    ids, segments = torch.randint(5, 300, (b, t)), torch.zeros(b, t, dtype=torch.long)
    lengths_B = None if min(lengths) == t else torch.tensor(lengths)
    masked, labels = torch.arange(k), torch.randint(5, 300, (k,))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids, segments, lengths_B, masked, labels, torch.ones(b, dtype=torch.long))
    return sum(storage.nbytes() for storage in storages.values())


def test_a_gpu_reserves_the_whole_bucket_and_a_cpu_what_it_writes():
    config = small()
    saved = activations(config, piece_of(np.full(4, 20), 12, gpu=False), 2)
    settings = {"precision": "bf16", "stage": 2, "world": 2, "accumulation": 2}
    assert memory(config, saved, gpu=True, **settings).peak > 2 * BUCKET
    assert memory(config, saved, gpu=False, **settings).peak < 0.1 * BUCKET


# ---- the step ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 8])
def test_a_step_is_cut_as_training_cuts_it(tmp_path: Path, world: int):
    encoded = make_encoded(tmp_path / "encoded", lengths=(3, 30))
    recipe = loading.build(
        {"corpus": {"max_len": 40}, "training": {"global_batch_size": 64, "micro_batch_tokens": 256}}
    )
    work = workload(recipe, whole.lengths_of(encoded, recipe), world, gpu=False)
    assert work.accumulation == accumulation_for(encoded, "train", 64, world, 256)
    assert work.step.padded <= work.accumulation * 256
    assert work.step.real <= work.step.rows <= work.step.padded + 64 * work.accumulation
    assert sum(piece.samples for piece in work.pieces) / work.steps * world == pytest.approx(64)


def test_a_cpu_packs_a_micro_batch_as_the_model_does_and_a_gpu_computes_its_padding():
    lengths = np.array([8, 10, 12, 14, 18, 20, 22, 23])  # 127 tokens: one row of 128 is empty
    packing = Packing(torch.from_numpy(lengths), 23, torch.float32)
    piece = piece_of(lengths, 20, gpu=False)
    assert piece.rows == packing.pack(torch.zeros(8, 23, 4)).shape[0]
    assert piece.attended == packing.group(torch.zeros(int(piece.rows), 4)).shape[0]
    assert piece.square == sum(group.n * group.t**2 for group in packing.groups)
    on_gpu = piece_of(lengths, 20, gpu=True)
    assert (on_gpu.rows, on_gpu.attended, on_gpu.square) == (8 * 23, 8 * 23, 8 * 23**2)


def test_assumed_lengths_are_cut_and_have_their_median():
    lengths = assumed_lengths(max_len=30, tweet_tokens=20)
    assert lengths.max() == 2 * 30 + 3
    assert np.median(lengths) == pytest.approx(2 * 20 + 3, rel=0.15)
    assert (np.diff(lengths) >= 0).all()


def test_a_step_takes_the_time_of_its_parts_and_more_devices_less():
    recipe = loading.load("base.yaml")
    config = ModelConfig.from_dict(recipe.architecture(30002))
    device = device_of("cpu", 1e12)
    rates = assumed_rates(device, config, "bf16")
    lengths = assumed_lengths(128)
    one, eight = (
        timing.step_time(recipe, config, workload(recipe, lengths, n, gpu=False), device, rates, "bf16") for n in (1, 8)
    )
    assert one.collectives == 0
    assert one.compute == pytest.approx((one.products + one.elements + one.update) * (1 + timing.RAY_SHARE))
    assert eight.products == pytest.approx(one.products / 8, rel=0.15)
    assert eight.step == eight.compute + eight.collectives
    slow = timing.step_time(
        recipe, config, workload(recipe, lengths, 8, gpu=False), device, Rates(1e18, 1e18, 1e18, 1e18), "bf16"
    )
    assert slow.bound == "collectives"


def test_measured_rates_are_positive_and_cover_the_memory():
    recipe = loading.build(
        {"corpus": {"max_len": 16}, "training": {"global_batch_size": 16, "micro_batch_tokens": 128}}
    )
    rates = whole.measured_rates(recipe, small(**MEMORY), assumed_lengths(16, 8), "fp32")
    assert rates.measured
    assert min(rates.matrix, rates.head, rates.element, rates.stream) > 0
    assert rates.memory_token >= 0


# ---- the command ---------------------------------------------------------------------------------------------------


def run(*words: str) -> int:
    return verb.main(["base.yaml", *words])


def test_a_missing_matplotlib_is_reported_before_any_work(
    monkeypatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    given = ["--plot", str(tmp_path / "plan.png"), "--json", str(tmp_path / "plan.json")]
    assert run("--gpus", "1", "--kind", "h100", *given) == 2
    assert "pip install 'twilbert[train]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_writes_json_a_picture_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wanted, picture = tmp_path / "plan.json", tmp_path / "plan.svg"
    assert run("--gpus", "3", "--kind", "a100", "--json", str(wanted), "--plot", str(picture)) == 0
    out = capsys.readouterr().out
    assert str(wanted) in out.splitlines()[-1]
    assert "<svg" in picture.read_text()
    estimate = json.loads(wanted.read_text())
    assert {"parameters", "flops", "memory", "time", "disk", "bound", "assumptions", "step", "device"} <= set(estimate)
    assert [row["stage"] for row in estimate["memory"]["stages"]] == [0, 1, 2, 3]
    assert [row["devices"] for row in estimate["time"]["devices"]] == [1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512]
    assert estimate["time"]["own"]["devices"] == 3
    assert estimate["bound"] in ("compute", "collectives", "data")
    assert estimate["memory"]["own"]["fits"] is True
    assert estimate["disk"]["checkpoint"] == 14 * estimate["parameters"]["total"]
    for sentence in estimate["assumptions"]:
        assert sentence in out


@pytest.mark.parametrize("kind", KINDS)
def test_assumed_figures_are_among_the_assumptions(kind: str):
    flops = 5e11 if kind == "cpu" else None
    text = "\n".join(verb.plan(loading.load("base.yaml"), devices=2, kind=kind, flops=flops)["assumptions"])
    place, device = "cpu" if kind == "cpu" else "gpu", device_of(kind, flops)
    figures = [f"{verb.VOCAB_SIZE:,} entries", f"{whole.TWEET_TOKENS} tokens in the median", f"spread {whole.SPREAD}"]
    figures += [device.source, f"{device.reserve / 1e9:.2f} GB", f"{calibration.LARGE_SHARE[place]:.0%} of the peak"]
    figures += [f"{timing.LINK_SHARE:.0%} of", f"{timing.LATENCY_S * 1e6:g} µs a hop", "2.3 bytes a token on disk"]
    figures += [] if kind == "cpu" else [f"{BUCKET:,} numbers", f"{timing.KERNELS_A_LAYER} of them a layer"]
    assert not [figure for figure in figures if figure not in text], text


def test_lengths_and_vocabulary_come_from_the_corpus_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    encoded = make_encoded(tmp_path / "encoded", lengths=(3, 30))
    monkeypatch.setattr(verb, "_data", lambda recipe: (encoded, encoded.vocab_size, []))
    estimate = verb.plan(loading.load("tiny.yaml"), devices=1, kind="cpu", flops=5e11)
    assert estimate["parameters"]["masked_lm"] == 192 * 200 + 200
    assert estimate["disk"]["corpus_rows"] == sum(split.rows for split in encoded.splits.values())
    assert not any("median" in sentence or "entries" in sentence for sentence in estimate["assumptions"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "1", "--kind", "tpu"], "--kind tpu: unknown; known are h100, h200, a100, l4, cpu"),
        (["--gpus", "0", "--kind", "l4"], "--gpus 0: expected 1 to 8,192 devices"),
        (["--gpus", "4096", "--kind", "l4"], "--gpus 4096: more devices than the 2048 samples of a step"),
        (["--gpus", "1", "--kind", "cpu"], "--kind cpu: give --measure"),
        (["--gpus", "1", "--kind", "cpu", "--flops", "-1"], "--flops -1: expected FLOP/s"),
        (["--gpus", "1", "--kind", "h100", "--measure"], "--kind h100: its rates come from its data sheet"),
        (["--gpus", "1", "--kind", "h100", "--plot", "plan.gif"], "expected a name that ends in .png or .svg"),
        (["--gpus", "1000000000", "--kind", "l4"], "--gpus 1000000000: expected 1 to 8,192"),
        (["--gpus", "1", "--kind", "h100", "--tweet-tokens", "nan"], "--tweet-tokens nan: expected 1 to"),
        (["--gpus", "1", "--kind", "h100", "--tweet-tokens", "inf"], "--tweet-tokens inf: expected 1 to"),
        (["--gpus", "1", "--kind", "cpu", "--flops", "inf"], "--flops inf: expected"),
        (["--gpus", "1", "--kind", "h100", "--vocab-size", "0"], "--vocab-size 0: expected 1 to"),
        (["--gpus", "1", "--kind", "h100", "model.hiden_size=1"], "did you mean model.hidden_size?"),
        (["--gpus", "1", "--kind", "h100", "training.micro_batch_tokens=50"], "less than the longest sample's"),
    ],
)
def test_bad_input_is_one_message(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert run(*words) == UsageError.exit_code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
