"""The encoder: token ids to hidden states.

    ids, segments ─ Embeddings ─▶ x ─ block 0 ─ … ─ block L-1 ─▶ hidden
    block:  y = norm(x + attention(x));  out = norm(y + feed_forward(y))     (or + memory(y))
    pre-norm (architecture.py):  y = x + attention(norm(x));  out = y + feed_forward(norm(y));  a last norm at the end

Letters: B samples, T positions (padded at the end), H hidden, E embedding, N heads, D channels of a head,
M = B·T flat positions, or the real ones among them.
Attention is masked in a batch that holds padding. In training on a CPU padding is not computed either (packing.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twilbert.errors import TwilbertError
from twilbert.model.architecture import ACTIVATIONS, Architecture
from twilbert.model.config import ModelConfig, layer_blocks
from twilbert.model.layers import Linear, Table, gelu
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
    """Sum of token, position and segment embeddings, projected to H where factorised."""

    def __init__(self, config: ModelConfig, architecture: Architecture) -> None:
        super().__init__()
        width, std = config.embedding_size, config.initializer_range
        rows = config.n_positions if architecture.positions is None else architecture.positions
        self.token = Table(config.vocab_size + architecture.spare_row, width, std)
        self.position = Table(rows, width, std) if rows else None
        self.segment = Table(architecture.segments, width, std) if architecture.segments else None
        self.projection = Linear(width, config.hidden_size, std) if config.factorize_embeddings else None
        self.norm = architecture.norm(width) if architecture.embedding_norm else None
        self.input_dropout, self.dropout = config.input_dropout, architecture.embedding_dropout
        self.first_position = architecture.first_position
        self.n_positions = rows - self.first_position if rows else None

    def forward(self, input_ids_BT: Tensor, segment_ids_BT: Tensor, position_ids_BT: Tensor | None = None) -> Tensor:
        """→ [B, T, H]. TwilbertError when T is more than the model has positions for."""
        length = input_ids_BT.shape[1]
        if self.n_positions is not None and length > self.n_positions:
            raise TwilbertError(
                f"a sequence of {length} tokens, but the model has {self.n_positions} positions; "
                "cut the texts shorter, or train with a larger max_len"
            )
        x_BTE = self.token(input_ids_BT.long())
        if self.segment is not None:
            segments_BT = segment_ids_BT.long()
            x_BTE = x_BTE + self.segment(segments_BT if len(self.segment.weight) > 1 else torch.zeros_like(segments_BT))
        if self.position is not None:
            positions = position_ids_BT
            if positions is None:
                positions = torch.arange(length, device=input_ids_BT.device)
            x_BTE = x_BTE + self.position(positions.long() + self.first_position)
        if self.norm is not None:
            x_BTE = self.norm(x_BTE)
        x_BTH = x_BTE if self.projection is None else gelu(self.projection(x_BTE))
        if self.training and self.input_dropout > 0:
            # Spatial dropout: a channel is dropped at all positions of a sample at once.
            x_BTH = x_BTH * F.dropout(x_BTH.new_ones(x_BTH.shape[0], 1, x_BTH.shape[2]), self.input_dropout)
        return F.dropout(x_BTH, self.dropout, self.training) if self.dropout else x_BTH


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, eq. 1); N·D need not be H.

    Rows of `qkv.weight`: queries, keys, values, each [N, D] in this order.
    """

    def __init__(self, config: ModelConfig, architecture: Architecture, layer: int) -> None:
        super().__init__()
        width, std, bias = config.attention_width, config.initializer_range, architecture.attention_bias
        self.n_heads = config.n_heads
        self.qkv = Linear(config.hidden_size, 3 * width, std, bias=bias)
        self.out = Linear(width, config.hidden_size, std, bias=bias)
        self.dropout = architecture.attention_dropout
        self.window = None if architecture.attends_globally(layer) else architecture.window
        self.theta = architecture.theta(layer)

    def forward(self, x_BTH: Tensor, padding: Padding | Packing | None) -> Tensor:
        """[B, T, H] → [B, T, H]; packed rows [M, H] → [M, H]."""
        if isinstance(padding, Packing):
            return self.out(self._attend_groups(self.qkv(x_BTH), padding))
        b, t, _ = x_BTH.shape
        qkv_BT3ND = self.qkv(x_BTH).view(b, t, *self._heads)
        bias_B11T = None if padding is None else padding.bias_B11T
        return self.out(self._attend(qkv_BT3ND, bias_B11T).reshape(b, t, self.out.in_features))

    @property
    def _heads(self) -> tuple[int, int, int]:
        return 3, self.n_heads, self.qkv.out_features // (3 * self.n_heads)

    def _attend(self, qkv_BT3ND: Tensor, bias_B11T: Tensor | None) -> Tensor:
        if self.theta is not None:
            qkv_BT3ND = rotated(qkv_BT3ND, self.theta)
        bias = bias_B11T
        if self.window is not None and qkv_BT3ND.shape[1] > self.window + 1:
            outside_11TT = _outside_window(qkv_BT3ND.shape[1], self.window, qkv_BT3ND)
            bias = outside_11TT if bias is None else torch.maximum(bias + outside_11TT, outside_11TT.min())
        attend = _attend_sdpa if qkv_BT3ND.is_cuda else _attend_matmul
        return attend(qkv_BT3ND, bias, self.dropout if self.training else 0.0)

    def _attend_groups(self, qkv_M: Tensor, packing: Packing) -> Tensor:
        qkv_P = packing.group(qkv_M)
        attended = [
            self._attend(qkv_P[start : start + n * t].view(n, t, *self._heads), bias_n11t).reshape(n * t, -1)
            for start, n, t, bias_n11t in packing.groups
        ]
        return packing.ungroup(torch.cat(attended))


