"""The stream's promise under stops, resumes and resizes, without lanes and with them: exactly once, the same steps."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from tests.make_encoded import make_encoded
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream import rows as rows_of
from twilbert.data.stream.masking import MaskingSettings
from twilbert.data.stream.micro_batch import MicroBatch
from twilbert.data.stream.order import StreamPlan, epoch_windows, items, samples_of_row_groups, windows_from
from twilbert.data.stream.ray_stream import ray_micro_batches
from twilbert.data.stream.stream import accumulation_for, micro_batches
from twilbert.errors import UsageError

SIZE = 24  # samples a step
Seen = tuple[int, bytes, int, bytes, bytes]  # a sample's id, ids, ROP label, masked positions and labels


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> EncodedCorpus:
    """322 rows in 9 uneven row groups of 2 files, a tenth of them single tweets: about 612 samples."""
    groups = (50, 50, 50, 9, 31, 50, 1, 50, 31)
    return make_encoded(tmp_path_factory.mktemp("encoded"), rows_per_row_group=groups)


def make_plan(encoded: EncodedCorpus, world_size: int = 1, lanes: int = 1, **options) -> StreamPlan:
    settings = {"seed": 11, "global_batch_size": SIZE, "accumulation": 2, "window_row_groups": 2, **options}
    return StreamPlan(encoded, world_size=world_size, lanes=lanes, **settings)


def steps_to(plan: StreamPlan, epochs: int) -> int:
    """The first steps that hold so many epochs, the last of them maybe more."""
    return -(-epochs * plan.counts.samples // plan.global_batch_size)


def seen_in(batch: MicroBatch) -> Iterator[Seen]:
    width = batch.input_ids.shape[1]
    for i, (sample, length) in enumerate(zip(batch.sample_ids.tolist(), batch.lengths.tolist(), strict=True)):
        here = batch.masked_index // width == i
        positions, labels = batch.masked_index[here] % width, batch.masked_labels[here]
        rop = int(batch.rop_labels[i])
        yield sample, batch.input_ids[i, :length].tobytes(), rop, positions.tobytes(), labels.tobytes()


def contents(plan: StreamPlan, start: int, stop: int) -> dict[int, list[Seen]]:
    """What the model sees at each step, whatever workers and micro-batches it comes in."""
    steps: dict[int, list[Seen]] = {step: [] for step in range(start, stop)}
    for rank in range(plan.world_size):
        for batch in micro_batches(plan, rank, start, stop):
            steps[batch.step] += seen_in(batch)
    return {step: sorted(samples) for step, samples in steps.items()}


def assert_exactly_once_an_epoch(plan: StreamPlan, steps: dict[int, list[Seen]], epochs: int) -> None:
    """Every id comes once in the steps of each epoch; the remainder of the last step opens one more."""
    size, counts, lanes = plan.global_batch_size, plan.counts, plan.lanes
    assert all(len(samples) == size for samples in steps.values())
    came: dict[int, list[int]] = {}
    for step, samples in sorted(steps.items()):
        for sample, *_ in samples:
            came.setdefault(sample, []).append(step)
    paired = rows_of.read_rows(plan.encoded, counts, range(len(counts.row_groups))).reply_len > 0
    assert set(came) == {2 * row + d for row, pair in enumerate(paired) for d in range(2 if pair else 1)}
    assert len(came) == counts.samples
    surplus = len(steps) * size - epochs * counts.samples
    assert Counter(map(len, came.values())) == Counter({epochs: counts.samples - surplus, epochs + 1: surplus})
    slack = lanes if lanes > 1 else 0  # lanes are at most a sample apart
    for at in came.values():
        for epoch, step in enumerate(at):
            assert step * size < (epoch + 1) * counts.samples + slack
            assert (step + 1) * size > epoch * counts.samples - slack


@pytest.mark.parametrize("masking", ["span", "token"])
@pytest.mark.parametrize("lanes", [1, 4, 12])
@pytest.mark.parametrize("chance", range(3))  # the seed of the faults: in the test's id
def test_stopped_resumed_and_resized_at_random_every_step_is_the_undisturbed_runs(encoded, lanes, masking, chance):
    """Three epochs. Each attempt at some world size streams ahead to a random step, and counts up to an earlier one."""
    plan = make_plan(encoded, lanes=lanes, masking=MaskingSettings(masking))
    last = steps_to(plan, 3)
    assert 3 * plan.counts.samples % SIZE
    undisturbed = contents(plan, 0, last)
    assert_exactly_once_an_epoch(plan, undisturbed, 3)
    worlds = [w for w in (1, 2, 3, 4) if lanes == 1 or lanes % w == 0]
    rng = np.random.default_rng(chance)
    done: dict[int, list[Seen]] = {}
    used = Counter()
    while len(done) < last:
        saved = len(done)
        ahead = min(last, saved + int(rng.integers(1, 16)))
        world = worlds[len(used) % len(worlds)] if len(used) < len(worlds) else int(rng.choice(worlds))
        used[world, saved] += 1
        elastic = dataclasses.replace(plan, world_size=world, accumulation=int(rng.integers(1, 4)))
        attempt = contents(elastic, saved, ahead)
        kept = range(saved, ahead if ahead == last else int(rng.integers(saved, ahead + 1)))
        done |= {step: attempt[step] for step in kept}  # the rest is lost with the workers
    assert {world for world, _ in used} == set(worlds) and len(used) > 8, f"seed {chance}: {used}"
    assert done == undisturbed, f"seed {chance}: attempts (world, first step) {list(used)}"


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("lanes", [1, 12])
def test_three_epochs_at_any_world_size_hold_every_sample_once_an_epoch(encoded, world_size, lanes):
    plan = make_plan(encoded, world_size, lanes)
    steps = contents(plan, 0, steps_to(plan, 3))
    assert_exactly_once_an_epoch(plan, steps, 3)
    assert steps == contents(make_plan(encoded, 1, lanes), 0, steps_to(plan, 3))


# --- lanes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 12, 40])
def test_shares_of_the_lanes_make_each_epoch_and_never_drift_apart(encoded, lanes):
    """40 lanes are more than there are row groups: a row group is divided among several."""
    plan = make_plan(encoded, lanes=lanes, global_batch_size=lanes)
    counts, total = samples_of_row_groups(plan.counts), plan.counts.samples
    ends = [0] * lanes
    for epoch in range(7):
        taken: list[tuple[int, int]] = []
        for lane in range(lanes):
            windows = epoch_windows(plan, epoch, lane)
            assert windows[0].start == ends[lane]
            ends[lane] = windows[-1].stop
            for window in windows:
                samples = [(group, n) for group in window.row_groups for n in range(counts[group])]
                taken += samples[window.skip : window.skip + window.stop - window.start]
                assert (
                    window
                    == next(windows_from(plan, window.start, lane))
                    == next(windows_from(plan, window.stop - 1, lane))
                )
        assert sorted(taken) == [(group, n) for group in range(len(counts)) for n in range(counts[group])]
        assert sum(ends) == (epoch + 1) * total and max(ends) - min(ends) <= 1


def test_fewer_samples_than_lanes_still_come_exactly_once_an_epoch(tmp_path):
    encoded = make_encoded(tmp_path, [3], n_shards=1, single_share=0.0)
    plan = make_plan(encoded, 2, lanes=8, global_batch_size=8)
    steps = contents(plan, 0, steps_to(plan, 9))
    assert_exactly_once_an_epoch(plan, steps, 9)
    assert steps == contents(dataclasses.replace(plan, world_size=8), 0, len(steps))


def test_a_worker_reads_the_row_groups_of_its_own_lanes_alone(encoded, monkeypatch):
    read: list[int] = []
    original = rows_of._read_one
    monkeypatch.setattr(rows_of, "_read_one", lambda *args: (read.append(args[2]), original(*args))[1])
    plan = make_plan(encoded, 4, lanes=4)
    epoch = plan.counts.samples // SIZE
    by_rank = []
    for rank in range(4):
        read.clear()
        list(micro_batches(plan, rank, 0, epoch))
        assert set(read) <= {n for window in epoch_windows(plan, 0, rank) for n in window.row_groups}
        by_rank.append(set(read))
    assert set.union(*by_rank) == set(range(9))
    assert sum(map(len, by_rank)) <= 9 + 3  # neighbours share the row group in which one's share ends


@pytest.mark.parametrize("start", [1, 13, 26, 52])
def test_with_lanes_a_resumed_worker_gets_the_same_micro_batches(encoded, start):
    plan = make_plan(encoded, 2, lanes=4)
    whole = [b for b in micro_batches(plan, 1, 0, 60) if b.step >= start]
    resumed = list(micro_batches(plan, 1, start, 60))
    assert [(b.step, b.accumulation, b.epoch, b.n_samples) for b in whole] == [
        (b.step, b.accumulation, b.epoch, b.n_samples) for b in resumed
    ]
    assert all(list(seen_in(a)) == list(seen_in(b)) for a, b in zip(whole, resumed, strict=True))


def test_with_lanes_counts_of_the_step_are_known_to_a_worker_that_reads_all_and_to_no_other(encoded):
    alone = list(micro_batches(make_plan(encoded, 1, lanes=4), 0, 0, 5))
    for step in range(5):
        here = [batch for batch in alone if batch.step == step]
        assert {b.n_masked for b in here} == {sum(len(b.masked_index) for b in here)}
        assert {b.n_rop for b in here} == {sum(int((b.rop_labels >= 0).sum()) for b in here)}
    for rank in range(2):
        for batch in micro_batches(make_plan(encoded, 2, lanes=4), rank, 0, 5):
            assert batch.n_masked is None and batch.n_rop is None and batch.n_samples == SIZE


def test_with_lanes_workers_hold_equally_many_samples_a_step(encoded):
    plan = make_plan(encoded, 4, lanes=12)
    for rank in range(4):
        sizes = Counter()
        for batch in micro_batches(plan, rank, 0, 40):
            sizes[batch.step] += len(batch.lengths)
        assert set(sizes.values()) == {SIZE // 4}


def test_accumulation_with_lanes_is_the_least_whose_mean_micro_batch_fits(encoded):
    for world_size in (1, 2, 4):
        accumulation = accumulation_for(encoded, "train", 96, world_size, 200, lanes=4)
        means = []
        for candidate in (accumulation, accumulation - 1):
            plan = make_plan(encoded, world_size, 4, accumulation=candidate, global_batch_size=96)
            batches = [b for rank in range(world_size) for b in micro_batches(plan, rank, 0, 12)]
            means.append(np.mean([batch.padded_tokens for batch in batches]))
        assert means[0] < 1.06 * 200 and means[1] > 0.94 * 200


def test_lanes_that_do_not_fit_batch_or_workers_are_refused(encoded):
    with pytest.raises(UsageError, match="global_batch_size 24: does not divide by 5 lanes"):
        make_plan(encoded, lanes=5)
    with pytest.raises(UsageError, match="3 workers do not divide 4 lanes"):
        make_plan(encoded, 3, lanes=4)
    with pytest.raises(UsageError, match="lanes 0"):
        make_plan(encoded, lanes=0)


@pytest.mark.ray
def test_ray_data_gives_the_same_micro_batches_with_lanes(ray_local, encoded, monkeypatch):
    monkeypatch.setattr("twilbert.data.stream.order._ITEM_SAMPLES", 100)
    plan = make_plan(encoded, 2, lanes=4)
    assert len(list(items(plan, 1, 3, 90))) > 3
    plain, streamed = list(micro_batches(plan, 1, 3, 90)), list(ray_micro_batches(plan, 1, 3, 90))
    assert [(b.step, b.accumulation, list(seen_in(b))) for b in plain] == [
        (b.step, b.accumulation, list(seen_in(b))) for b in streamed
    ]
    assert all(batch.n_rop is None and batch.n_masked is None for batch in streamed)
