"""Single tokens through a Llama-type language model on a CPU, without transformers' bookkeeping.

Free drawing feeds hundreds of single tokens to a few rows. ``LlamaModel`` then spends its time on
masks, rotary tables, a cache that is copied to grow by one, and many operations on little data.
Here keys and values have their final place from the beginning, tables are made once, and a step is
the bare arithmetic of the layers. Hidden states stand in columns, since BLAS is faster for W x than
for x W^T where x is narrow; weights of norms and adapters (LoRA) are multiplied into matrices.

Shape suffixes: B rows (columns of hidden states), L prompt tokens, R room (all tokens of a row),
H width, A heads, G heads of keys and values, X = A + 2 G, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import LlamaModel
from transformers.activations import SiLUActivation

from unigame.backbones.common import lora
from unigame.backbones.common.fast.prompt_cache import read_prompts
from unigame.backbones.common.layout import PaddedTokens

WEIGHTS_AT_MOST = 4 << 30
"""Bytes of the language model up to which its weights are copied into columns' order."""


def supports(model: Any) -> bool:
    """Whether it is a plain float32 Llama on a CPU, of a size to copy; LoRA may be on it."""
    if not isinstance(model, LlamaModel) or not len(model.layers):
        return False
    weights = list(model.layers.parameters())
    mlp, rope = model.layers[0].mlp, getattr(model.config, "rope_parameters", None) or {}
    return (
        all(p.dtype == torch.float32 and p.device.type == "cpu" for p in weights)
        and not any(isinstance(p, DTensor) for p in weights)  # shards (FSDP2)
        and not torch.is_autocast_enabled("cpu")
        and sum(p.numel() for p in weights) * 4 <= WEIGHTS_AT_MOST
        and isinstance(getattr(mlp, "act_fn", None), nn.SiLU | SiLUActivation)
        and rope.get("rope_type", "default") == "default"
        and all(lora.effective_weight(layer) is not None for layer in _linear_layers(model))
    )


class CpuLlama:
    """The model with room for all tokens to come: ``start`` with the prompts, then ``step``.

    Args:
        model: without its head, in evaluation mode; see ``supports``.
        tokens: the left-padded prompts' mask and positions.
        room: tokens that will be fed after the prompts, at most.
    """

    def __init__(self, model: LlamaModel, tokens: PaddedTokens, room: int) -> None:
        self.model, self.tokens = model, tokens
        self.begun = self.filled = tokens.mask_BL.shape[1]
        self.room = self.filled + room
        self.blocks = [_Block(layer) for layer in model.layers]
        self.last_norm = model.norm.weight[:, None] * model.norm.weight.numel() ** 0.5
        self.floor = _floor(model.norm)

    def start(self, embeds_BLH: Tensor) -> Tensor:
        """The newest hidden states (B, H) behind the prompts."""
        hidden_BH, cache = read_prompts(self.model, embeds_BLH, self.tokens)
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            block.remember(layer.keys, layer.values, self.room)
        ahead_R = torch.arange(self.room - self.filled)
        positions_BR = self.tokens.positions_BL[:, -1:] + 1 + ahead_R
        cos, sin = self.model.rotary_emb(embeds_BLH, positions_BR)
        half = sin.shape[-1] // 2
        sin[..., :half].neg_()  # of (x2, x1) * sin, in the place of (-x2, x1) * sin
        self.cos_R1DB = cos.permute(1, 2, 0).unsqueeze(1).contiguous()
        self.sin_R1DB = sin.permute(1, 2, 0).unsqueeze(1).contiguous()
        heads = self.blocks[0].heads
        hidden_B1L = self.tokens.mask_BL[:, None] == 0
        bias = torch.zeros(len(embeds_BLH), 1, self.room)
        bias[..., : self.filled].masked_fill_(hidden_B1L, float("-inf"))
        self.bias_P1R = bias.repeat_interleave(heads, 0)
        return hidden_BH

    def step(self, embeds_B1H: Tensor) -> Tensor:
        """The newest hidden states (B, H) behind one further token of every row."""
        assert embeds_B1H.shape[1] == 1, "one token at a time"
        index, place = self.filled - self.begun, self.filled
        cos, sin = self.cos_R1DB[index], self.sin_R1DB[index]
        self.filled += 1
        bias = self.bias_P1R[..., : self.filled]
        hidden_HB = embeds_B1H[:, 0].T
        for block in self.blocks:
            hidden_HB = hidden_HB + block.attend(hidden_HB, cos, sin, bias, place)
            hidden_HB = hidden_HB + block.transform(hidden_HB)
        return (_unit(hidden_HB, self.floor) * self.last_norm).T


