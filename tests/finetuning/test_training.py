"""Batches, updates and schedules of fine-tuning, each by its own arithmetic."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.make_finetuning import make_base, quick_recipe, write_marked_task
from tests.make_models import CONFIG
from twilbert.data.batches import Sequences
from twilbert.errors import TwilbertError, UsageError
from twilbert.finetuning import train as loop
from twilbert.finetuning.data import Split, epoch_batches, inputs, padded_batch
from twilbert.finetuning.encoders import TwilbertBase, load_base
from twilbert.finetuning.optimization import Weights, is_trained
from twilbert.finetuning.run import Prepared, prepare
from twilbert.model.classifier import ClassificationModel, HeadConfig
from twilbert.recipe import finetuning


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("world")
    return prepare(quick_recipe(write_marked_task(folder), make_base(folder)))


def recipe(*overrides: str) -> finetuning.FinetuneRecipe:
    return quick_recipe("task", "model", *overrides)


def train(prepared: Prepared, *overrides: str, seed: int = 0) -> loop.Outcome:
    return loop.train(prepared.base, prepared.data, prepared.task, recipe(*overrides), seed, lambda _: None)


def test_an_epoch_has_every_sample_once_and_little_padding():
    lengths = np.random.default_rng(0).integers(5, 60, 1003)
    batches = epoch_batches(lengths, 16, seed=1, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1003)) and len(batches) == 63
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert padded < 1.08 * lengths.sum()
    assert all(np.array_equal(a, b) for a, b in zip(batches, epoch_batches(lengths, 16, 1, 0), strict=True))
    for other in (epoch_batches(lengths, 16, 1, 1), epoch_batches(lengths, 16, 2, 0)):
        assert not all(np.array_equal(a, b) for a, b in zip(batches, other, strict=True))
    firsts = [lengths[rows].max() for rows in batches]
    assert abs(np.corrcoef(firsts, np.arange(len(firsts)))[0, 1]) < 0.4  # not from short to long


def test_the_same_seed_trains_the_same_model_and_another_another(prepared):
    quick = ("training.epochs=1", "head.dropout=0.3")
    one, same, other = train(prepared, *quick), train(prepared, *quick), train(prepared, *quick, seed=1)
    assert all(torch.equal(one.state[name], same.state[name]) for name in one.state)
    assert not torch.equal(one.state["classifier.weight"], other.state["classifier.weight"])


def test_accumulated_batches_of_different_sizes_count_by_their_samples(prepared, monkeypatch):
    """48 rows as 32 + 16: the update is that of one batch of 48, each sample alike."""
    taken = {}

    def gradients(batch_size: int, accumulation: int) -> dict[str, torch.Tensor]:
        def step(self, rate):
            taken[batch_size] = {name: master.grad.clone() for name, master in self._masters.items()}
            return real(self, rate)

        monkeypatch.setattr(Weights, "step", step)
        train(few, f"training.batch_size={batch_size}", f"training.accumulation={accumulation}", "training.epochs=1")
        return taken[batch_size]

    real, data = Weights.step, prepared.data
    ends = data.train.sequences.offsets
    part = Sequences(
        data.train.sequences.ids[: ends[48]],
        ends[:49],
        data.train.sequences.seconds[:48],
        data.train.sequences.blank[:48],
    )
    few = dataclasses.replace(prepared, data=dataclasses.replace(data, train=Split(part, data.train.labels[:48])))
    whole, parts = gradients(48, 1), gradients(32, 2)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "lamb"])
def test_layers_learn_at_their_share_of_the_rate(prepared, optimizer):
    settings = recipe(
        f"training.optimizer={optimizer}", "encoder.layer_decay=0.5", "training.weight_decay=0",
        "training.max_grad_norm=0", "training.epsilon=1e-30",
    )  # fmt: skip
    network = loop.new_network(prepared.base, settings, prepared.task, 0)
    weights = Weights(network, prepared.base, settings, bf16=False)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    assert weights.step(0.01)
    share = {"classifier": 1.0, "encoder.blocks.1": 0.5, "encoder.blocks.0": 0.25, "encoder.embeddings": 0.125}
    for name, p in network.named_parameters():
        (scale,) = (value for start, value in share.items() if name.startswith(start))
        change = before[name] - p.detach()
        # The first update of Adam is the rate itself; LAMB's is the rate of the tensor's own norm.
        if optimizer == "lamb" and p.dim() > 1:
            parts = 3 if name.endswith("qkv.weight") else 1
            norms = [part.norm() for part in before[name].chunk(parts)]
            wanted = torch.cat([torch.full_like(part, 0.01 * scale * norm / math.sqrt(part.numel()))
                                for part, norm in zip(change.chunk(parts), norms, strict=True)])  # fmt: skip
        else:
            wanted = torch.full_like(change, 0.01 * scale)
        torch.testing.assert_close(change, wanted, rtol=2e-2, atol=1e-6)


def test_adamw_is_the_papers_with_decay_of_matrices_alone(prepared):
    """Loshchilov & Hutter 2019, Algorithm 2, in float64."""
    rate, decay = 1e-2, 0.1
    network = loop.new_network(prepared.base, recipe(), prepared.task, 0)
    settings = recipe("training.optimizer=adamw", f"training.weight_decay={decay}", "training.max_grad_norm=1e9")
    weights, training = Weights(network, prepared.base, settings, bf16=False), settings.training
    parameters = dict(network.named_parameters())
    expected = {name: p.detach().double() for name, p in parameters.items()}
    first, second = ({name: torch.zeros_like(w) for name, w in expected.items()} for _ in range(2))
    torch.manual_seed(0)
    for update in range(1, 4):
        for name, parameter in parameters.items():
            parameter.grad = torch.randn_like(parameter)
            gradient = parameter.grad.double()
            first[name].lerp_(gradient, 1 - training.beta1)
            second[name].lerp_(gradient.square(), 1 - training.beta2)
            m, v = first[name] / (1 - training.beta1**update), second[name] / (1 - training.beta2**update)
            decayed = decay * expected[name] if parameter.dim() > 1 else 0.0
            expected[name] = expected[name] - rate * (m / (v.sqrt() + training.epsilon) + decayed)
        assert weights.step(rate)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_block_that_layers_share_learns_as_the_last_of_them(prepared):
    shared = dataclasses.replace(CONFIG, n_encoders=4, cross_sharing=True)
    base = TwilbertBase("shared", shared, {}, prepared.base.tokenizer, prepared.base.cleaning)
    assert base.layer_of("encoder.blocks.0.attention.out.weight") == 3
    assert base.layer_of("encoder.embeddings.token.weight") == -1 and base.layer_of("classifier.bias") == 4


@pytest.mark.parametrize(("layers", "learn"), [("all", {0, 1, -1}), ("none", set()), ("[1]", {1})])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_the_layers_named_change(prepared, layers, learn, precision):
    settings = (f"encoder.trainable_layers={layers}", f"training.precision={precision}", "training.epochs=1")
    state = train(prepared, *settings).state
    start = loop.new_network(prepared.base, recipe(*settings), prepared.task, 0).state_dict()
    assert state.keys() == start.keys() and all(tensor.dtype == torch.float32 for tensor in state.values())
    for name, tensor in state.items():
        layer = prepared.base.layer_of(name)
        expected = layer in learn or layer == 2
        assert is_trained(prepared.base, name, recipe(*settings)) == expected
        assert torch.equal(tensor, start[name]) != expected, name


def test_bf16_keeps_masters_that_small_updates_move(prepared):
    outcome = train(prepared, "training.precision=bf16")
    assert outcome.best.score > 0.9
    assert any(not torch.equal(t, t.bfloat16().float()) for t in outcome.state.values())


def test_updates_without_a_finite_gradient_are_skipped_and_many_of_them_stop(prepared, monkeypatch):
    real, batches = loop.build_loss, []

    def sometimes(*args):
        loss = real(*args)

        def spoiled(logits, targets):
            batches.append(len(targets))
            bad = len(batches) == 3 or always
            return loss(logits, targets) * (math.nan if bad and len(targets) <= 16 else 1)

        return spoiled

    monkeypatch.setattr(loop, "build_loss", sometimes)
    always = False
    outcome = train(prepared, "training.epochs=3")
    assert outcome.history[-1].skipped == 1 and all(t.isfinite().all() for t in outcome.state.values())
    always = True
    with pytest.raises(TwilbertError, match=r"10 updates in a row .* lower training.learning_rate"):
        train(prepared)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd", "noam", "constant"])
def test_every_schedule_warms_up_to_its_peak(schedule):
    settings = recipe(f"training.schedule={schedule}", "training.warmup=0.2", "training.learning_rate=0.5").training
    rates = [loop.learning_rate(settings, update, 100, 64) for update in range(1, 101)]
    assert rates[:20] == pytest.approx([0.5 * k / 20 for k in range(1, 21)]) and max(rates) == pytest.approx(0.5)
    ends = {"linear": 0.5 / 81, "noam": 0.5 * math.sqrt(0.2), "constant": 0.5, "wsd": 0.5 / 11}
    assert rates[-1] == pytest.approx(ends.get(schedule, rates[-1])) and (schedule == "constant" or rates[-1] < 0.3)


def test_noam_without_a_rate_is_the_originals():
    settings = recipe("training.schedule=noam", "training.learning_rate=null", "training.optimizer=adam").training
    assert loop.learning_rate(settings, 10, 100, 64) == pytest.approx((64 * 10) ** -0.5)
    with pytest.raises(UsageError, match="learning_rate: adam under a linear schedule needs"):
        recipe("training.learning_rate=null", "training.optimizer=adam")


def test_losses_that_approximate_metrics_and_class_weights_learn(prepared):
    for loss in ("macro_f1", "f1_per_class", "micro_recall"):
        weights = "auto" if loss == "f1_per_class" else "null"
        assert train(prepared, f"loss.name={loss}", f"loss.class_weights={weights}").best.score > 0.85, loss


def test_an_evaluation_depends_on_no_batch(prepared):
    network = loop.new_network(prepared.base, recipe(), prepared.task, 0)
    split = prepared.data.dev
    scores, _ = loop.evaluate(network, None, split, prepared.task.problem, torch.device("cpu"))
    for row in (0, 7, 31):
        ids, segments, lengths = inputs(padded_batch(split.sequences, np.array([row])), torch.device("cpu"))
        with torch.no_grad():
            alone = network(ids, segments, lengths).softmax(-1)[0]
        assert scores[row] == pytest.approx(alone.numpy(), abs=1e-5)


def test_more_evaluations_than_epochs(prepared):
    history = train(prepared, "training.epochs=2", "training.evals_per_epoch=3", "training.patience=null").history
    assert [one.step for one in history] == [4, 8, 12, 16, 20, 24]
    assert [round(one.epoch, 3) for one in history] == [0.333, 0.667, 1.0, 1.333, 1.667, 2.0]


def test_patience_that_runs_out_at_the_end_stopped_nothing_early(prepared):
    still = ("encoder.trainable_layers=none", "training.learning_rate=1e-12", "training.patience=2")
    for epochs, early in ((3, False), (4, True)):
        outcome = train(prepared, *still, f"training.epochs={epochs}")
        assert len(outcome.history) == 3 and outcome.best is outcome.history[0] and outcome.stopped_early == early


def test_a_fine_tuned_models_encoder_is_trained_on(prepared, tmp_path, capsys):
    outcome = train(prepared, "training.epochs=1")
    network = ClassificationModel(CONFIG, HeadConfig(("N", "P")))
    network.load_state_dict(outcome.state)
    prepared.base.save(
        str(tmp_path / "model"), network, {"remove_rt": True, "max_len": 12, "cleaning": "twilbert-1"}, {}
    )
    base = load_base(str(tmp_path / "model"), "runs")
    assert "its encoder is trained on" in capsys.readouterr().err
    assert np.array_equal(base.weights["embeddings.token.weight"], outcome.state["encoder.embeddings.token.weight"])


def test_progress_is_reported_after_each_batch_of_train_and_dev(prepared, monkeypatch):
    reports: list[tuple[int, int, str]] = []
    monkeypatch.setitem(loop._EVALUATION_TOKENS, "cpu", 64)
    settings = recipe("training.epochs=2", "training.batch_size=48", "training.accumulation=2")

    def report(*now: Any) -> None:
        reports.append(now)

    loop.train(prepared.base, prepared.data, prepared.task, settings, 0, lambda _: None, report=report)
    rows, batches = len(prepared.data.dev), -(-len(prepared.data.train) // 48)
    train_reports = [now for now in reports if "epoch" in now[2]]
    assert train_reports == [(i + 1, 2 * batches, f"epoch {i // batches + 1}/2") for i in range(2 * batches)]
    dev = [now for now in reports if "dev" in now[2]]
    assert len(dev) > 4 and {now[0] for now in dev} == {batches, 2 * batches}
    assert dev[-1] == (2 * batches, 2 * batches, f"dev {rows}/{rows} rows") and dev[0][2] != dev[-1][2]
