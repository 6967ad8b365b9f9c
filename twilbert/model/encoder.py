"""The encoder: token ids to hidden states.

    ids, segments ─ Embeddings ─▶ x ─ block 0 ─ … ─ block L-1 ─▶ hidden
    block:  y = norm(x + attention(x));  out = norm(y + feed_forward(y))     (or + memory(y))

Letters: B samples, T positions (padded at the end), H hidden, E embedding, N heads, D channels of a head,
M = B·T flat positions, or the real ones among them.
Attention is masked in a batch that holds padding. In training on a CPU padding is not computed either (packing.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twilbert.errors import TwilbertError
from twilbert.model.config import ModelConfig, layer_blocks
from twilbert.model.layers import LayerNorm, Linear, Table, gelu
from twilbert.model.memory import ProductKeyMemory
from twilbert.model.packing import Packing, find_packing


class Padding:
    """The positions of a batch's padding, computed once for all layers."""

    def __init__(self, lengths_B: Tensor, positions: int, hidden_BTH: Tensor) -> None:
        device, dtype = hidden_BTH.device, hidden_BTH.dtype
        position_T = torch.arange(positions, device=device)
        self.real_BT = position_T < lengths_B.to(device)[:, None]
        # The lowest finite number, not -inf: a row without any real token would otherwise give NaN.
        lowest = torch.finfo(dtype).min
        self.bias_B11T = torch.zeros(self.real_BT.shape, dtype=dtype, device=device).masked_fill_(~self.real_BT, lowest)
        self.bias_B11T = self.bias_B11T[:, None, None, :]
        self._real_M: Tensor | None = None

    @property
    def real_M(self) -> Tensor:
        """Flat indices (into B·T) of the real tokens, int64 [M]."""
        if self._real_M is None:
            self._real_M = self.real_BT.reshape(-1).nonzero()[:, 0]
        return self._real_M


def find_padding(lengths_B: Tensor | None, hidden_BTH: Tensor) -> Padding | None:
    """Return the batch's padding, or None where every position is real (or no lengths are given)."""
    positions = hidden_BTH.shape[1]
    if lengths_B is None or not bool((lengths_B < positions).any()):
        return None
    return Padding(lengths_B, positions, hidden_BTH)


class Embeddings(nn.Module):
    """Sum of token, position and segment embeddings, projected to H where factorised. No norm on the sum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, std = config.embedding_size, config.initializer_range
        self.token = Table(config.vocab_size + 1, width, std)
        self.position = Table(config.n_positions, width, std)
        self.segment = Table(2, width, std)
        self.projection = Linear(width, config.hidden_size, std) if config.factorize_embeddings else None
        self.input_dropout = config.input_dropout
        self.n_positions = config.n_positions

    def forward(self, input_ids_BT: Tensor, segment_ids_BT: Tensor, position_ids_BT: Tensor | None = None) -> Tensor:
        """→ [B, T, H]. TwilbertError when T is more than the model has positions for."""
        length = input_ids_BT.shape[1]
        if length > self.n_positions:
            raise TwilbertError(
                f"a sequence of {length} tokens, but the model has {self.n_positions} positions; "
                "cut the texts shorter, or train with a larger max_len"
            )
        position_ids = torch.arange(length, device=input_ids_BT.device) if position_ids_BT is None else position_ids_BT
        x_BTE = self.token(input_ids_BT.long()) + self.segment(segment_ids_BT.long())
        x_BTE = x_BTE + self.position(position_ids.long())
        x_BTH = x_BTE if self.projection is None else gelu(self.projection(x_BTE))
        if self.training and self.input_dropout > 0:
            # Spatial dropout: a channel is dropped at all positions of a sample at once.
            x_BTH = x_BTH * F.dropout(x_BTH.new_ones(x_BTH.shape[0], 1, x_BTH.shape[2]), self.input_dropout)
        return x_BTH


class Attention(nn.Module):
    """Multi-head self-attention without biases (Vaswani et al. 2017, eq. 1); N·D need not be H.

    Rows of `qkv.weight`: queries, keys, values, each [N, D] in this order.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, std = config.attention_width, config.initializer_range
        self.n_heads = config.n_heads
        self.qkv = Linear(config.hidden_size, 3 * width, std, bias=False)
        self.out = Linear(width, config.hidden_size, std, bias=False)

    def forward(self, x_BTH: Tensor, padding: Padding | Packing | None) -> Tensor:
        """[B, T, H] → [B, T, H]; packed rows [M, H] → [M, H]."""
        if isinstance(padding, Packing):
            return self.out(self._attend_groups(self.qkv(x_BTH), padding))
        b, t, _ = x_BTH.shape
        qkv_BT3ND = self.qkv(x_BTH).view(b, t, *self._heads)
        bias_B11T = None if padding is None else padding.bias_B11T
        attend = _attend_sdpa if x_BTH.is_cuda else _attend_matmul
        return self.out(attend(qkv_BT3ND, bias_B11T).reshape(b, t, self.out.in_features))

    @property
    def _heads(self) -> tuple[int, int, int]:
        return 3, self.n_heads, self.qkv.out_features // (3 * self.n_heads)

    def _attend_groups(self, qkv_M: Tensor, packing: Packing) -> Tensor:
        qkv_P = packing.group(qkv_M)
        attended = [
            _attend_matmul(qkv_P[start : start + n * t].view(n, t, *self._heads), bias_n11t).reshape(n * t, -1)
            for start, n, t, bias_n11t in packing.groups
        ]
        return packing.ungroup(torch.cat(attended))