class _Block:
    """One layer of the model, its weights as four matrices, and its keys and values."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.scaling, self.width = float(attention.scaling), int(attention.head_dim)
        self.floor_1 = _floor(layer.input_layernorm)
        self.floor_2 = _floor(layer.post_attention_layernorm)
        self.qkv = _joined(
            layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj
        )
        self.out = _matrix(attention.o_proj)
        self.gate_up = _joined(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj)
        self.down = _matrix(mlp.down_proj)
        self.heads = self.out.shape[1] // self.width

    def remember(self, keys_BGLD: Tensor, values_BGLD: Tensor, room: int) -> None:
        """Copy the prompts' keys and values to where more will follow."""
        rows, groups, filled, width = keys_BGLD.shape
        self.keys_BGRD = keys_BGLD.new_empty(rows, groups, room, width)
        self.values_BGRD = values_BGLD.new_empty(rows, groups, room, width)
        self.keys_BGRD[:, :, :filled] = keys_BGLD
        self.values_BGRD[:, :, :filled] = values_BGLD

    def attend(self, hidden_HB: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, t: int) -> Tensor:
        """What attention adds, (H, B)."""
        rows, groups = self.keys_BGRD.shape[:2]
        mixed_XDB = (self.qkv @ _unit(hidden_HB, self.floor_1)).view(-1, self.width, rows)
        turning, value = mixed_XDB[:-groups], mixed_XDB[-groups:]
        turned = torch.addcmul(turning * cos, turning.roll(self.width // 2, 1), sin)
        self.keys_BGRD[:, :, t] = turned[-groups:].permute(2, 0, 1)
        self.values_BGRD[:, :, t] = value.permute(2, 0, 1)
        keys, values = self.keys_BGRD[:, :, : t + 1], self.values_BGRD[:, :, : t + 1]
        # Heads that share keys and values stand beside each other.
        query = turned[:-groups].permute(2, 0, 1).reshape(rows * groups, -1, self.width)
        scores = torch.baddbmm(
            bias.view(rows * groups, -1, t + 1),
            query,
            keys.flatten(0, 1).mT,
            alpha=self.scaling,
        )
        seen = torch.bmm(scores.softmax(-1), values.flatten(0, 1))
        return self.out @ seen.view(rows, -1).T

    def transform(self, hidden_HB: Tensor) -> Tensor:
        """What the MLP adds, (H, B)."""
        gate, up = (self.gate_up @ _unit(hidden_HB, self.floor_2)).chunk(2)
        return self.down @ (F.silu(gate) * up)


def _unit(hidden_HB: Tensor, floor: Tensor) -> Tensor:
    """Columns of length one, as far as the norm's epsilon allows: RMS norm without sqrt(H)."""
    length_1B = torch.linalg.vector_norm(hidden_HB, dim=0, keepdim=True)
    return hidden_HB / torch.hypot(length_1B, floor)


def _floor(norm: Any) -> Tensor:
    return torch.tensor((norm.weight.numel() * norm.variance_epsilon) ** 0.5)


def _joined(norm: Any, *layers: nn.Module) -> Tensor:
    """The layers' matrices below each other, with the weight of the norm before them inside."""
    whole = torch.cat([_matrix(layer) for layer in layers])
    return whole * (norm.weight * norm.weight.numel() ** 0.5)


def _matrix(layer: nn.Module) -> Tensor:
    weight = lora.effective_weight(layer)
    assert weight is not None, "see supports"
    return weight


def _linear_layers(model: LlamaModel) -> list[nn.Module]:
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    return [
        layer
        for block in model.layers
        for layer in (
            *(getattr(block.self_attn, name) for name in names),
            block.mlp.gate_proj,
            block.mlp.up_proj,
            block.mlp.down_proj,
        )
    ]
