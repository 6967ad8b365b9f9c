"""Damaged and hostile weight files: each is refused in one message, in bounded memory, and nothing crashes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.model.small import config
from tests.original.keras_files import original_json, write_pretraining
from twilbert.errors import TwilbertError, UsageError
from twilbert.original.hdf5 import open_keras
from twilbert.original.weights import load_original

SIZES = config("plain")
DENSE, BLOCK = "dense_9/dense_9", "sentence_encoder_block_9/sentence_encoder_block_9"


def _replace(file: h5py.File, name: str, **how) -> None:
    del file[name]
    file.create_dataset(name, **how)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _header_alone(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:96])


def _edit(change: Callable[[h5py.File, Path], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        with h5py.File(path, "a") as file:
            change(file, path)

    return edit


@_edit
def _external_link(file: h5py.File, path: Path) -> None:
    other = write_pretraining(path.with_name("other.hdf5"), SIZES)
    del file[f"{DENSE}/kernel:0"]
    file[f"{DENSE}/kernel:0"] = h5py.ExternalLink(other.name, f"{DENSE}/kernel:0")


@_edit
def _external_link_to_a_group(file: h5py.File, path: Path) -> None:
    other = write_pretraining(path.with_name("other.hdf5"), SIZES)
    del file["mlm"]
    file["mlm"] = h5py.ExternalLink(other.name, "/mlm")


@_edit
def _soft_link(file: h5py.File, path: Path) -> None:
    file.move(f"{DENSE}/kernel:0", "elsewhere")
    file[f"{DENSE}/kernel:0"] = h5py.SoftLink("/elsewhere")


@_edit
def _soft_link_in_a_circle(file: h5py.File, path: Path) -> None:
    del file["dense_9"]
    file["dense_9"] = h5py.SoftLink("/dense_9")


@_edit
def _external_storage(file: h5py.File, path: Path) -> None:
    del file[f"{DENSE}/bias:0"]
    raw = path.with_name("raw.bin")
    raw.write_bytes(bytes(96))
    file.create_dataset(f"{DENSE}/bias:0", (24,), "f4", external=[(str(raw), 0, 96)])


@_edit
def _virtual(file: h5py.File, path: Path) -> None:
    other = write_pretraining(path.with_name("other.hdf5"), SIZES)
    layout = h5py.VirtualLayout((24,), "f4")
    layout[:] = h5py.VirtualSource(str(other), f"{DENSE}/bias:0", shape=(24,))
    del file[f"{DENSE}/bias:0"]
    file.create_virtual_dataset(f"{DENSE}/bias:0", layout)


@_edit
def _objects(file: h5py.File, path: Path) -> None:
    _replace(file, f"{DENSE}/bias:0", data=np.array(["x"] * 24, object), dtype=h5py.string_dtype())


@_edit
def _references(file: h5py.File, path: Path) -> None:
    _replace(file, f"{DENSE}/bias:0", shape=(24,), dtype=h5py.ref_dtype)


@_edit
def _integers(file: h5py.File, path: Path) -> None:
    _replace(file, f"{DENSE}/bias:0", data=np.zeros(24, np.int64))


@_edit
def _huge(file: h5py.File, path: Path) -> None:
    _replace(file, f"{DENSE}/kernel:0", shape=(2**20, 2**20), dtype="f4", chunks=(64, 64))


@_edit
def _huge_and_compressed(file: h5py.File, path: Path) -> None:
    del file["embedding_9/embedding_9/embeddings:0"]
    file.create_dataset("embedding_9/embedding_9/embeddings:0", (2**28, 32), "f4", compression="gzip", fillvalue=1.0)


@_edit
def _huge_contiguous(file: h5py.File, path: Path) -> None:
    _replace(file, f"{DENSE}/kernel:0", shape=(2**18, 2**18), dtype="f4")


@_edit
def _many_dimensions(file: h5py.File, path: Path) -> None:
    _replace(file, f"{DENSE}/kernel:0", data=np.zeros((1,) * 20, np.float32))


@_edit
def _wrong_shape(file: h5py.File, path: Path) -> None:
    _replace(file, f"{BLOCK}/w:0", data=np.zeros((32, 24), np.float32))


@_edit
def _not_finite(file: h5py.File, path: Path) -> None:
    file[f"{DENSE}/bias:0"][3] = np.nan


@_edit
def _missing_layer(file: h5py.File, path: Path) -> None:
    del file["sentence_encoder_block_10"]


@_edit
def _missing_weight(file: h5py.File, path: Path) -> None:
    del file[f"{BLOCK}/Wq_1:0"]


@_edit
def _unlisted_layer(file: h5py.File, path: Path) -> None:
    names = file.attrs["layer_names"]
    file.attrs["layer_names"] = names[names != b"sentence_encoder_block_10"]


@_edit
def _names_are_objects(file: h5py.File, path: Path) -> None:
    names = [name.decode() for name in file.attrs["layer_names"]]
    file.attrs.create("layer_names", names, dtype=h5py.string_dtype())


@_edit
def _names_climb_out(file: h5py.File, path: Path) -> None:
    file["dense_9"].attrs["weight_names"] = np.array([b"../mlm/kernel:0", b"/rop/rop/bias:0"])


def _endless_names(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:  # older formats hold no attribute of this size
        file.attrs.create("layer_names", np.full(2**12, b"x" * 500, "S500"), shape=(2**12,), dtype="S500")


@_edit
def _no_names(file: h5py.File, path: Path) -> None:
    del file.attrs["layer_names"]


@_edit
def _group_for_a_weight(file: h5py.File, path: Path) -> None:
    del file[f"{DENSE}/bias:0"]
    file.create_group(f"{DENSE}/bias:0")


@_edit
def _one_dataset_under_every_name(file: h5py.File, path: Path) -> None:
    for number in range(400):
        file[f"copy_{number}/weight"] = file["mlm/mlm/kernel:0"]
        file[f"copy_{number}"].attrs["weight_names"] = np.array([b"weight"])
    names = [*file.attrs["layer_names"], *(f"copy_{number}".encode() for number in range(400))]
    file.attrs["layer_names"] = np.array(names)


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (_truncated, "cut off or damaged"),
    "header alone": (_header_alone, "cut off or damaged"),
    "external link": (_external_link, "/dense_9/dense_9/kernel:0 is a link into another file"),
    "external link to a group": (_external_link_to_a_group, "/mlm is a link into another file"),
    "soft link": (_soft_link, "/dense_9/dense_9/kernel:0 is a soft link"),
    "soft link in a circle": (_soft_link_in_a_circle, "/dense_9 is a soft link"),
    "external storage": (_external_storage, "dense_9/bias:0 keeps its numbers in other files"),
    "virtual dataset": (_virtual, "dense_9/bias:0 keeps its numbers in other files"),
    "object type": (_objects, "dense_9/bias:0 holds object values, not floats"),
    "references": (_references, "dense_9/bias:0 holds object values, not floats"),
    "integers": (_integers, "dense_9/bias:0 holds int64 values, not floats"),
    "huge declared size": (_huge, "declares [1048576, 1048576], which is 4,398,046,511,104 bytes, and holds 0"),
    "huge and compressed": (_huge_and_compressed, "embedding_9/embeddings:0 is compressed"),
    "huge and contiguous": (_huge_contiguous, "declares [262144, 262144]"),
    "many dimensions": (_many_dimensions, "has 20 dimensions"),
    "wrong shape": (_wrong_shape, "block_9/w:0 has shape [32, 24], the configuration asks [24, 32]"),
    "not finite": (_not_finite, "dense_9/bias:0 holds numbers that are not finite"),
    "missing layer": (_missing_layer, "/sentence_encoder_block_10 is missing"),
    "missing weight": (_missing_weight, "Wq_1:0 is missing"),
    "unlisted layer": (_unlisted_layer, "dense_9/kernel:0 has shape [32, 24], the configuration asks [32, 128]"),
    "names are objects": (_names_are_objects, "layer_names is no list of names"),
    "names climb out": (_names_climb_out, "/dense_9/.. is missing"),
    "endless names": (_endless_names, "layer_names is 4,096 names long"),
    "no names": (_no_names, "lists no layers"),
    "group for a weight": (_group_for_a_weight, "dense_9/bias:0 is no dataset"),
    "one dataset under every name": (_one_dataset_under_every_name, "together are larger than the file"),
}

_CHILD = """
import json, resource, sys
from twilbert.convert import main
words = open("/proc/self/statm").read().split()
limit = int(words[0]) * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[2:]:
    code = main([name, "--config", sys.argv[1], "--out", name + ".model"])
    print(json.dumps({"file": name, "code": code}), flush=True)
    print("----", file=sys.stderr, flush=True)
