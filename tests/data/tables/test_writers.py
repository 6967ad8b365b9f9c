"""Writers of results: a disk that fills up is one message, whatever has been written by then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("h5py")

# The process may write files of so many bytes; the HDF5 library crashes where a write of its own fails.
CODE = """
import contextlib, resource, sys
import numpy as np, pyarrow as pa
from twilbert import storage
from twilbert.data.tables.writers import open_writer
from twilbert.errors import TwilbertError

flat = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(200 * 64, np.float32)), 64)
ragged = pa.ListArray.from_arrays(pa.array(range(0, 201, 10), pa.int32()), flat)
for vectors in (flat, ragged):
    reasons = ["empty", *[None] * (len(vectors) - 1)]
    table = pa.table({"embedding": vectors, "error": pa.array(reasons, pa.string())})
    for limit in (0, 100, 3_000, 50_000, *range(270_000, 1_500_000, 37_333)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            with storage.new_file(sys.argv[1]) as stream, contextlib.closing(open_writer("h5", stream)) as writer:
                for _ in range(60):
                    writer.write(table)
        except TwilbertError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            print(error, flush=True)
"""


def test_embeddings_on_a_full_disk_are_a_message_and_leave_nothing(tmp_path: Path):
    out = tmp_path / "new" / "vectors.h5"
    done = subprocess.run([sys.executable, "-c", CODE, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{out}: cannot be written (File too large); choose another folder"] * 74
    assert list(out.parent.iterdir()) == []
