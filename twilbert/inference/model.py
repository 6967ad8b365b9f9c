"""Load a model and get labels, embeddings or masked words of any number of texts.

    texts ─ data/batches.py: clean ▸ encode ▸ batches of like lengths ─▶ encoder ─▶ head | pooling ─▶ texts' order

`twilbert.load(MODEL)` is `load`. A text's numbers do not depend on what shares its batch: padding is never attended.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twilbert.data import batches
from twilbert.devices import computes_bf16, find_device
from twilbert.errors import UsageError
from twilbert.hub.folder import ModelFolder, find_model
from twilbert.model.classifier import POOLINGS, HeadConfig, pool
from twilbert.model.heads import PretrainingModel
from twilbert.model.problems import MULTI, REGRESSION

PRECISIONS = ("auto", "fp32", "bf16")
EMBEDDINGS = (*POOLINGS, "tokens")
THRESHOLD = 0.5  # a label of several is given from this probability on
# Padded tokens of a batch: enough for the products to run at full speed, few enough to stay in a CPU's caches.
_BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}


def load(
    model: str,
    device: str | None = None,
    precision: str = "auto",
    trust_remote_code: bool = False,
    calibrated: bool = True,
) -> Model:
    """Load the model of a folder, checkpoint or run for use; UsageError when there is none or no device.

    `device`: "cpu", "cuda", "cuda:1", …; None: a GPU when there is one. `precision`: "fp32", "bf16", or "auto": bf16
    for labels where the device computes it, fp32 for everything else. `trust_remote_code`: whether code that the
    folder brings or names (a custom head) may run; without it such a folder is refused with UntrustedCode.
    `calibrated`: whether probabilities and labels go by the temperature and thresholds that were fitted on dev.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r}: must be one of {', '.join(PRECISIONS)}")
    return Model(ModelFolder.open(find_model(model), trust_remote_code), find_device(device), precision, calibrated)


@dataclass(frozen=True)
class Prediction:
    """A fine-tuned model's prediction for one text."""

    label: str | tuple[str, ...] | float | None
    """The most probable class, or by thresholds; of several labels those predicted; of a regression the value; None
    where there is no text."""
    probabilities: dict[str, float]
    """By label; of several labels each one's own; empty for a regression, and where there is no text."""