def rotated(qkv_BT3ND: Tensor, theta: float) -> Tensor:
    """Rotate queries and keys by their positions (Su et al. 2021), pairs of channels i and i + D/2; values stay."""
    t, d = qkv_BT3ND.shape[1], qkv_BT3ND.shape[-1]
    frequency = theta ** (-torch.arange(0, d, 2, device=qkv_BT3ND.device, dtype=torch.float32) / d)
    angle_TD = (torch.arange(t, device=qkv_BT3ND.device)[:, None] * frequency).repeat(1, 2)
    cos, sin = (f(angle_TD).to(qkv_BT3ND.dtype)[:, None, None] for f in (torch.cos, torch.sin))
    qk, v = qkv_BT3ND[:, :, :2], qkv_BT3ND[:, :, 2:]
    first, second = qk.chunk(2, -1)
    return torch.cat((qk * cos + torch.cat((-second, first), -1) * sin, v), 2)


def _outside_window(positions: int, window: int, like: Tensor) -> Tensor:
    """[1, 1, T, T]: 0 up to `window` tokens away, the lowest finite number beyond."""
    at_T = torch.arange(positions, device=like.device)
    far_TT = (at_T[:, None] - at_T).abs() > window
    bias_TT = torch.zeros(positions, positions, dtype=like.dtype, device=like.device)
    return bias_TT.masked_fill_(far_TT, torch.finfo(like.dtype).min)[None, None]


