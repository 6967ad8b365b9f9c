"""Every sample comes exactly once an epoch, under stops, resumes and resizes, with and without reader groups."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from tests.data.stream.plans import SIZE, Sample, all_workers, contents, make_plan, same
from tests.make_encoded import make_encoded
from twilbert.data.stream import rows as rows_of
from twilbert.data.stream.masking import MaskingSettings
from twilbert.data.stream.order import StreamPlan, epoch_windows, items, samples_of_row_groups, windows_from
from twilbert.data.stream.ray_stream import ray_micro_batches
from twilbert.data.stream.stream import accumulation_for, micro_batches
from twilbert.errors import UsageError


def steps_to(plan: StreamPlan, epochs: int) -> int:
    """The first steps that hold so many epochs; the last may hold more."""
    return -(-epochs * plan.counts.samples // plan.global_batch_size)


def assert_exactly_once_an_epoch(plan: StreamPlan, steps: dict[int, list[Sample]], epochs: int) -> None:
    """Every id comes once in the steps of each epoch; the remainder of the last step opens one more."""
    size, counts, groups = plan.global_batch_size, plan.counts, plan.reader_groups
    assert all(len(samples) == size for samples in steps.values())
    steps_of: dict[int, list[int]] = {}
    for step, samples in sorted(steps.items()):
        for sample in samples:
            steps_of.setdefault(sample.id, []).append(step)
    paired = rows_of.read_rows(plan.encoded, counts, range(len(counts.row_groups))).reply_len > 0
    assert set(steps_of) == {2 * row + d for row, pair in enumerate(paired) for d in range(2 if pair else 1)}
    assert len(steps_of) == counts.samples
    surplus = len(steps) * size - epochs * counts.samples
    assert Counter(map(len, steps_of.values())) == Counter({epochs: counts.samples - surplus, epochs + 1: surplus})
    slack = groups if groups > 1 else 0  # reader groups are at most a sample apart
    for at in steps_of.values():
        for epoch, step in enumerate(at):
            assert step * size < (epoch + 1) * counts.samples + slack
            assert (step + 1) * size > epoch * counts.samples - slack


@pytest.mark.parametrize("masking", ["span", "token"])
@pytest.mark.parametrize("groups", [1, 4, 12])
@pytest.mark.parametrize("seed", range(2))
def test_stopped_resumed_and_resized_at_random_every_step_equals_the_undisturbed_runs(encoded, groups, masking, seed):
    """Three epochs. Each attempt at some world size streams ahead to a random step and is saved at an earlier one."""
    plan = make_plan(encoded, reader_groups=groups, masking=MaskingSettings(masking))
    last = steps_to(plan, 3)
    assert 3 * plan.counts.samples % SIZE
    undisturbed = contents(plan, 0, last)
    assert_exactly_once_an_epoch(plan, undisturbed, 3)
    worlds = [w for w in (1, 2, 3, 4) if groups == 1 or groups % w == 0]
    rng = np.random.default_rng(seed)
    done: dict[int, list[Sample]] = {}
    used = Counter()
    while len(done) < last:
        saved = len(done)
        ahead = min(last, saved + int(rng.integers(1, 16)))
        world = worlds[len(used) % len(worlds)] if len(used) < len(worlds) else int(rng.choice(worlds))
        used[world, saved] += 1
        elastic = dataclasses.replace(plan, world_size=world, accumulation=int(rng.integers(1, 4)))
        attempt = contents(elastic, saved, ahead)
        until = ahead if ahead == last else int(rng.integers(saved, ahead + 1))  # the rest is lost with the workers
        done |= {step: attempt[step] for step in range(saved, until)}
    assert {world for world, _ in used} == set(worlds) and len(used) > 8, used
    assert done == undisturbed, f"attempts (world, first step) {list(used)}"


def test_a_step_larger_than_the_corpus_masks_a_sample_by_the_keys_of_its_epochs(tmp_path):
    encoded = make_encoded(tmp_path, [5], n_shards=1, single_share=0.0, lengths=(15, 20))
    plan = make_plan(encoded, global_batch_size=40, accumulation=1)
    masks: dict[int, list] = {}
    for sample in contents(plan, 0, 1)[0]:
        masks.setdefault(sample.id, []).append(tuple(position for position, _ in sample.masked))
    assert len(masks) == 10 and all(len(m) == 4 and len(set(m)) >= 3 for m in masks.values())
    assert [b.epoch for b in micro_batches(plan, 0, 0, 2)] == [0, 4]


def test_epochs_are_different_orders_in_which_the_two_orders_of_a_pair_lie_apart(encoded):
    n = encoded.split("train").samples
    plan = make_plan(encoded, accumulation=1, global_batch_size=1)
    stream = [int(batch.sample_ids[0]) for batch in micro_batches(plan, 0, 0, 3 * n)]
    epochs = [stream[i * n : (i + 1) * n] for i in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == n for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert sum(a // 2 == b // 2 for a, b in pairwise(stream)) < 0.05 * len(stream)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("start", [1, 8, 9, 26, 52])
def test_a_resumed_worker_gets_the_same_micro_batches(encoded, start, groups):
    plan = make_plan(encoded, 2, reader_groups=groups)
    whole = [batch for batch in micro_batches(plan, 1, 0, 60) if batch.step >= start]
    resumed = list(micro_batches(plan, 1, start, 60))
    assert len(whole) == len(resumed) == 2 * (60 - start)
    assert all(same(a, b) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("groups", [1, 4])
def test_accumulation_is_the_least_whose_mean_micro_batch_fits(encoded, groups):
    for world_size in (1, 2, 4):
        accumulation = accumulation_for(encoded, "train", 96, world_size, 200, groups)
        means = []
        for candidate in (accumulation, accumulation - 1):
            plan = make_plan(encoded, world_size, candidate, reader_groups=groups, global_batch_size=96)
            means.append(np.mean([batch.padded_tokens for batch in all_workers(plan, 0, 12)]))
        assert means[0] < 1.06 * 200 and means[1] > 0.94 * 200
    assert accumulation_for(encoded, "train", 64, 1, 10**6, groups) == 1


def test_a_micro_batch_smaller_than_a_sample_is_refused_with_the_remedy(encoded):
    with pytest.raises(UsageError, match=r"micro_batch_tokens 8.*raise it"):
        accumulation_for(encoded, "train", 64, 1, 8)


@pytest.mark.ray
@pytest.mark.parametrize("groups", [1, 4])
def test_ray_data_gives_the_same_micro_batches_and_stops_when_closed(ray_local, encoded, groups, monkeypatch):
    """Items are small here, so that several tasks, blocks and executions take part."""
    monkeypatch.setattr("twilbert.data.stream.order._ITEM_SAMPLES", 100)
    monkeypatch.setattr("twilbert.data.stream.ray_stream._ITEMS_AN_EXECUTION", 4)
    plan = make_plan(encoded, 2, 3, reader_groups=groups)
    assert len(list(items(plan, 1, 3, 70))) > 4
    plain, streamed = list(micro_batches(plan, 1, 3, 70)), list(ray_micro_batches(plan, 1, 3, 70))
    assert len(plain) == 3 * 67 and all(same(a, b) for a, b in zip(plain, streamed, strict=True))
    endless = ray_micro_batches(plan, 1, 0, 10**6)
    assert same(next(endless), next(micro_batches(plan, 1, 0, 1)))
    endless.close()


# --- windows and items --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 12, 40])
def test_shares_of_the_reader_groups_make_each_epoch_and_never_drift_apart(encoded, groups):
    """40 groups are more than there are row groups: a row group is divided among several."""
    plan = make_plan(encoded, reader_groups=groups, global_batch_size=groups)
    counts, total = samples_of_row_groups(plan.counts), plan.counts.samples
    ends = [0] * groups
    for epoch in range(5):
        samples: list[tuple[int, int]] = []
        for group in range(groups):
            windows = epoch_windows(plan, epoch, group)
            assert windows[0].start == ends[group]
            ends[group] = windows[-1].stop
            for window in windows:
                members = [(number, n) for number in window.row_groups for n in range(counts[number])]
                samples += members[window.skip : window.skip + window.stop - window.start]
                at_both_ends = [next(windows_from(plan, at, group)) for at in (window.start, window.stop - 1)]
                assert at_both_ends == [window, window]
        assert sorted(samples) == [(number, n) for number in range(len(counts)) for n in range(counts[number])]
        assert sum(ends) == (epoch + 1) * total and max(ends) - min(ends) <= 1


def test_windows_of_each_epoch_hold_the_row_groups_in_another_order(encoded):
    plan = make_plan(encoded, window_row_groups=4)
    orders = {tuple(n for window in epoch_windows(plan, epoch) for n in window.row_groups) for epoch in range(20)}
    assert len(orders) == 20 and all(sorted(order) == list(range(9)) for order in orders)
    assert [len(window.row_groups) for window in epoch_windows(plan, 0)] == [4, 4, 1]


@pytest.mark.parametrize("size", [1, 7, 32, 612, 1000])
@pytest.mark.parametrize("start", [0, 3])
def test_items_cover_each_step_once_with_every_window_it_reaches(encoded, size, start):
    plan = make_plan(encoded, global_batch_size=size)
    stop = start + max(4, 200_000 // size)
    covering = list(items(plan, 0, start, stop))
    assert [covering[0].first_step, covering[-1].stop_step] == [start, stop] and len(covering) > 1
    assert all(a.stop_step == b.first_step for a, b in pairwise(covering))
    for item in covering:
        first, last = item.first_step * size, item.stop_step * size
        (windows,) = item.windows
        assert windows[0].start <= first < windows[0].stop
        assert windows[-1].start < last <= windows[-1].stop
        assert all(a.stop == b.start for a, b in pairwise(windows))


def test_fewer_samples_than_reader_groups_still_come_exactly_once_an_epoch(tmp_path):
    encoded = make_encoded(tmp_path, [3], n_shards=1, single_share=0.0)
    plan = make_plan(encoded, 2, reader_groups=8, global_batch_size=8)
    steps = contents(plan, 0, steps_to(plan, 9))
    assert_exactly_once_an_epoch(plan, steps, 9)
    assert steps == contents(dataclasses.replace(plan, world_size=8), 0, len(steps))


def test_a_worker_reads_the_row_groups_of_its_own_reader_groups_alone(encoded, monkeypatch):
    read: set[int] = set()
    original = rows_of.read_row_group
    monkeypatch.setattr(
        rows_of, "read_row_group", lambda corpus, group, columns: (read.add(group), original(corpus, group, columns))[1]
    )
    plan = make_plan(encoded, 4, reader_groups=4)
    by_rank = []
    for rank in range(4):
        read.clear()
        list(micro_batches(plan, rank, 0, plan.counts.samples // SIZE))
        by_rank.append(set(read))
    assert set.union(*by_rank) == set(plan.counts.row_groups)
    assert sum(map(len, by_rank)) <= 9 + 3  # neighbours share the row group in which one's share ends


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reader_groups": 5}, "global_batch_size 24: does not divide by 5 reader groups"),
        ({"world_size": 3, "reader_groups": 4}, "3 workers do not divide 4 reader groups"),
        *(
            ({name: 0}, f"{name} 0: expected at least 1")
            for name in ("reader_groups", "global_batch_size", "world_size", "accumulation", "window_row_groups")
        ),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_name(encoded, options, message):
    with pytest.raises(UsageError, match=message):
        make_plan(encoded, **options)


def test_an_empty_split_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(UsageError, match=r"'train' is empty.*prepare"):
        make_plan(make_encoded(tmp_path, [0], n_shards=1))
