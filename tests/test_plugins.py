"""A user's own loss or head by import path: importable from the working directory, every fault one message."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from twilbert.errors import UsageError
from twilbert.plugins import is_import_path, load_object


def test_a_module_of_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_losses_a.py").write_text("def focal(logits, targets):\n    return 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    assert load_object("own_losses_a:focal", "loss")(None, None) == 7
    assert str(tmp_path) not in sys.path
    assert load_object("torch.nn.functional:cross_entropy", "loss").__name__ == "cross_entropy"
    assert is_import_path("own_losses_a:focal") and not is_import_path("macro_f1")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_losses_b:", "loss: 'own_losses_b:': expected package.module:name"),
        ("own-losses:focal", "expected package.module:name"),
        ("nowhere_at_all:focal", "no module nowhere_at_all; looked in"),
        ("own_losses_b:focall", "own_losses_b has no focall; did you mean own_losses_b:focal?"),
        ("own_losses_b:GAMMA", "expected a function or class, not float"),
        ("own_losses_c:focal", "importing own_losses_c failed: ZeroDivisionError"),
        ("own_losses_d:focal", "own_losses_d needs nowhere_at_all, which is not installed"),
    ],
)
def test_faults_are_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str):
    (tmp_path / "own_losses_b.py").write_text("GAMMA = 2.0\ndef focal(logits, targets):\n    return 0\n")
    (tmp_path / "own_losses_c.py").write_text("1 / 0\n")
    (tmp_path / "own_losses_d.py").write_text("import nowhere_at_all\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        load_object(path, "loss")
    assert message in str(error.value)
