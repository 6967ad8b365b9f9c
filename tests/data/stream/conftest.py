"""The encoded corpus that the stream's tests share."""

from __future__ import annotations

import pytest

from tests.make_encoded import make_encoded
from twilbert.data.encoded.format import EncodedCorpus


@pytest.fixture(scope="session")
def encoded(tmp_path_factory) -> EncodedCorpus:
    """322 rows in 9 uneven row groups of 2 files, a tenth of them single tweets: about 612 samples."""
    groups = (50, 50, 50, 9, 31, 50, 1, 50, 31)
    return make_encoded(tmp_path_factory.mktemp("encoded"), rows_per_row_group=groups)
