"""The peer of bench_step.py: a step of transformers' BertForPreTraining in the loop that its Trainer runs."""

from __future__ import annotations

import importlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from tools.turns import WARM_UP, PeakMemory, Turn, clock
from twilbert.data.stream.micro_batch import MicroBatch
from twilbert.model.config import ModelConfig

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
}


def peer_turn(
    config: ModelConfig,
    dtype: torch.dtype,
    pool: list[MicroBatch],
    options: dict[str, Any],
    grouped: bool,
    representative: Callable[[list[tuple[int, int]], int], list[int]],
) -> Turn:
    """A turn: `accumulation` batches of the pool's samples, collated in the loop, and an update of the weights."""
    from transformers import DataCollatorForLanguageModeling, get_linear_schedule_with_warmup

    importlib.import_module("transformers.models.bert.modeling_bert")  # now: its code is no memory of a step
    device, n = torch.device(options["device"]), options["accumulation"]
    features = list(samples(pool))
    batches = draw_batches([len(f["input_ids"]) for f in features], options["tokens"], grouped)
    costs = [batch_cost(batch, features) for batch in batches]
    chosen = [batches[i] for i in representative(costs, n)]
    collate = DataCollatorForLanguageModeling(tokenizer_of(config.vocab_size), mlm_probability=0.15)
    memory = PeakMemory(device)
    torch.manual_seed(0)
    model = bert_of(config).to(device).train()
    optimizer = torch.optim.AdamW(decay_groups(model), lr=5e-5, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 10_000)
    autocast = torch.autocast(device.type, torch.bfloat16) if dtype == torch.bfloat16 else nullcontext()

    def turn(asked: str | None) -> dict[str, Any]:
        found: dict[str, Any] = {"padded": 0, "real": 0, "masked": 0}
        total = torch.zeros((), device=device)
        for batch in chosen[: 1 if asked == WARM_UP else n]:
            with clock(device, found):
                inputs = {key: value.to(device) for key, value in collate([features[i] for i in batch]).items()}
                with autocast:
                    loss = model(**inputs).loss
                loss = loss / n
                loss.backward()
                total += torch.where(loss.detach().isfinite(), loss.detach(), 0.0)
            found["padded"] += inputs["input_ids"].numel()
            found["real"] += int(inputs["attention_mask"].sum())
            found["masked"] += int((inputs["labels"] >= 0).sum())
        with clock(device, found, "update_seconds"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            model.zero_grad()
        return found | {"loss": float(total), "peak_bytes": memory.bytes()}

    return turn


def samples(pool: list[MicroBatch]) -> Iterator[dict[str, Any]]:
    """The samples of some micro-batches as a tokenizer would give them, with nothing masked."""
    for micro_batch in pool:
        ids = micro_batch.input_ids.astype(np.int64).reshape(-1)
        ids[micro_batch.masked_index] = micro_batch.masked_labels
        rows = zip(ids.reshape(micro_batch.input_ids.shape), micro_batch.segment_ids, micro_batch.lengths, strict=True)
        for (row, segments, length), label in zip(rows, micro_batch.rop_labels.tolist(), strict=True):
            own = row[:length].tolist()
            yield {
                "input_ids": own, "token_type_ids": segments[:length].tolist(),
                "special_tokens_mask": [int(token in (3, 4)) for token in own], "next_sentence_label": max(0, label),
            }  # fmt: skip


def draw_batches(lengths: list[int], tokens: int, grouped: bool) -> list[list[int]]:
    """An epoch over the samples in batches of one size, whose padded tokens come to `tokens` in the mean."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    def drawn(size: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        if grouped:
            order = list(LengthGroupedSampler(size, lengths=lengths, generator=generator))
        else:
            order = torch.randperm(len(lengths), generator=generator).tolist()
        return [order[at : at + size] for at in range(0, len(order) - size + 1, size)]

    def mean(size: int) -> float:
        return float(np.mean([size * max(lengths[i] for i in batch) for batch in drawn(size)]))

    return drawn(max(1, bisect_right(range(1, len(lengths) // 2), tokens, key=mean)))


def batch_cost(batch: list[int], features: list[dict[str, Any]]) -> tuple[int, int]:
    """(padded, real) tokens of a batch."""
    lengths = [len(features[i]["input_ids"]) for i in batch]
    return len(lengths) * max(lengths), sum(lengths)


def tokenizer_of(vocab_size: int) -> Any:
    """A tokenizer of that many entries for the collator, which pads and masks with it and encodes nothing."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    ordinary = [f"w{i}" for i in range(len(SPECIAL), vocab_size)]
    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *ordinary])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, "[UNK]")), **SPECIAL)


def bert_of(config: ModelConfig) -> nn.Module:
    """BertForPreTraining of the same sizes, without dropout."""
    from transformers import BertConfig, BertForPreTraining

    h, width = config.hidden_size, config.attention_width
    bert = BertForPreTraining(
        BertConfig(
            vocab_size=config.vocab_size, hidden_size=h, num_hidden_layers=config.n_encoders,
            num_attention_heads=config.n_heads, intermediate_size=4 * h, max_position_embeddings=config.n_positions,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    for layer in bert.bert.encoder.layer:
        own = layer.attention.self
        if width != own.all_head_size:
            own.query, own.key, own.value = (nn.Linear(h, width) for _ in range(3))
            layer.attention.output.dense = nn.Linear(width, h)
            own.all_head_size, own.attention_head_size = width, width // config.n_heads
            own.scaling = own.attention_head_size**-0.5
    if config.cross_sharing:
        bert.bert.encoder.layer = nn.ModuleList([bert.bert.encoder.layer[0]] * config.n_encoders)
    return bert


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Trainer's two groups; with its default decay of 0 they differ in nothing."""
    named = list(model.named_parameters())
    plain = [p for name, p in named if "bias" in name or "LayerNorm" in name]
    return [
        {"params": [p for name, p in named if "bias" not in name and "LayerNorm" not in name], "weight_decay": 0.0},
        {"params": plain, "weight_decay": 0.0},
    ]
