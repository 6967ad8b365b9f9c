"""Write a model as an ONNX file, and compare the file with torch.

    input_ids, attention_mask, token_type_ids [batch, positions] ─▶ logits [, reply_order_logits]

Batch and positions are free. fp32, no dropout. Needs twilbert[export].
Letters: B samples, T positions, M = B·T flat positions, K values read for one, E channels of a value, H hidden.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twilbert.errors import TwilbertError
from twilbert.hub.modeling import layer_states
from twilbert.model.classifier import ClassificationModel, classify
from twilbert.model.encoder import Padding
from twilbert.model.heads import PretrainingModel
from twilbert.model.layers import Table
from twilbert.model.special_tokens import N_SPECIAL

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE = 1e-4  # largest difference to torch, in logits
OPSET = 18
_MOST_IN_ONE_FILE = 1_900_000_000  # bytes; protocol buffers end at 2 GiB, so larger weights go beside the file
_LENGTHS = ([1], [4], [17, 3, 30], [9, 9, 9, 9], [64, 2, 40, 11, 5])  # of the batches that are compared
_TIMED = (16, 32)  # samples and tokens of the batch that is timed: tweets
_SECONDS = 2.0


@dataclass(frozen=True)
class Checked:
    """The file compared with torch on as many threads; speeds in batches of 16 texts of 32 tokens."""

    difference: float
    """Largest absolute difference of any output at a real position."""
    onnx_texts_per_second: float
    torch_texts_per_second: float


class _AllTokens(Padding):
    """Padding whose memory layers are read at every position; what they give at padding is never attended."""

    @property
    def real_M(self) -> Tensor:
        return torch.arange(self.real_BT.shape[0] * self.real_BT.shape[1], device=self.real_BT.device)


class _PlainTable(nn.Module):
    """A table without the sparse gradient of `Table`, for which ONNX has no operator."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.weight = table.weight

    def forward(self, indices: Tensor, weights_MK: Tensor | None = None) -> Tensor:
        rows = F.embedding(indices, self.weight)
        return rows if weights_MK is None else torch.bmm(weights_MK[:, None], rows)[:, 0]


class OnnxModel(nn.Module):
    """A model whose forward has no branch that depends on the data and returns its outputs in a tuple."""

    def __init__(self, model: PretrainingModel | ClassificationModel) -> None:
        super().__init__()
        self.model = _without_gradients(copy.deepcopy(model).float().eval())

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of `forward`."""
        if isinstance(self.model, ClassificationModel):
            return ("logits",)
        return ("logits",) if self.model.reply_order is None else ("logits", "reply_order_logits")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:
        """[B, T] each → logits [B, C], or [B, T, V] and those of reply order [B, 2]."""
        lengths_B = attention_mask.sum(1)
        encoder = self.model.encoder
        x_BTH = encoder.embeddings(input_ids, token_type_ids)
        hidden_BTH = layer_states(encoder, x_BTH, _AllTokens(lengths_B, input_ids.shape[1], x_BTH))[-1]
        if isinstance(self.model, ClassificationModel):
            return (classify(self.model.head, self.model.classifier, hidden_BTH, lengths_B, input_ids),)
        logits_BTV = self.model.masked_lm(hidden_BTH)
        if self.model.reply_order is None:
            return (logits_BTV,)
        return logits_BTV, self.model.reply_order(hidden_BTH[:, 0])


def _without_gradients(model: Any) -> Any:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Table):
                setattr(module, name, _PlainTable(child))
    return model.requires_grad_(False)


def write_onnx(model: PretrainingModel | ClassificationModel, path: str) -> None:
    """Write the local file `path`; TwilbertError when the model cannot be exported, as with some custom heads."""
    wrapped = OnnxModel(model)
    large = sum(tensor.numel() * 4 for tensor in model.state_dict().values()) > _MOST_IN_ONE_FILE
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("positions", max=model.config.n_positions)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                wrapped,
                _batch(model, [7, 5, 3]),
                path,
                input_names=list(INPUTS),
                output_names=list(wrapped.outputs),
                dynamic_shapes={name: axes for name in INPUTS},
                opset_version=OPSET,
                dynamo=True,
                external_data=large,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise TwilbertError(f"the model cannot be written as ONNX ({reason}); export it without --onnx") from error


@torch.inference_mode()
def check_onnx(model: PretrainingModel | ClassificationModel, path: str) -> Checked:
    """Run the file and the model on the same random batches of many shapes, then time both.

    TwilbertError when an output differs by more than TOLERANCE.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    model = copy.deepcopy(model).float().eval()
    longest = model.config.n_positions
    difference = 0.0
    for lengths in (*_LENGTHS, [longest]):
        batch = _batch(model, [min(length, longest) for length in lengths])
        for in_torch, in_onnx in zip(_in_torch(model, batch), _in_onnx(session, batch), strict=True):
            # Outputs at padding have no meaning.
            real = batch[1].bool() if in_torch.dim() == 3 else slice(None)
            difference = max(difference, float((in_torch - in_onnx)[real].abs().max()))
    if not difference <= TOLERANCE:
        raise TwilbertError(f"{path}: differs from torch by {difference:.2g}, over {TOLERANCE}; it was not written")
    timed = _batch(model, [min(_TIMED[1], longest)] * _TIMED[0])
    return Checked(
        difference,
        _per_second(lambda: _in_onnx(session, timed)),
        _per_second(lambda: _in_torch(model, timed)),
    )


def _batch(model: PretrainingModel | ClassificationModel, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Draw ids, mask and segments [B, T] of samples of these lengths."""
    lengths_B = torch.tensor(lengths)
    position_T = torch.arange(max(lengths))
    mask_BT = (position_T < lengths_B[:, None]).long()
    rng = torch.Generator().manual_seed(len(lengths))
    ids_BT = torch.randint(N_SPECIAL, model.config.vocab_size, mask_BT.shape, generator=rng)
    return ids_BT * mask_BT, mask_BT, (position_T > lengths_B[:, None] // 2).long() * mask_BT


def _in_torch(
    model: PretrainingModel | ClassificationModel, batch: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, ...]:
    ids_BT, mask_BT, segments_BT = batch
    lengths_B = mask_BT.sum(1)
    if isinstance(model, ClassificationModel):
        return (model(ids_BT, segments_BT, lengths_B),)
    hidden_BTH = model.encoder(ids_BT, segments_BT, lengths_B)
    reply_order = () if model.reply_order is None else (model.reply_order(hidden_BTH[:, 0]),)
    return (model.masked_lm(hidden_BTH), *reply_order)


def _in_onnx(session: Any, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    outputs = session.run(None, {name: tensor.numpy() for name, tensor in zip(INPUTS, batch, strict=True)})
    return tuple(torch.from_numpy(array) for array in outputs)


def _per_second(run: Callable[[], Any]) -> float:
    run()
    began, texts = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < _SECONDS:
        run()
        texts += _TIMED[0]
    return texts / took