def _attend_sdpa(qkv_BT3ND: Tensor, bias_B11T: Tensor | None) -> Tensor:
    """Attention by the device's fused kernels → [B, T, N, D]."""
    q_BNTD, k_BNTD, v_BNTD = qkv_BT3ND.permute(2, 0, 3, 1, 4).unbind(0)
    b, n, t, _ = q_BNTD.shape
    mask = None if bias_B11T is None else bias_B11T.expand(b, n, t, t)
    return F.scaled_dot_product_attention(q_BNTD, k_BNTD, v_BNTD, attn_mask=mask).transpose(1, 2)


def _attend_matmul(qkv_BT3ND: Tensor, bias_B11T: Tensor | None) -> Tensor:
    """Attention by plain matrix products: on CPUs several times faster in bf16 than the fused kernel."""
    b, t, _, n, d = qkv_BT3ND.shape
    q_XTD, k_XTD, v_XTD = qkv_BT3ND.permute(2, 0, 3, 1, 4).reshape(3, b * n, t, d).unbind(0)  # X = B·N
    k_XDT = k_XTD.transpose(1, 2)
    if bias_B11T is None:
        scores_XTT = torch.bmm(q_XTD * d**-0.5, k_XDT)
    else:
        bias_X1T = bias_B11T.expand(b, n, 1, t).reshape(b * n, 1, t)
        scores_XTT = torch.baddbmm(bias_X1T, q_XTD, k_XDT, alpha=d**-0.5)
    return torch.bmm(scores_XTT.softmax(-1), v_XTD).view(b, n, t, d).transpose(1, 2)


class FeedForward(nn.Module):
    """W2·gelu(W1·y + b1) + b2, of inner width 4H."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, std = config.hidden_size, config.initializer_range
        self.up = Linear(width, 4 * width, std)
        self.down = Linear(4 * width, width, std)

    def forward(self, y_BTH: Tensor) -> Tensor:
        return self.down(gelu(self.up(y_BTH)))


class EncoderBlock(nn.Module):
    """One post-norm layer; `memory` replaces its feed-forward part by a product-key memory with its own dropouts."""

    def __init__(self, config: ModelConfig, *, memory: bool) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = LayerNorm(config.hidden_size)
        self.feed_forward = None if memory else FeedForward(config)
        self.memory = ProductKeyMemory(config) if memory else None
        self.output_norm = LayerNorm(config.hidden_size)
        self.output_dropout = config.output_dropout

    def forward(self, x_BTH: Tensor, padding: Padding | Packing | None) -> Tensor:
        """[B, T, H] → [B, T, H]; packed rows [M, H] → [M, H]."""
        attended_BTH = F.dropout(self.attention(x_BTH, padding), self.output_dropout, self.training)
        y_BTH = self.attention_norm(x_BTH + attended_BTH)
        if self.memory is not None:
            return self.output_norm(y_BTH + _read_memory(self.memory, y_BTH, padding))
        assert self.feed_forward is not None
        fed_BTH = F.dropout(self.feed_forward(y_BTH), self.output_dropout, self.training)
        return self.output_norm(y_BTH + fed_BTH)


def _read_memory(memory: ProductKeyMemory, y_BTH: Tensor, padding: Padding | Packing | None) -> Tensor:
    """The memory's output at real tokens, zero at padding, which would distort its statistics."""
    if isinstance(padding, Packing):
        return padding.fill(memory(y_BTH[: padding.n_real]))
    y_MH = y_BTH.reshape(-1, y_BTH.shape[-1])
    if padding is None:
        return memory(y_MH).view_as(y_BTH)
    read_MH = memory(y_MH.index_select(0, padding.real_M))
    return torch.zeros_like(y_MH).index_copy(0, padding.real_M, read_MH).view_as(y_BTH)


class Encoder(nn.Module):
    """Token ids → hidden states.

    Blocks are named by their layer, "0" … "L-1"; a shared block by the first layer that uses it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layer_blocks = [str(owner) for owner in layer_blocks(config)]
        memory = {str(layer) for layer in config.memory_layers}
        owners = dict.fromkeys(self.layer_blocks)
        self.blocks = nn.ModuleDict({name: EncoderBlock(config, memory=name in memory) for name in owners})

    def forward(
        self,
        input_ids_BT: Tensor,
        segment_ids_BT: Tensor,
        lengths_B: Tensor | None = None,
        position_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """→ hidden states [B, T, H], undefined at padding. B may be 0.

        `lengths_B` counts the real tokens of each sample (None: no padding); in host memory it needs no synchronisation
        with a GPU. `position_ids_BT` replaces 0, 1, 2, ….
        """
        x_BTH = self.embeddings(input_ids_BT, segment_ids_BT, position_ids_BT)
        packing = find_packing(lengths_B, x_BTH) if self.training else None
        if packing is not None:
            x_MH = packing.pack(x_BTH)
            for name in self.layer_blocks:
                x_MH = self.blocks[name](x_MH, packing)
            return packing.unpack(x_MH)
        padding = find_padding(lengths_B, x_BTH)
        for name in self.layer_blocks:
            x_BTH = self.blocks[name](x_BTH, padding)
        return x_BTH
