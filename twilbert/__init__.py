"""TWilBERT: pre-train, evaluate and fine-tune an encoder of Spanish Twitter conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twilbert.inference.model import Model

__version__ = "0.2.0"


def load(
    model: str,
    device: str | None = None,
    precision: str = "auto",
    trust_remote_code: bool = False,
    calibrated: bool = True,
) -> Model:
    """The model `model` names (folder, checkpoint, run): `.predict`, `.embed`, `.fill_mask`; see `inference.load`."""
    from twilbert.inference import model as inference  # here, so that importing the package stays light

    return inference.load(model, device, precision, trust_remote_code, calibrated)
