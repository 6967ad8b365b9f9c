"""The plan: windows and items from row-group counts alone, without a gap over epochs."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest

from tests.make_encoded import make_encoded
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream.order import StreamPlan, epoch_windows, items, windows_from
from twilbert.errors import UsageError


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> EncodedCorpus:
    """145 rows in 4 row groups of 2 files, a tenth of them single tweets: about 275 samples."""
    return make_encoded(tmp_path_factory.mktemp("encoded"))


def make_plan(encoded: EncodedCorpus, **options) -> StreamPlan:
    plan = StreamPlan(encoded, seed=7, global_batch_size=32, world_size=1, accumulation=2, window_row_groups=2)
    return dataclasses.replace(plan, **options)


def test_windows_hold_every_row_group_once_an_epoch_in_an_order_of_the_epochs_own(encoded):
    plan = make_plan(encoded, window_row_groups=3)
    orders = [[n for window in epoch_windows(plan, epoch) for n in window.row_groups] for epoch in range(20)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 10
    assert [len(window.row_groups) for window in epoch_windows(plan, 0)] == [3, 1]
    assert orders == [[n for w in epoch_windows(plan, e) for n in w.row_groups] for e in range(20)]


@pytest.mark.parametrize("size", [1, 7, 32, 275, 1000])
@pytest.mark.parametrize("start", [0, 3])
def test_items_cover_each_step_once_with_every_window_it_reaches(encoded, size, start):
    plan = make_plan(encoded, global_batch_size=size)
    stop = start + max(4, 200_000 // size)
    found = list(items(plan, 0, start, stop))
    assert [found[0].first_step, found[-1].stop_step] == [start, stop]
    assert all(a.stop_step == b.first_step for a, b in pairwise(found))
    for item in found:
        first, last = item.first_step * size, item.stop_step * size
        (windows,) = item.lanes
        assert windows[0].start <= first < windows[0].stop
        assert windows[-1].start < last <= windows[-1].stop
        assert all(a.stop == b.start for a, b in pairwise(windows))
    assert len(found) > 1


def test_windows_go_on_over_epochs_without_a_gap(encoded):
    plan = make_plan(encoded)
    upcoming = windows_from(plan, 500)
    windows = [next(upcoming) for _ in range(10)]
    assert windows[0].start <= 500 < windows[0].stop
    assert all(a.stop == b.start for a, b in pairwise(windows))


@pytest.mark.parametrize("name", ["global_batch_size", "world_size", "accumulation", "window_row_groups"])
def test_a_plan_of_nothing_is_refused_by_name(encoded, name):
    with pytest.raises(UsageError, match=name):
        dataclasses.replace(make_plan(encoded), **{name: 0})


def test_an_empty_split_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(UsageError, match=r"'train' is empty.*prepare"):
        make_plan(make_encoded(tmp_path, [0], n_shards=1))
