"""LAMB under ZeRO is LAMB: against a float64 reference without shards, on a tiny model with every kind of tensor.

Every stage, precision, world size and accumulation:  python -m pytest -m slow tests/optim/test_lamb.py -rP
"""

from __future__ import annotations

import pytest
import torch

from tests.make_encoded import make_encoded
from tests.optim import reference
from tests.optim.optimizer_runs import (
    RATIO_BOUND,
    WEIGHTS_BOUND,
    Fed,
    Place,
    Whole,
    against_fed_reference,
    model_holds_its_masters,
    own_run,
    play,
    resumed_runs,
    worst_resumed,
)
from tests.pretraining.training_runs import spawn
from twilbert.data.encoded.format import EncodedCorpus

STEPS = 8
EXACT = [
    Place("fp32", 0, 2, 1), Place("fp32", 1, 2, 1), Place("fp32", 2, 2, 4), Place("fp32", 3, 2, 1),
    Place("bf16", 1, 2, 4), Place("bf16", 2, 2, 1), Place("bf16", 3, 2, 1),
]  # fmt: skip
OWN = [Place("fp32", stage, 2, 1, pkm=False) for stage in (0, 1, 2, 3)]
NAIVE = [Place("fp32", stage, 2, 1, naive=True) for stage in (1, 3)]


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("encoded")
    return make_encoded(folder, rows_per_row_group=[60, 50], vocab_size=199, valid_rows=20).path


@pytest.fixture(scope="module")
def runs(encoded) -> dict[Place, Whole]:
    places = [*EXACT, *OWN, *NAIVE]
    by_rank = spawn(play, 2, encoded, places, STEPS)
    return {place: Whole([records[i] for records in by_rank], place.stage) for i, place in enumerate(places)}


@pytest.mark.parametrize("place", [*EXACT, *OWN], ids=str)
def test_weights_and_ratios_are_those_of_whole_tensors(runs, place):
    assert_exact(runs[place], place)


def assert_exact(run: Whole, place: Place) -> Fed:
    """The run is the reference's, which takes the gradients that the optimiser saw; how far it is from it."""
    fed = against_fed_reference(run, place)
    assert fed.clipped > 0, "clipping took part"
    assert len(fed.weights) == (40 if place.pkm else 25)
    assert fed.worst[1] <= WEIGHTS_BOUND, (place, fed.worst)
    assert fed.ratio <= RATIO_BOUND, place
    assert fed.moved <= RATIO_BOUND, "the norm of the update"
    assert run.reduces == [min(place.stage, 1)], "one all_reduce a step, none where nothing is sharded"
    assert model_holds_its_masters(run, place)
    return fed


def test_runs_go_where_the_reference_goes_by_itself(runs, encoded):
    """The reference computes its own gradients, of whole batches; without memory no tensor's is zero."""
    own = own_run(Place("fp32", 0, 1, 1, pkm=False), EncodedCorpus.open(encoded), STEPS)
    assert own.zero_gradient == []
    for place in OWN:
        errors = reference.relative_errors(runs[place].ended, own.weights)
        assert max(errors.values()) <= WEIGHTS_BOUND, (place, errors)


def test_the_only_tensor_without_a_true_gradient_is_the_bias_before_the_query_norm(encoded):
    own = own_run(Place("fp32", 0, 1, 1), EncodedCorpus.open(encoded), 2)
    assert own.zero_gradient == ["encoder.blocks.1.memory.query.bias"]


@pytest.mark.parametrize("place", NAIVE, ids=str)
def test_a_naive_ratio_fails_the_same_check_by_far(runs, place):
    """The negative control of the check."""
    assert against_fed_reference(runs[place], place).worst[1] > 100 * WEIGHTS_BOUND


