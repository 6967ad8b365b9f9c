"""The contents of micro-batches and evaluation batches, and faults of the corpus they are read from."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.data.stream.plans import SIZE, Sample, all_workers, contents, make_plan, same, samples_of
from tests.make_encoded import make_encoded
from twilbert.data.encoded.format import EncodedCorpus, read_row_group
from twilbert.data.stream.build import build
from twilbert.data.stream.masking import MaskingSettings
from twilbert.data.stream.micro_batch import MicroBatch, Packed
from twilbert.data.stream.order import items
from twilbert.data.stream.ray_stream import ray_micro_batches
from twilbert.data.stream.stream import evaluation_batches, micro_batches
from twilbert.errors import TwilbertError
from twilbert.model.special_tokens import CLS, MASK, SEP

SPAN, TOKEN = MaskingSettings("span"), MaskingSettings("token")


def test_samples_are_the_corpus_rows_in_both_orders_and_single_tweets_once(encoded):
    split = encoded.split("train")
    steps = contents(make_plan(encoded), 0, split.samples // SIZE + 1)
    samples = {sample.id: sample for step in steps.values() for sample in step}
    number = singles = 0
    for group in split.row_groups:
        table = read_row_group(encoded, group)
        for orig, reply in zip(table["orig_ids"].to_pylist(), table["reply_ids"].to_pylist(), strict=True):
            for direction in range(2 if reply else 1):
                _, ids, segments, masked, rop = samples[2 * number + direction]
                for position, label in masked:
                    ids[position] = label
                first, second = (reply, orig) if direction else (orig, reply)
                tail = [*second, SEP] if reply else []
                assert ids == [CLS, *first, SEP, *tail]
                assert segments == [0] * (len(first) + 2) + [1] * len(tail)
                assert rop == ((1, 0)[direction] if reply else -100)
                assert len(masked) == math.ceil(0.15 * sum(token >= 5 for token in ids))
            number += 1
            singles += not reply
    assert singles == split.singles > 5


def test_masked_positions_of_the_flat_batch_hold_the_mask_tokens(encoded):
    batch = next(micro_batches(make_plan(encoded), 0, 0, 1))
    assert (np.diff(batch.masked_index) > 0).all()
    flat = batch.input_ids.ravel()
    assert 0.5 < (flat[batch.masked_index] == MASK).mean() < 1
    assert np.isin(np.flatnonzero(flat == MASK), batch.masked_index).all()


def test_workers_get_their_micro_batches_in_order_and_neighbours_in_length_together(encoded):
    plan = make_plan(encoded, 2, 4, global_batch_size=100)
    by_rank = [list(micro_batches(plan, rank, 5, 9)) for rank in range(2)]
    for batches in by_rank:
        assert [(b.step, b.accumulation) for b in batches] == [(step, a) for step in range(5, 9) for a in range(4)]
    for step in range(4):
        lengths = np.concatenate([by_rank[m % 2][4 * step + m // 2].lengths for m in range(8)])
        assert (np.diff(lengths) >= 0).all() and len(lengths) == 100


@pytest.mark.parametrize(("world_size", "groups"), [(3, 1), (1, 4)])
def test_a_worker_that_reads_everything_has_the_counts_of_the_whole_step(encoded, world_size, groups):
    batches = all_workers(make_plan(encoded, world_size, reader_groups=groups), 0, 10)
    for step in range(10):
        here = [batch for batch in batches if batch.step == step]
        assert {batch.n_masked for batch in here} == {sum(len(batch.masked_index) for batch in here)}
        assert {batch.n_rop for batch in here} == {sum(int((batch.rop_labels >= 0).sum()) for batch in here)}
        assert {batch.n_samples for batch in here} == {sum(len(batch.lengths) for batch in here)} == {SIZE}


def test_counts_that_need_the_other_workers_are_none(encoded):
    assert {batch.n_masked for batch in micro_batches(make_plan(encoded, masking=TOKEN), 0, 0, 2)} == {None}
    for rank in range(4):
        sizes = Counter()
        for batch in micro_batches(make_plan(encoded, 4, reader_groups=12), rank, 0, 40):
            assert batch.n_masked is None and batch.n_rop is None and batch.n_samples == SIZE
            sizes[batch.step] += len(batch.lengths)
        assert set(sizes.values()) == {SIZE // 4}  # reader groups give every worker as many


def test_workers_beyond_the_samples_get_empty_micro_batches_of_the_right_shape(encoded):
    batches = all_workers(make_plan(encoded, 4, 3, global_batch_size=5), 0, 3)
    assert len(batches) == 4 * 3 * 3
    empty = [batch for batch in batches if not len(batch.lengths)]
    assert len(empty) >= 3 * (12 - 5)
    for batch in empty:
        assert batch.input_ids.shape == batch.segment_ids.shape == (0, 1)
        others = (batch.masked_index, batch.masked_labels, batch.rop_labels, batch.sample_ids, batch.lengths)
        assert all(array.shape == (0,) for array in others)
        assert batch.n_masked and batch.padded_tokens == batch.real_tokens == 0


def test_another_seed_is_another_order(encoded):
    one, other = (contents(make_plan(encoded, seed=seed), 0, 3) for seed in (7, 8))
    assert all([s.id for s in one[step]] != [s.id for s in other[step]] for step in range(3))


# --- evaluation ---------------------------------------------------------------------------------------------------


def evaluate_all(encoded: EncodedCorpus, world_size: int, **options) -> list[list[MicroBatch]]:
    settings = {"micro_batch_tokens": 300, "masking": SPAN, "seed": 3, "chunk_row_groups": 2, **options}
    return [list(evaluation_batches(encoded, "valid", rank, world_size, **settings)) for rank in range(world_size)]


def by_id(batches: list[MicroBatch]) -> dict[int, Sample]:
    samples = [sample for batch in batches for sample in samples_of(batch)]
    assert len({sample.id for sample in samples}) == len(samples)
    return {sample.id: sample for sample in samples}


@pytest.mark.parametrize("masking", [SPAN, TOKEN], ids=["span", "token"])
def test_evaluation_has_each_sample_once_with_the_same_mask_at_any_world_size(tmp_path, masking):
    encoded = make_encoded(tmp_path, valid_rows=[20, 20, 7])
    reference = by_id(evaluate_all(encoded, 1, masking=masking)[0])
    assert len(reference) == encoded.split("valid").samples
    for world_size in (1, 2, 3):
        by_rank = evaluate_all(encoded, world_size, masking=masking)
        assert len({len(batches) for batches in by_rank}) == 1
        batches = [batch for rank in by_rank for batch in rank]
        assert by_id(batches) == reference
        assert max(batch.padded_tokens for batch in batches) <= 300


def test_evaluation_masks_are_not_those_of_training(encoded):
    """The first epoch of training on the same split, same seed: other masks."""
    plan = make_plan(encoded, 1, 1, split="valid", seed=3, global_batch_size=encoded.split("valid").samples)
    trained, evaluated = by_id(all_workers(plan, 0, 1)), by_id(evaluate_all(encoded, 1)[0])
    assert trained.keys() == evaluated.keys()
    assert sum(trained[i].masked == evaluated[i].masked for i in trained) < len(trained) / 2


# --- packing and faults -------------------------------------------------------------------------------------------


def test_micro_batches_survive_an_arrow_table_and_any_slice_of_it(encoded):
    plan = make_plan(encoded, 2, 3, global_batch_size=9)
    (item,) = items(plan, 0, 0, 8)
    (run,) = build(plan, 0, item)
    plain, table = list(run.micro_batches()), run.to_table()
    for first, stop in ((0, len(plain)), (5, 11), (23, 24)):
        again = list(Packed.from_table(table.slice(first, stop - first)).micro_batches())
        assert all(same(a, b) for a, b in zip(plain[first:stop], again, strict=True))


@pytest.mark.ray
def test_a_truncated_shard_is_named_also_by_a_ray_task(ray_local, tmp_path):
    encoded = make_encoded(tmp_path, [40, 40, 40, 40], seed=1)
    path = Path(encoded.path) / encoded.split("train").shards[1].file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # as a failing disk may
    plan = make_plan(encoded, window_row_groups=1)
    for stream in (micro_batches(plan, 0, 0, 100), ray_micro_batches(plan, 0, 0, 100)):
        with pytest.raises(TwilbertError) as raised:
            list(stream)
        assert type(raised.value) is TwilbertError
        assert str(raised.value).startswith(str(path)) and str(raised.value).endswith("twilbert-encode again")
