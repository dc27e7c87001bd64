"""BAGEL's language model: Qwen2 with norms of queries and keys, and each layer's weights twice.

A mixture of transformers (arXiv 2411.04996, 2505.14683): latents of a picture go through the
weights named ``..._moe_gen``, the generation expert; text, the eyes' tokens and the marks of
pictures go through the others, the understanding expert. In attention they meet. Names of modules
are those of the published weights.

Shape suffixes: B rows, L tokens, H width, A attention heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2MLP,
    Qwen2RotaryEmbedding,
    apply_rotary_pos_emb,
)

from unigame.backbones.bagel.attention import visible

GEN = "_moe_gen"


class RMSNorm(nn.Module):
    """Root mean square norm, computed in float32 at least."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """Norms over the last dimension."""
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(states.dtype)


def by_expert(
    states_BLH: Tensor,
    drawn: slice | None,
    understand: Callable[[Tensor], Tensor],
    generate: Callable[[Tensor], Tensor],
) -> Tensor:
    """``generate`` of the tokens that are ``drawn``, ``understand`` of the others, in order."""
    if drawn is None:
        return understand(states_BLH)
    first, end = drawn.start, drawn.stop
    others = understand(torch.cat([states_BLH[:, :first], states_BLH[:, end:]], dim=1))
    return torch.cat(
        [others[:, :first], generate(states_BLH[:, first:end]), others[:, first:]], dim=1
    )


class MoTAttention(nn.Module):
    """Attention over all tokens of a row, with projections and norms of each expert's own."""

    def __init__(self, config: Qwen2Config, layer: int) -> None:
        super().__init__()
        heads, groups, width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.hidden_size,
        )
        self.layer, self.head_dim = layer, width // heads
        self.num_key_value_groups = heads // groups  # read by transformers' sdpa
        for expert in ("", GEN):
            for name, count in (("q", heads), ("k", groups), ("v", groups)):
                projection = nn.Linear(width, count * self.head_dim, bias=True)
                self.add_module(f"{name}_proj{expert}", projection)
            output = nn.Linear(heads * self.head_dim, width, bias=False)
            self.add_module(f"o_proj{expert}", output)
            for name in ("q", "k"):
                self.add_module(f"{name}_norm{expert}", RMSNorm(self.head_dim, config.rms_norm_eps))

    def forward(
        self,
        states_BLH: Tensor,
        mask: Tensor,
        turns: tuple[Tensor, Tensor],
        drawn: slice | None,
        cache: Any,
    ) -> Tensor:
        """Attended states (B, L, H); ``turns`` are cosine and sine of the rotary positions."""
        query, key, value = (self._heads(states_BLH, name, drawn) for name in "qkv")
        query, key = apply_rotary_pos_emb(query, key, *turns)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        seen_BLAE, _ = sdpa_attention_forward(self, query, key, value, mask, is_causal=False)
        return by_expert(
            seen_BLAE.flatten(2),
            drawn,
            self.get_submodule("o_proj"),
            self.get_submodule(f"o_proj{GEN}"),
        )

    def _heads(self, states_BLH: Tensor, name: str, drawn: slice | None) -> Tensor:
        """Queries, keys or values, (B, A, L, E)."""

        def projected(expert: str) -> Callable[[Tensor], Tensor]:
            def run(part: Tensor) -> Tensor:
                heads = self.get_submodule(f"{name}_proj{expert}")(part)
                heads = heads.unflatten(-1, (-1, self.head_dim))
                return heads if name == "v" else self.get_submodule(f"{name}_norm{expert}")(heads)

            return run

        return by_expert(states_BLH, drawn, projected(""), projected(GEN)).transpose(1, 2)


class MoTLayer(GradientCheckpointingLayer):
    """Attention and MLP, each behind a norm, of each expert's own."""

    def __init__(self, config: Qwen2Config, layer: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = MoTAttention(config, layer)
        self.mlp, self.mlp_moe_gen = Qwen2MLP(config), Qwen2MLP(config)
        self.input_layernorm = RMSNorm(width, eps)
        self.input_layernorm_moe_gen = RMSNorm(width, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.post_attention_layernorm_moe_gen = RMSNorm(width, eps)

    def forward(
        self,
        states_BLH: Tensor,
        mask: Tensor,
        turns: tuple[Tensor, Tensor],
        drawn: slice | None = None,
        past_key_values: Any = None,
    ) -> Tensor:
        """The next layer's states (B, L, H)."""
        normed = by_expert(states_BLH, drawn, self.input_layernorm, self.input_layernorm_moe_gen)
        states_BLH = states_BLH + self.self_attn(normed, mask, turns, drawn, past_key_values)
        return states_BLH + by_expert(
            states_BLH,
            drawn,
            lambda part: self.mlp(self.post_attention_layernorm(part)),
            lambda part: self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(part)),
        )


class MoTModel(PreTrainedModel):
    """Embedding, layers and the last norms: the language model without its head."""

    config_class = Qwen2Config
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["MoTLayer"]

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            MoTLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = Qwen2RotaryEmbedding(config=config)
        self.post_init()

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        drawn: slice | None = None,
        block_ids: Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the last norm.

        Args:
            inputs_embeds: (B, L, H).
            attention_mask: (B, cached + L), 0 at padding; default: no padding.
            position_ids: (B, L), rotary positions.
            past_key_values: a cache of transformers, of rows as ``visible`` says.
            use_cache: unused; a cache that is given is filled.
            drawn: places of a noised picture's latents, the same in each row.
            block_ids: (B, L), numbers of blocks; default: the positions.
        """
        del use_cache
        rows, length = inputs_embeds.shape[:2]
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(cached, cached + length, device=inputs_embeds.device)
            position_ids = position_ids.expand(rows, -1)
        if attention_mask is None:
            attention_mask = position_ids.new_ones(rows, cached + length)
        blocks = position_ids if block_ids is None else block_ids
        mask = visible(blocks, attention_mask, drawn)
        turns = self.rotary_emb(inputs_embeds, position_ids)
        states = inputs_embeds
        for layer in self.layers:
            states = layer(states, mask, turns, drawn=drawn, past_key_values=past_key_values)
        states = by_expert(states, drawn, self.norm, self.norm_moe_gen)
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=past_key_values)


class MoTForCausalLM(nn.Module):
    """The language model and its output head."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.model = MoTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