def test_a_resumed_run_equals_an_undisturbed_one(encoded, tmp_path):
    """Every stage at some world size and both; with memory in bf16 the same place again."""
    grid = [Place("fp32", stage, world, 4 // world, pkm=False) for stage, world in [(0, 1), (1, 1), (2, 2), (3, 2)]]
    bf16 = Place("bf16", 1, 2, 2)
    pairs = [(place, place) for place in (*grid, bf16)]
    pairs += [(grid[0], grid[3]), (grid[1], grid[2]), (grid[2], grid[3]), (grid[3], grid[2])]
    worst_resumed(resumed_runs(encoded, str(tmp_path), (2, 5), [*grid, bf16], pairs), pairs)


# ---- every cut -----------------------------------------------------------------------------------------------------

MANY_STEPS, MIDDLE = 20, 10
KINDS = [("fp32", 0)] + [(precision, stage) for precision in ("fp32", "bf16") for stage in (1, 2, 3)]


def play_all(encoded: str, world: int, places: list[Place]) -> list[tuple[Place, Whole]]:
    """The runs of MANY_STEPS at `places`, all of this world size; some together, so that `spawn` does not give up."""
    runs = []
    for at in range(0, len(places), 11):
        some = places[at : at + 11]
        by_rank = spawn(play, world, encoded, some, MANY_STEPS)
        runs += [(place, Whole([records[i] for records in by_rank], place.stage)) for i, place in enumerate(some)]
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_lamb_is_exact_at_every_stage_and_precision(encoded, world, accumulation):
    """With own gradients only without a memory: where its scores tie to fp32's rounding, a run reads other values."""
    places = [Place(*kind, world, accumulation) for kind in KINDS]
    without = [Place("fp32", stage, world, accumulation, pkm=False) for stage in range(4)]
    own = own_run(without[0], EncodedCorpus.open(encoded), MANY_STEPS)
    weights = ratio = own_weights = 0.0
    for place, run in play_all(encoded, world, [*places, *without]):
        fed = assert_exact(run, place)
        weights, ratio = max(weights, fed.worst[1]), max(ratio, fed.ratio)
        if not place.pkm:
            errors = reference.relative_errors(run.ended, own.weights)
            own_weights = max(own_weights, *(error for name, error in errors.items() if name not in own.zero_gradient))
            assert own_weights <= WEIGHTS_BOUND, (place, errors)
    print(f"weights {weights:.1e}, with own gradients {own_weights:.1e}, trust ratios {ratio:.1e}")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_naive_ratios_fail_at_every_stage_by_far(encoded, world):
    places = [Place("fp32", stage, world, 1, naive=True) for stage in (1, 2, 3)]
    for place, run in play_all(encoded, world, places):
        name, error = against_fed_reference(run, place).worst
        print(f"ratio of each piece, ZeRO {place.stage}: off by {error:.1e} at {name}")
        assert error > 100 * WEIGHTS_BOUND


@pytest.mark.slow
def test_a_run_resumes_at_every_stage_and_world_what_any_other_saved(encoded, tmp_path):
    """Without memory every pair of places; with memory, in both precisions, each place by itself."""
    grid = [Place("fp32", stage, world, 4 // world, pkm=False) for world in (1, 2) for stage in range(4)]
    alone = [Place(*kind, world, 4 // world) for world in (1, 2) for kind in KINDS]
    pairs = [(source, place) for source in grid for place in grid] + [(place, place) for place in alone]
    worst = worst_resumed(resumed_runs(encoded, str(tmp_path), (MIDDLE, MANY_STEPS), [*grid, *alone], pairs), pairs)
    print(f"{len(pairs)} resumed runs, {len(grid + alone)} bitwise, the others within {worst:.1e}")


# ---- the reference -------------------------------------------------------------------------------------------------


def test_the_reference_takes_the_papers_first_step():
    """By hand: m̂ = g, v̂ = g², so r = g/(|g| + ε) = ±1; ‖x‖ = 5, u = r + λx."""
    lamb = reference.ReferenceLamb(
        {"w": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([2.0])}, beta1=0.9, beta2=0.999, epsilon=0, weight_decay=0.1
    )
    ratios = lamb.step({"w": torch.tensor([[0.5, -0.25]]), "b": torch.tensor([-7.0])}, 0.01)
    assert ratios == {"w": pytest.approx(5 / (1.3**2 + 0.6**2) ** 0.5), "b": 1.0}
    expected = torch.tensor([[3 - 0.01 * ratios["w"] * 1.3, 4 + 0.01 * ratios["w"] * 0.6]], dtype=torch.float64)
    torch.testing.assert_close(lamb.weights["w"], expected)
    assert float(lamb.weights["b"]) == pytest.approx(2.01)