print(json.dumps({"grown": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}))
"""


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What convert made of each hostile file, all in one process that may take 1 GB more than it had."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "config.json").write_text(json.dumps(original_json(SIZES)))
    paths = []
    for number, (damage, _) in enumerate(HOSTILE.values()):
        (folder / str(number)).mkdir()
        paths.append(write_pretraining(folder / str(number) / "weights.hdf5", SIZES))
        damage(paths[-1])
    command = [sys.executable, "-c", _CHILD, str(folder / "config.json"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    *answers, memory = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert memory["grown"] < 2**20, "over 1 GB"  # kB
    messages = done.stderr.split("----\n")
    outcomes = [(answer["code"], message) for answer, message in zip(answers, messages, strict=False)]
    assert not list(folder.glob("**/*.model")), "something was written"
    return dict(zip(HOSTILE, outcomes, strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_message(name: str, refused):
    code, message = refused[name]
    assert code in (1, 2)
    assert HOSTILE[name][1] in message
    assert message.count("\n") == 1 and message.startswith("twilbert-convert: error: ")


def test_the_file_they_all_come_from_is_read(tmp_path: Path):
    path = write_pretraining(tmp_path / "weights.hdf5", SIZES)
    with open_keras(str(path)) as file:
        assert load_original(file, SIZES)


def test_names_that_keras_has_split_are_put_together(tmp_path: Path):
    path = write_pretraining(tmp_path / "weights.hdf5", SIZES)
    with h5py.File(path, "a") as file:
        names = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:4], names[4:]
    with open_keras(str(path)) as file:
        assert load_original(file, SIZES)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found(value: float, tmp_path: Path):
    path = write_pretraining(tmp_path / "weights.hdf5", SIZES)
    with h5py.File(path, "a") as file:
        file["mlm/mlm/kernel:0"][17, 3] = value
    with (
        open_keras(str(path)) as file,
        pytest.raises(TwilbertError, match="mlm/kernel:0 holds numbers that are not fin"),
    ):
        load_original(file, SIZES)


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f4"])
def test_other_floats_are_converted(dtype: str, tmp_path: Path):
    path = write_pretraining(tmp_path / "weights.hdf5", SIZES)
    with h5py.File(path, "a") as file:
        _replace(file, f"{DENSE}/bias:0", data=np.arange(24, dtype=dtype))
    with open_keras(str(path)) as file:
        assert load_original(file, SIZES)["reply_order.hidden.0.dense.bias"].tolist() == list(range(24))


def test_what_is_no_hdf5_is_wrong_usage(tmp_path: Path):
    (tmp_path / "text").write_text("hello")
    for path, says in ((tmp_path / "text", "not an HDF5 file"), (tmp_path / "absent", "no such file")):
        with pytest.raises(UsageError, match=says), open_keras(str(path)):
            pass


def test_random_damage_never_gives_anything_but_an_error_or_numbers(tmp_path: Path):
    whole = write_pretraining(tmp_path / "weights.hdf5", SIZES).read_bytes()
    rng = np.random.default_rng(0)
    path, refusals = tmp_path / "damaged.hdf5", 0
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        # Structures lie at the start and between the numbers; one place of a few bytes is enough to break them.
        at = rng.integers(0, len(damaged) - 8)
        damaged[at : at + 8] = rng.integers(0, 256, 8)
        path.write_bytes(damaged.tobytes())
        try:
            with open_keras(str(path)) as file:
                load_original(file, SIZES)
        except TwilbertError:
            refusals += 1
    assert 0 < refusals < 60