def _attend_sdpa(qkv_BT3ND: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attention by the device's fused kernels → [B, T, N, D]; `bias` [B or 1, 1, T or 1, T]."""
    q_BNTD, k_BNTD, v_BNTD = qkv_BT3ND.permute(2, 0, 3, 1, 4).unbind(0)
    b, n, t, _ = q_BNTD.shape
    mask = None if bias is None else bias.expand(b, n, t, t)
    attended = F.scaled_dot_product_attention(q_BNTD, k_BNTD, v_BNTD, attn_mask=mask, dropout_p=dropout)
    return attended.transpose(1, 2)


def _attend_matmul(qkv_BT3ND: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attention by plain matrix products: on CPUs several times faster in bf16 than the fused kernel."""
    b, t, _, n, d = qkv_BT3ND.shape
    q_XTD, k_XTD, v_XTD = qkv_BT3ND.permute(2, 0, 3, 1, 4).reshape(3, b * n, t, d).unbind(0)  # X = B·N
    k_XDT = k_XTD.transpose(1, 2)
    if bias is None:
        scores_XTT = torch.bmm(q_XTD * d**-0.5, k_XDT)
    else:
        rows = bias.shape[2]
        bias_X = bias.expand(b, n, rows, t).reshape(b * n, rows, t)
        scores_XTT = torch.baddbmm(bias_X, q_XTD, k_XDT, alpha=d**-0.5)
    weights_XTT = scores_XTT.softmax(-1)
    if dropout:
        weights_XTT = F.dropout(weights_XTT, dropout)
    return torch.bmm(weights_XTT, v_XTD).view(b, n, t, d).transpose(1, 2)


class FeedForward(nn.Module):
    """W2·act(W1·y + b1) + b2; gated: W2·(act(u)·g) where W1·y is u and g."""

    def __init__(self, config: ModelConfig, architecture: Architecture) -> None:
        super().__init__()
        width, std, bias = config.hidden_size, config.initializer_range, architecture.feed_forward_bias
        inner = architecture.inner_size or 4 * width
        self.gated, self.activate = architecture.gated, ACTIVATIONS[architecture.activation]
        self.up = Linear(width, inner * (2 if self.gated else 1), std, bias=bias)
        self.down = Linear(inner, width, std, bias=bias)

    def forward(self, y_BTH: Tensor) -> Tensor:
        if not self.gated:
            return self.down(self.activate(self.up(y_BTH)))
        activated, gate = self.up(y_BTH).chunk(2, -1)
        return self.down(self.activate(activated) * gate)


class EncoderBlock(nn.Module):
    """One layer; `memory` replaces its feed-forward part by a product-key memory with its own dropouts."""

    def __init__(self, config: ModelConfig, architecture: Architecture, layer: int, *, memory: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention = Attention(config, architecture, layer)
        self.pre_norm = architecture.pre_norm
        is_first = self.pre_norm and layer == 0  # after the norm of the embeddings it would be a second one
        self.attention_norm = nn.Identity() if is_first else architecture.norm(width)
        self.feed_forward = None if memory else FeedForward(config, architecture)
        self.memory = ProductKeyMemory(config) if memory else None
        self.output_norm = architecture.norm(width)
        self.output_dropout = config.output_dropout
        self.attention_output_dropout = config.output_dropout if architecture.attention_output_dropout else 0.0

    def forward(self, x_BTH: Tensor, padding: Padding | Packing | None) -> Tensor:
        """[B, T, H] → [B, T, H]; packed rows [M, H] → [M, H]."""
        read_BTH = self.attention_norm(x_BTH) if self.pre_norm else x_BTH
        y_BTH = x_BTH + F.dropout(self.attention(read_BTH, padding), self.attention_output_dropout, self.training)
        if self.pre_norm:
            return y_BTH + self._feed(self.output_norm(y_BTH), padding)
        y_BTH = self.attention_norm(y_BTH)
        return self.output_norm(y_BTH + self._feed(y_BTH, padding))

    def _feed(self, y_BTH: Tensor, padding: Padding | Packing | None) -> Tensor:
        if self.memory is not None:
            return _read_memory(self.memory, y_BTH, padding)
        assert self.feed_forward is not None
        return F.dropout(self.feed_forward(y_BTH), self.output_dropout, self.training)


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

    def __init__(self, config: ModelConfig, architecture: Architecture | None = None) -> None:
        """`architecture`: None for the original's."""
        super().__init__()
        architecture = architecture or Architecture()
        self.config = config
        self.embeddings = Embeddings(config, architecture)
        self.layer_blocks = [str(owner) for owner in layer_blocks(config)]
        memory = {str(layer) for layer in config.memory_layers}
        owners = dict.fromkeys(self.layer_blocks)
        self.blocks = nn.ModuleDict(
            {name: EncoderBlock(config, architecture, int(name), memory=name in memory) for name in owners}
        )
        self.final_norm = architecture.norm(config.hidden_size) if architecture.pre_norm else None

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
            return packing.unpack(self._layers(packing.pack(x_BTH), packing))
        return self._layers(x_BTH, find_padding(lengths_B, x_BTH))

    def _layers(self, x: Tensor, padding: Padding | Packing | None) -> Tensor:
        for name in self.layer_blocks:
            x = self.blocks[name](x, padding)
        return x if self.final_norm is None else self.final_norm(x)
