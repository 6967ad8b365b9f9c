"""Data that changed on disk is refused by name before a step: flipped bits, shards of another corpus."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.make_encoded import make_corpus
from tests.small_world import PAIRS
from twilbert import encode, evaluate, pretrain, storage, vocab
from twilbert.data import checksums
from twilbert.data.encoded.format import EncodedCorpus, read_row_group
from twilbert.errors import TwilbertError

Pretrain = Callable[..., int]


@pytest.fixture
def world(trained, tmp_path) -> Path:
    """A copy of a small world with a run of 6 steps and an encoded corpus."""
    return Path(shutil.copytree(Path(trained.path).parents[1], tmp_path / "world"))


@pytest.fixture
def resume(world, trained) -> Pretrain:
    """Start the same recipe for more steps, which resumes the run of 6 steps."""
    name = Path(trained.path).name

    def run(*overrides: str) -> int:
        places = [f"run.storage_path={world / 'runs'}", f"corpus.path={world / 'corpus'}", f"run.name={name}"]
        same = ["training.optimizer=lamb", "training.eval_steps=3", "training.schedule_steps=6"]
        return pretrain.main([str(world / "small.yaml"), *places, *same, "training.max_steps=8", *overrides])

    return run


@contextmanager
def flipped(file: Path, bit: int) -> Iterator[None]:
    """Flip one bit of a file inside the context."""
    sound = file.read_bytes()
    changed = bytearray(sound)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    try:
        yield
    finally:
        file.write_bytes(sound)


def bits(files: list[Path], count: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Random bits of random files."""
    random = np.random.default_rng(seed)
    for file in random.choice(len(files), count):
        yield files[file], int(random.integers(8 * files[file].stat().st_size))


FEW_OR_ALL = pytest.mark.parametrize(
    ("encoded", "corpus"), [(8, 4), pytest.param(200, 60, marks=pytest.mark.slow)], ids=["few", "all"]
)


@pytest.mark.ray
@FEW_OR_ALL
def test_one_flipped_bit_in_any_shard_is_refused_before_a_step(world, resume, capsys, encoded, corpus):
    """A shard of ids, and a shard of text before and after it is encoded."""
    run, shards = world / "runs", {kind: sorted((world / "corpus").glob(f"{kind}*/*.parquet")) for kind in ("", "enc")}
    shards["enc"] = sorted((world / "corpus" / "encoded").glob("*/*/*.parquet"))
    before = sorted(run.rglob("*"))

    def refuses(file: Path, bit: int) -> None:
        with flipped(file, bit):
            assert resume() == 1, f"bit {bit} of {file}"
        message = capsys.readouterr().err
        assert f"{file}: damaged or replaced" in message and "Traceback" not in message
        assert sorted(run.rglob("*")) == before

    for file, bit in bits(shards["enc"], encoded, seed=1):
        refuses(file, bit)
    for file, bit in bits(shards[""], corpus, seed=2):
        refuses(file, bit)
    shutil.rmtree(world / "corpus" / "encoded")
    for file, bit in bits(shards[""], corpus // 4 if encoded == 8 else corpus, seed=3):
        refuses(file, bit)
        assert not list((world / "corpus" / "encoded").iterdir())


@pytest.mark.ray
def test_another_shard_in_the_place_of_one_is_refused_under_the_old_run(world, resume, capsys, tmp_path):
    """By the run and by all readers of text; also with an edited corpus.json."""
    other = make_corpus(tmp_path / "other", PAIRS[::-1], valid=PAIRS[:20], row_group_rows=50)
    shard, index = world / "corpus" / "train" / "00000.parquet", world / "corpus" / "corpus.json"
    tokenizer = str(world / "tokenizer")
    shutil.copy(other.shard_path(other.shards("train")[0]), shard)
    held_out = world / "corpus" / "valid" / "00000.parquet"
    for refused in (
        lambda: resume(),
        lambda: shutil.rmtree(world / "corpus" / "encoded") or resume(),
        lambda: encode.main([str(world / "corpus"), "--tokenizer", tokenizer]),
        lambda: vocab.main([str(world / "corpus"), "--out", str(tmp_path / "vocab"), "--vocab-size", "400"]),
    ):
        assert refused() == 1
        message = capsys.readouterr().err
        assert f"{shard}: damaged or replaced" in message and "Traceback" not in message
    shutil.copy(shard, held_out)
    assert evaluate.main([str(world / "runs"), str(world / "corpus")]) != 0
    info = json.loads(index.read_text())
    info["splits"]["train"]["shards"][0]["sha256"] = storage.sha256_file(str(shard))
    index.write_text(json.dumps(info))
    assert resume() == 1
    assert f"{index}: damaged or edited" in capsys.readouterr().err
    shutil.copy(Path(other.path) / "corpus.json", index)
    assert resume() == 2
    assert "data.corpus: was " in capsys.readouterr().err


def test_a_bit_that_flips_after_the_start_is_met_by_the_page_it_lies_in(world):
    """As on a node that reads another copy than the start compared."""
    (folder,) = (world / "corpus" / "encoded").iterdir()
    corpus = EncodedCorpus.open(str(folder))
    train = corpus.split("train")
    file = folder / train.shards[0].file
    for group in train.row_groups:
        start, size = _ids_of(file, group.index)
        for share in (0.3, 0.5, 0.7, 0.9):
            refused = pytest.raises(TwilbertError, match=r"train/00000\.parquet: cannot be read .*twilbert-encode")
            with flipped(file, int(8 * (start + share * size))), refused:
                read_row_group(corpus, group)


def _ids_of(file: Path, row_group: int) -> tuple[int, int]:
    """Where the tweets' ids of a row group begin in the file, and their bytes."""
    import pyarrow.parquet as pq

    column = pq.read_metadata(file).row_group(row_group).column(0)
    return column.dictionary_page_offset or column.data_page_offset, column.total_compressed_size


@pytest.mark.ray
@pytest.mark.slow
def test_a_shard_that_changes_after_the_start_ends_the_run_at_once_with_its_name(world, resume, capsys, monkeypatch):
    """Without a restart, which would read the same."""
    (folder,) = (world / "corpus" / "encoded").iterdir()
    file = folder / "train" / "00000.parquet"
    check = checksums.check_files

    def check_and_spoil(files) -> None:
        check(files)
        content = bytearray(file.read_bytes())
        for group in range(3):
            start, size = _ids_of(file, group)
            content[start + size // 2] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(checksums, "check_files", check_and_spoil)
    assert resume() == 1
    message = capsys.readouterr().err
    assert f"{file}: cannot be read" in message and "twilbert-encode" in message
    assert "workers died" not in message and "Traceback" not in message


@pytest.mark.parametrize("name", ["corpus.json", "encoded/*/encoded.json"])
def test_one_flipped_bit_in_a_list_is_refused_or_changes_nothing(world, name):
    """Invalid JSON or another sum; blanks between entries and the name of the sum have no meaning."""
    (file,) = (world / "corpus").glob(name)
    sound = checksums.read_json(str(file), dict)
    refused = 0
    for _, bit in bits([file], 200, seed=4):
        with flipped(file, bit):
            try:
                assert checksums.read_json(str(file), dict).items() >= sound.items()
            except TwilbertError as error:
                refused += 1
                assert str(file) in str(error)
    assert refused > 150