class Model:
    """A loaded model; `load` returns one. Texts may come as a str, a list of them, or a pandas Series.

    Results have the same form: for a str one result, for a list a list (or array), for a Series a DataFrame (or
    Series) with its index. Texts are cleaned by the model's own rules; one of which nothing is left has no label, and
    nan for numbers, as it has an error in files.
    """

    def __init__(self, folder: ModelFolder, device: torch.device, precision: str, calibrated: bool = True) -> None:
        self.folder = folder
        self.calibrated = calibrated
        self.device = device
        self.precision = precision
        self.config, self.tokenizer, self.head = folder.config, folder.tokenizer, folder.head
        self._networks: dict[torch.dtype, Any] = {}
        self._network(self.dtype if folder.is_fine_tuned else torch.float32)

    @property
    def dtype(self) -> torch.dtype:
        """The number format that labels are computed in."""
        if self.precision == "auto":
            return torch.bfloat16 if computes_bf16(self.device) else torch.float32
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def exact_dtype(self) -> torch.dtype:
        """The number format that embeddings and masked words are computed in: fp32 unless bf16 was asked for."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in the order of `scores`; UsageError for a model that was only pre-trained."""
        return self.folder.require_labels().labels

    def predict(self, texts: Any, pairs: Any = None) -> Any:
        """Return a `Prediction` for a str, a list for a list, a DataFrame (`predicted`, `p_LABEL`…) for a Series.

        `pairs`: second texts, in the same form, for models fine-tuned on pairs. UsageError for a model that was only
        pre-trained, or for what is no text.
        """
        head = self.folder.require_labels()
        one, first, index = _texts(texts)
        predictions = self.predictions(self.scores(first, _pairs(pairs, first)))
        if index is not None:
            return _frame(predictions, () if head.problem == REGRESSION else head.labels, index)
        return predictions[0] if one else predictions

    def scores(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
        """Return float32 [texts, labels]: probabilities, or the values of a regression; nan where there is no text."""
        head = self.folder.require_labels()
        self.folder.check_pairs(pairs is not None)
        network = self._network(self.dtype)
        out = np.empty((len(texts), head.size), np.float32)

        def keep(rows: np.ndarray, input_ids: Tensor, segment_ids: Tensor, lengths: Tensor | None) -> None:
            out[rows] = network.probabilities(network(input_ids, segment_ids, lengths)).cpu().numpy()

        out[self._each_batch(texts, pairs, keep) > 0] = np.nan
        return out

    def predictions(self, scores: np.ndarray) -> list[Prediction]:
        """Return `scores` [texts, labels] with the labels' names."""
        head = self._labelling
        answers = scores if head.problem == REGRESSION else predicted_labels(head, np.nan_to_num(scores))
        return [
            Prediction(None, {}) if math.isnan(row[0]) else _prediction(head, row.tolist(), answer)
            for row, answer in zip(scores, answers, strict=True)
        ]

    def answered(self, scores: np.ndarray, min_precision: float) -> np.ndarray:
        """Whether each row is sure enough for that precision to have been reached on dev, bool [N].

        UsageError for a model without such a record, and where no confidence was that precise.
        """
        calibration = self._labelling.calibration
        if calibration is None or not calibration.cuts:
            raise UsageError(
                f"{self.folder.path}: does not say how precise it was on dev; a single-label model fine-tuned with "
                "calibrate=true does"
            )
        cut = calibration.cut(min_precision)
        if cut is None:
            best = max(one.precision for one in calibration.cuts)
            raise UsageError(f"a precision of {min_precision:g} was not reached on dev; the surest rows had {best:.3f}")
        answers = predicted_labels(self._labelling, np.nan_to_num(scores))
        return scores[np.arange(len(scores)), answers] >= np.float32(cut.confidence)

    @property
    def _labelling(self) -> HeadConfig:
        """The head, without its calibration where that is not wanted."""
        head = self.folder.require_labels()
        return head if self.calibrated else dataclasses.replace(head, calibration=None)

    def embed(self, texts: Any, pooling: str = "cls", pairs: Any = None) -> Any:
        """Return the texts' vectors: for a str [P], for a list [texts, P], for a Series a DataFrame of P columns.

        `pooling`: "cls" (first token), "avg", "max" (over all tokens, special ones too), P = H; "concat" of the three,
        P = 3H; "tokens": float32 [tokens, H] with [CLS] and [SEP] for each text, in a list (Series: in a Series). Where
        there is no text the vector is nan, or there are no tokens.
        UsageError for a third-party encoder.
        """
        one, first, index = _texts(texts)
        vectors = self.vectors(first, _pairs(pairs, first), pooling)
        if index is not None:
            import pandas

            return pandas.Series(vectors, index) if pooling == "tokens" else pandas.DataFrame(vectors, index)
        return vectors[0] if one else vectors

    def vectors(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, pooling: str = "cls"
    ) -> np.ndarray | list[np.ndarray]:
        """Return `embed` of a list: float32 [texts, P], or for "tokens" a list of float32 [tokens, H]."""
        self.folder.require_embeddings()
        if pooling not in EMBEDDINGS:
            raise UsageError(f"pooling {pooling!r}: must be one of {', '.join(EMBEDDINGS)}")
        width = self.config.hidden_size * (3 if pooling == "concat" else 1)
        tokens: list[np.ndarray] = [np.empty(0)] * (len(texts) if pooling == "tokens" else 0)
        pooled = np.empty((0 if pooling == "tokens" else len(texts), width), np.float32)
        encoder = self._network(self.exact_dtype).encoder

        def keep(rows: np.ndarray, input_ids: Tensor, segment_ids: Tensor, lengths: Tensor | None) -> None:
            hidden = encoder(input_ids, segment_ids, lengths)
            if pooling != "tokens":
                pooled[rows] = pool(hidden, lengths, pooling).float().cpu().numpy()
                return
            counts = [hidden.shape[1]] * len(rows) if lengths is None else lengths.tolist()
            for row, vector, count in zip(rows.tolist(), hidden.float().cpu().numpy(), counts, strict=True):
                tokens[row] = vector[:count].copy()

        blank = np.flatnonzero(self._each_batch(texts, pairs, keep))
        if pooling == "tokens":
            for row in blank.tolist():
                tokens[row] = tokens[row][:0]
            return tokens
        pooled[blank] = np.nan
        return pooled

    def fill_mask(self, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
        """Return for each [MASK] of `text` (the tokenizer's own word for it), in order, its `top` most probable tokens.

        UsageError for a text without [MASK], and for a fine-tuned model, which has lost the masked-word head.
        """
        network = self._network(self.exact_dtype)
        if not isinstance(network, PretrainingModel):
            raise UsageError(f"{self.folder.path}: a fine-tuned model fills no masks; load the model it was made from")
        template, longest = self.tokenizer.template, self.config.max_len
        tokens = self.tokenizer.encode_masked(self.folder.cleaning(text))[:longest]
        ids = [*template.prefix, *tokens, *template.end]
        at = [position for position, token in enumerate(ids) if token == template.mask]
        if not at:
            mask = self.tokenizer.token(template.mask)
            raise UsageError(f"no {mask} in the first {longest} tokens of {text!r}; write {mask} for the word")
        with torch.inference_mode():
            row = torch.tensor([ids], device=self.device)
            hidden_KH = network.encoder(row, torch.zeros_like(row))[0, at]
            best = network.masked_lm(hidden_KH).float().softmax(-1).topk(min(top, self.config.vocab_size))
        return [
            [(self.tokenizer.token(token), p) for token, p in zip(tokens, shares, strict=True)]
            for tokens, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _network(self, dtype: torch.dtype) -> Any:
        """The network in `dtype` on the device, loaded when first needed."""
        if dtype not in self._networks:
            network: Any = self.folder.load(dtype).to(self.device).eval()
            if self.folder.is_fine_tuned:
                network.head = self._labelling
            self._networks[dtype] = network
        return self._networks[dtype]

    def _each_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        keep: Callable[[np.ndarray, Tensor, Tensor, Tensor | None], None],
    ) -> np.ndarray:
        """Call `keep(rows, input_ids, segment_ids, lengths)` for every batch; lengths None where nothing is padded.

        Returns `Sequences.blank`.
        """
        encoded = self.folder.encode(texts, pairs)
        size = _BATCH_TOKENS.get(self.device.type, _BATCH_TOKENS["cpu"])
        with torch.inference_mode():
            for batch in batches.batches(encoded, size):
                padded = int(batch.lengths.min()) < batch.input_ids.shape[1]
                lengths = torch.from_numpy(batch.lengths) if padded else None  # the encoder reads them on the CPU
                ids, segments = (torch.from_numpy(a).to(self.device) for a in (batch.input_ids, batch.segment_ids))
                keep(batch.rows, ids, segments, lengths)
        return encoded.blank


def predicted_labels(head: HeadConfig, scores: np.ndarray) -> np.ndarray:
    """Return label numbers int64 [N], or of several labels flags int64 [N, C], by the head's thresholds."""
    thresholds = head.calibration and head.calibration.thresholds
    if head.problem == MULTI:
        return (scores >= (THRESHOLD if thresholds is None else np.array(thresholds, np.float32))).astype(np.int64)
    if thresholds is not None and head.size == 2:
        return (scores[:, 1] >= np.float32(thresholds[1])).astype(np.int64)
    return scores.argmax(1)


def _prediction(head: HeadConfig, row: list[float], answer: Any) -> Prediction:
    if head.problem == REGRESSION:
        return Prediction(row[0], {})
    by_label = dict(zip(head.labels, row, strict=True))
    if head.problem == MULTI:
        return Prediction(tuple(label for label, flag in zip(head.labels, answer, strict=True) if flag), by_label)
    return Prediction(head.labels[answer], by_label)


def _texts(texts: Any) -> tuple[bool, list[str], Any]:
    """Return (whether it is one str, the texts, the Series' index or None); UsageError for anything else."""
    if isinstance(texts, str):
        return True, [texts], None
    pandas = sys.modules.get("pandas")
    index = texts.index if pandas is not None and isinstance(texts, pandas.Series) else None
    if index is None and not isinstance(texts, list | tuple | np.ndarray):
        raise UsageError(f"texts are a {type(texts).__name__}; expected a str, a list of str or a pandas Series")
    listed = list(texts)
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            missing = text is None or (isinstance(text, float) and math.isnan(text))
            remedy = "leave missing texts out, or write '' for them" if missing else "make it a str"
            raise UsageError(f"text {number} is {text!r}, a {type(text).__name__}; {remedy}")
    return False, listed, index


def _pairs(pairs: Any, texts: list[str]) -> list[str] | None:
    if pairs is None:
        return None
    _, second, _ = _texts(pairs)
    if len(second) != len(texts):
        raise UsageError(f"{len(texts)} texts and {len(second)} pairs; give one for each")
    return second


def _frame(predictions: list[Prediction], labels: Sequence[str], index: Any) -> Any:
    import pandas

    columns = [
        {"predicted": p.label, **{f"p_{name}": p.probabilities.get(name, math.nan) for name in labels}}
        for p in predictions
    ]
    return pandas.DataFrame(columns, index=index)
