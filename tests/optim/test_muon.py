"""Muon under ZeRO is Muon: against a float64 reference without shards, on a tiny model with every kind of tensor.

Every stage, precision, world size and accumulation:  python -m pytest -m slow tests/optim/test_muon.py -rP
"""

from __future__ import annotations

import pytest
import torch

from tests.make_encoded import make_encoded
from tests.optim.muon_reference import newton_schulz
from tests.optim.optimizer_runs import (
    WEIGHTS_BOUND,
    Place,
    Whole,
    against_fed_reference,
    model_holds_its_masters,
    play,
    resumed_runs,
    worst_resumed,
)
from tests.pretraining.training_runs import spawn
from twilbert.errors import UsageError
from twilbert.optim.muon import orthogonalise
from twilbert.recipe import loading
from twilbert.recipe.pretraining import run_identity

STEPS = 8
BOUNDS = {"fp32": WEIGHTS_BOUND, "bf16": 2e-2}
"""Of a weight tensor's relative error, by the type in which Newton–Schulz runs."""


def muon(precision: str, stage: int, world: int, accumulation: int, *, pkm: bool = True, naive: bool = False) -> Place:
    return Place(precision, stage, world, accumulation, pkm, naive, "muon")


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("encoded")
    return make_encoded(folder, rows_per_row_group=[60, 50], vocab_size=199, valid_rows=20).path


def runs_of(encoded: str, world: int, places: list[Place], steps: int) -> list[tuple[Place, Whole]]:
    by_rank = spawn(play, world, encoded, places, steps)
    return [(place, Whole([records[i] for records in by_rank], place.stage)) for i, place in enumerate(places)]


def assert_exact(run: Whole, place: Place) -> float:
    fed = against_fed_reference(run, place)
    assert fed.worst[1] <= BOUNDS[place.precision], (place, fed.worst)
    assert fed.moved <= BOUNDS[place.precision], "the norm of the update"
    assert model_holds_its_masters(run, place)
    return fed.worst[1]


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8)])
def test_singular_values_go_near_one_and_singular_vectors_stay(shape):
    matrices = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = orthogonalise(matrices)
    for matrix, update in zip(matrices, got, strict=True):
        torch.testing.assert_close(update, newton_schulz(matrix), rtol=1e-9, atol=1e-12)
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.T @ update @ vh.T
        torch.testing.assert_close(inner, torch.diag(inner.diag()), rtol=0, atol=1e-9)
        large = s > 0.05 * s.max()  # smaller ones need more than five iterations
        assert ((inner.diag() > 0.6) & (inner.diag() < 1.25))[large].all()
    assert not orthogonalise(torch.zeros(1, *shape)).any()


def test_weights_are_those_of_whole_matrices_and_a_naive_muon_is_far_from_them(encoded):
    exact = [muon("fp32", 0, 2, 1), muon("fp32", 1, 2, 4), muon("fp32", 2, 2, 1), muon("fp32", 3, 2, 1)]
    naive = muon("fp32", 1, 2, 1, naive=True)
    for place, run in runs_of(encoded, 2, [*exact, muon("bf16", 2, 2, 1), muon("bf16", 3, 2, 1), naive], STEPS):
        if place.naive:
            assert against_fed_reference(run, place).worst[1] > 100 * WEIGHTS_BOUND
        else:
            assert_exact(run, place)


def test_muon_needs_a_learning_rate_and_its_settings_count_for_muon_alone():
    with pytest.raises(UsageError, match=r"training\.learning_rate: muon needs its own"):
        loading.build({"training": {"optimizer": "muon"}})
    settings = {"training": {"learning_rate": 0.01, "muon_momentum": 0.9}}
    assert "training.muon_momentum" not in run_identity(loading.build(settings), {})
    settings["training"]["optimizer"] = "muon"
    assert run_identity(loading.build(settings), {})["training.muon_momentum"] == 0.9


# ---- every cut -----------------------------------------------------------------------------------------------------

KINDS = [("fp32", 0)] + [(precision, stage) for precision in ("fp32", "bf16") for stage in (1, 2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_muon_is_exact_at_every_stage_and_precision(encoded, world, accumulation):
    places, worst = [muon(*kind, world, accumulation) for kind in KINDS], {"fp32": 0.0, "bf16": 0.0}
    for place, run in runs_of(encoded, world, places, 20):
        worst[place.precision] = max(worst[place.precision], assert_exact(run, place))
    print(f"weights {worst}")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_a_naive_muon_fails_at_every_stage_by_far(encoded, world):
    places = [muon("fp32", stage, world, 1, naive=True) for stage in (1, 2, 3)]
    for place, run in runs_of(encoded, world, places, 20):
        name, error = against_fed_reference(run, place).worst
        print(f"orthogonalised a piece at a time, ZeRO {place.stage}: off by {error:.1e} at {name}")
        assert error > 100 * WEIGHTS_BOUND


@pytest.mark.slow
def test_a_run_resumes_at_every_stage_and_world_what_any_other_saved(encoded, tmp_path):
    """The same place again bitwise, in both precisions; another within the bound."""
    grid = [muon("fp32", stage, world, 4 // world, pkm=False) for world in (1, 2) for stage in range(4)]
    alone = [muon("bf16", stage, 2, 2) for stage in (1, 2, 3)]
    pairs = [(source, place) for source in grid for place in grid] + [(place, place) for place in alone]
    worst = worst_resumed(resumed_runs(encoded, str(tmp_path), (10, 20), [*grid, *alone], pairs), pairs)
    print(f"{len(pairs)} resumed runs, {len(grid + alone)} bitwise, the others within {worst:.1e}")
