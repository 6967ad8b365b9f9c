"""The stream's promises: exactly once an epoch, the same at any number of workers, resumable anywhere, level pieces."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.make_encoded import make_encoded
from twilbert.data.encoded.format import EncodedCorpus, read_row_group
from twilbert.data.stream.build import build
from twilbert.data.stream.masking import MaskingSettings
from twilbert.data.stream.micro_batch import VALUES, MicroBatch, Packed
from twilbert.data.stream.order import StreamPlan, items
from twilbert.data.stream.ray_stream import ray_micro_batches
from twilbert.data.stream.stream import accumulation_for, evaluation_batches, micro_batches
from twilbert.errors import TwilbertError, UsageError
from twilbert.model.special_tokens import CLS, MASK, PAD, SEP

SPAN, TOKEN = MaskingSettings("span"), MaskingSettings("token")
COUNTS = ("step", "epoch", "accumulation", "n_masked", "n_rop", "n_samples")


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> EncodedCorpus:
    """145 rows in 4 row groups of 2 files, a tenth of them single tweets: about 275 samples."""
    return make_encoded(tmp_path_factory.mktemp("encoded"))


def make_plan(encoded: EncodedCorpus, world_size: int = 1, accumulation: int = 2, **options) -> StreamPlan:
    settings = {"seed": 7, "global_batch_size": 32, "masking": SPAN, "window_row_groups": 2, **options}
    return StreamPlan(encoded, world_size=world_size, accumulation=accumulation, **settings)


def all_workers(plan: StreamPlan, start: int, stop: int) -> list[MicroBatch]:
    return [batch for rank in range(plan.world_size) for batch in micro_batches(plan, rank, start, stop)]


def samples_of(batch: MicroBatch) -> list[tuple[int, tuple]]:
    """What the model sees of each sample, with its id: ids, segments, masked positions with labels, ROP label."""
    width = batch.input_ids.shape[1]
    seen = []
    for i, (sample, length) in enumerate(zip(batch.sample_ids.tolist(), batch.lengths.tolist(), strict=True)):
        here = batch.masked_index // width == i
        masked = list(zip((batch.masked_index[here] % width).tolist(), batch.masked_labels[here].tolist(), strict=True))
        assert (batch.input_ids[i, length:] == PAD).all() and (batch.segment_ids[i, length:] == 0).all()
        ids, segments = batch.input_ids[i, :length].tolist(), batch.segment_ids[i, :length].tolist()
        seen.append((sample, (ids, segments, masked, int(batch.rop_labels[i]))))
    return seen


def step_contents(batches: list[MicroBatch]) -> dict[int, list]:
    """The samples of each step with all the model sees of them, whatever batches and workers they came in."""
    steps: dict[int, list] = {}
    for batch in batches:
        steps.setdefault(batch.step, []).extend(samples_of(batch))
    return {step: sorted(samples) for step, samples in steps.items()}


def same(a: MicroBatch, b: MicroBatch) -> bool:
    arrays = all(
        getattr(a, name).dtype == getattr(b, name).dtype == dtype and np.array_equal(getattr(a, name), getattr(b, name))
        for name, dtype in VALUES.items()
    )
    return arrays and all(getattr(a, name) == getattr(b, name) for name in COUNTS)


def corpus_rows(encoded: EncodedCorpus, split: str) -> list[tuple[list[int], list[int]]]:
    rows = []
    for group in encoded.split(split).row_groups:
        table = read_row_group(encoded, group)
        rows += zip(table.column("orig_ids").to_pylist(), table.column("reply_ids").to_pylist(), strict=True)
    return rows


# --- exactly once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 100, 333])
def test_every_sample_comes_exactly_once_an_epoch_over_three_epochs(encoded, size):
    split = encoded.split("train")
    assert split.samples % size
    plan = make_plan(encoded, global_batch_size=size)
    n_steps = -(-3 * split.samples // size)
    # a step is the set of its samples: within it, epochs are told apart by counting
    times = Counter(s for batch in all_workers(plan, 0, n_steps) for s in batch.sample_ids.tolist())
    rows = corpus_rows(encoded, "train")
    expected = {2 * n + d for n, (_, reply) in enumerate(rows) for d in range(2 if reply else 1)}
    assert set(times) == expected and len(expected) == split.samples
    surplus = n_steps * size - 3 * split.samples  # the remainder of the last step opens the fourth epoch
    assert Counter(times.values()) == Counter({3: split.samples - surplus, 4: surplus})
    by_step = [[s for b in micro_batches(plan, 0, step, step + 1) for s in b.sample_ids.tolist()] for step in range(3)]
    assert all(len(step) == size for step in by_step)


def test_three_epochs_at_one_sample_a_step_are_three_different_orders_of_all_samples(encoded):
    n = encoded.split("train").samples
    plan = make_plan(encoded, accumulation=1, global_batch_size=1)
    stream = [int(batch.sample_ids[0]) for batch in micro_batches(plan, 0, 0, 3 * n)]
    epochs = [stream[i * n : (i + 1) * n] for i in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == n for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    # both orders of a pair lie in the same window, seldom side by side
    side_by_side = sum(a // 2 == b // 2 for a, b in pairwise(stream))
    assert side_by_side < 0.05 * len(stream)


def test_a_step_that_opens_the_next_epoch_masks_its_samples_with_their_own_epochs_keys(tmp_path):
    """A corpus smaller than a step: a sample comes several times in it, each time with another mask."""
    encoded = make_encoded(tmp_path, [5], n_shards=1, single_share=0.0, lengths=(15, 20))
    plan = make_plan(encoded, global_batch_size=40, accumulation=1)
    (batch,) = micro_batches(plan, 0, 0, 1)
    width = batch.input_ids.shape[1]
    masks: dict[int, list] = {}
    for i, sample in enumerate(batch.sample_ids.tolist()):
        here = batch.masked_index[batch.masked_index // width == i] % width
        masks.setdefault(sample, []).append(tuple(here.tolist()))
    assert all(len(m) == 4 and len(set(m)) >= 3 for m in masks.values()) and len(masks) == 10
    assert batch.epoch == 0 and [b.epoch for b in micro_batches(plan, 0, 1, 2)] == [4]


# --- any number of workers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", [SPAN, TOKEN], ids=["span", "token"])
@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 5), (2, 2), (3, 1), (3, 4), (4, 3)])
def test_steps_hold_the_same_samples_and_masks_at_any_world_size(encoded, masking, world_size, accumulation):
    reference = step_contents(all_workers(make_plan(encoded, 1, 2, masking=masking), 0, 20))
    plan = make_plan(encoded, world_size, accumulation, masking=masking)
    assert step_contents(all_workers(plan, 0, 20)) == reference


def test_every_worker_gets_accumulation_micro_batches_a_step_in_order(encoded):
    plan = make_plan(encoded, 3, 4)
    for rank in range(3):
        order = [(batch.step, batch.accumulation) for batch in micro_batches(plan, rank, 5, 9)]
        assert order == [(step, a) for step in range(5, 9) for a in range(4)]


def test_at_every_accumulation_workers_hold_neighbours_in_length(encoded):
    plan = make_plan(encoded, 2, 4, global_batch_size=100)
    by_rank = [list(micro_batches(plan, rank, 0, 4)) for rank in range(2)]
    for step in range(4):
        pieces = [by_rank[m % 2][4 * step + m // 2].lengths for m in range(8)]
        joined = np.concatenate(pieces)
        assert (np.diff(joined) >= 0).all() and len(joined) == 100


def test_counts_of_the_whole_step_are_known_to_every_worker(encoded):
    plan = make_plan(encoded, 3, 2)
    batches = all_workers(plan, 0, 10)
    for step in range(10):
        here = [batch for batch in batches if batch.step == step]
        assert {batch.n_masked for batch in here} == {sum(len(batch.masked_index) for batch in here)}
        assert {batch.n_rop for batch in here} == {sum(int((batch.rop_labels >= 0).sum()) for batch in here)}
        assert {batch.n_samples for batch in here} == {sum(len(batch.lengths) for batch in here)} == {32}
    assert {batch.n_masked for batch in micro_batches(make_plan(encoded, masking=TOKEN), 0, 0, 2)} == {None}


def test_workers_beyond_the_samples_get_empty_micro_batches_of_the_right_shape(encoded):
    plan = make_plan(encoded, 4, 3, global_batch_size=5)
    batches = all_workers(plan, 0, 3)
    assert len(batches) == 4 * 3 * 3
    empty = [batch for batch in batches if not len(batch.lengths)]
    assert len(empty) >= 3 * (12 - 5)
    for batch in empty:
        assert batch.input_ids.shape == batch.segment_ids.shape == (0, 1)
        others = (batch.masked_index, batch.masked_labels, batch.rop_labels, batch.sample_ids, batch.lengths)
        assert all(array.shape == (0,) for array in others)
        assert batch.n_masked and batch.padded_tokens == batch.real_tokens == 0


# --- what a sample is ---------------------------------------------------------------------------------------------


def test_samples_are_the_corpus_rows_in_both_orders_and_single_tweets_once(encoded):
    rows = corpus_rows(encoded, "train")
    n_steps = encoded.split("train").samples // 32 + 1
    seen = dict(seen for b in all_workers(make_plan(encoded), 0, n_steps) for seen in samples_of(b))
    singles = 0
    for number, (orig, reply) in enumerate(rows):
        for direction in range(2 if reply else 1):
            ids, segments, masked, rop = seen[2 * number + direction]
            for position, label in masked:
                ids[position] = label
            first, second = (reply, orig) if direction else (orig, reply)
            tail = [*second, SEP] if reply else []
            assert ids == [CLS, *first, SEP, *tail]
            assert segments == [0] * (len(first) + 2) + [1] * len(tail)
            assert rop == ((1, 0)[direction] if reply else -100)
            maskable = sum(t >= 5 for t in ids)
            assert len(masked) == math.ceil(0.15 * maskable)
            singles += not reply
    assert singles == encoded.split("train").singles > 5


def test_masked_index_points_at_labels_of_the_flat_batch(encoded):
    batch = next(micro_batches(make_plan(encoded), 0, 0, 1))
    assert (np.diff(batch.masked_index) > 0).all()
    flat = batch.input_ids.ravel()
    assert 0.5 < (flat[batch.masked_index] == MASK).mean() < 1
    assert not np.isin(np.flatnonzero(flat == MASK), batch.masked_index, invert=True).any()


# --- resume -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [1, 8, 9, 17, 30])
def test_resumed_at_any_step_the_stream_is_the_same(encoded, start):
    plan = make_plan(encoded, 2, 2)
    whole = [batch for batch in micro_batches(plan, 1, 0, 33) if batch.step >= start]
    resumed = list(micro_batches(plan, 1, start, 33))
    assert len(whole) == len(resumed) == 2 * (33 - start)
    assert all(same(a, b) for a, b in zip(whole, resumed, strict=True))


def test_another_seed_is_another_order_and_other_masks(encoded):
    one, other = (step_contents(all_workers(make_plan(encoded, seed=seed), 0, 3)) for seed in (7, 8))
    assert all([s for s, _ in one[step]] != [s for s, _ in other[step]] for step in range(3))


# --- accumulation --------------------------------------------------------------------------------------------------


def test_accumulation_is_the_least_whose_mean_micro_batch_fits(encoded):
    for world_size in (1, 2, 3):
        accumulation = accumulation_for(encoded, "train", 64, world_size, 300)
        means = []
        for candidate in (accumulation, accumulation - 1):
            plan = make_plan(encoded, world_size, candidate, global_batch_size=64)
            means.append(np.mean([batch.padded_tokens for batch in all_workers(plan, 0, 12)]))
        assert means[0] < 1.05 * 300 and means[1] > 0.95 * 300
    assert accumulation_for(encoded, "train", 64, 1, 10**6) == 1


def test_a_micro_batch_smaller_than_a_sample_is_refused_with_the_remedy(encoded):
    with pytest.raises(UsageError, match=r"micro_batch_tokens 8.*raise it"):
        accumulation_for(encoded, "train", 64, 1, 8)


# --- evaluation ---------------------------------------------------------------------------------------------------


def evaluate_all(encoded: EncodedCorpus, world_size: int, **options) -> list[list[MicroBatch]]:
    settings = {"micro_batch_tokens": 300, "masking": SPAN, "seed": 3, "chunk_row_groups": 2, **options}
    return [list(evaluation_batches(encoded, "valid", rank, world_size, **settings)) for rank in range(world_size)]


@pytest.mark.parametrize("masking", [SPAN, TOKEN], ids=["span", "token"])
def test_evaluation_sees_each_sample_once_with_the_same_mask_at_any_world_size(tmp_path, masking):
    encoded = make_encoded(tmp_path, valid_rows=[20, 20, 7])
    reference = dict(seen for batch in evaluate_all(encoded, 1, masking=masking)[0] for seen in samples_of(batch))
    assert len(reference) == encoded.split("valid").samples
    for world_size in (1, 2, 3):
        by_rank = evaluate_all(encoded, world_size, masking=masking)
        assert len({len(batches) for batches in by_rank}) == 1
        batches = [batch for rank in by_rank for batch in rank]
        assert sum(len(batch.lengths) for batch in batches) == encoded.split("valid").samples
        assert dict(seen for batch in batches for seen in samples_of(batch)) == reference
        assert max(batch.padded_tokens for batch in batches) <= 300


def test_evaluation_masks_are_not_those_of_training(encoded):
    """The first epoch of training on the same split, same seed: other masks."""
    plan = make_plan(encoded, 1, 1, split="valid", seed=3, global_batch_size=encoded.split("valid").samples)
    (training,) = micro_batches(plan, 0, 0, 1)
    trained = dict(samples_of(training))
    evaluated = dict(seen for batch in evaluate_all(encoded, 1)[0] for seen in samples_of(batch))
    assert trained.keys() == evaluated.keys()
    assert sum(trained[s][2] == evaluated[s][2] for s in trained) < len(trained) / 2


# --- packing and faults -------------------------------------------------------------------------------------------


def test_micro_batches_survive_an_arrow_table_and_any_slice_of_it(encoded):
    plan = make_plan(encoded, 2, 3, global_batch_size=9)
    (item,) = items(plan, 0, 0, 8)
    (run,) = build(plan, 0, item)
    plain = list(run.micro_batches())
    table = run.to_table()
    for first, stop in ((0, len(plain)), (5, 11), (23, 24)):
        again = list(Packed.from_table(table.slice(first, stop - first)).micro_batches())
        assert all(same(a, b) for a, b in zip(plain[first:stop], again, strict=True))


def truncated(encoded: EncodedCorpus) -> str:
    """Cut the second train shard of an open encoded corpus in half, as a failing disk may; its path."""
    path = Path(encoded.path) / encoded.split("train").shards[1].file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return str(path)


def test_a_truncated_shard_is_named(tmp_path):
    encoded = make_encoded(tmp_path)
    path = truncated(encoded)
    with pytest.raises(TwilbertError) as raised:
        list(micro_batches(make_plan(encoded), 0, 0, 12))
    assert path in str(raised.value) and "twilbert-encode" in str(raised.value)


@pytest.mark.ray
def test_ray_data_gives_the_same_micro_batches_and_stops_when_closed(ray_local, encoded, monkeypatch):
    """Tasks pack small items here, so that several tasks and blocks take part."""
    monkeypatch.setattr("twilbert.data.stream.order._ITEM_SAMPLES", 100)
    monkeypatch.setattr("twilbert.data.stream.ray_stream._ITEMS_AN_EXECUTION", 4)
    plan = make_plan(encoded, 2, 3)
    assert len(list(items(plan, 1, 3, 25))) > 4
    plain = list(micro_batches(plan, 1, 3, 25))
    streamed = list(ray_micro_batches(plan, 1, 3, 25))
    assert len(plain) == len(streamed) == 3 * 22
    assert all(same(a, b) for a, b in zip(plain, streamed, strict=True))
    endless = ray_micro_batches(plan, 1, 0, 10**6)
    assert same(next(endless), next(micro_batches(plan, 1, 0, 1)))
    endless.close()


@pytest.mark.ray
def test_a_fault_in_a_task_is_the_streams_own_error(ray_local, tmp_path):
    encoded = make_encoded(tmp_path, [40, 40, 40, 40], seed=1)
    path = truncated(encoded)
    with pytest.raises(TwilbertError) as raised:
        list(ray_micro_batches(make_plan(encoded, window_row_groups=1, global_batch_size=20), 0, 0, 100))
    assert type(raised.value) is TwilbertError
    assert str(raised.value).startswith(path) and str(raised.value).endswith("twilbert-encode again")
