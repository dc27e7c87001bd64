"""Random Januses of published and smaller shapes, made on the device they run on.

Cost does not depend on what weights say, so a benchmark needs no checkpoint. The vocabulary of the
tokenizer is the synthetic world's; the embedding and the head have the size that the shape names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a clone can be measured without installing it

from unigame.backbones import load_backbone  # noqa: E402
from unigame.backbones.base import Backbone  # noqa: E402
from unigame.backbones.janus.layout import BEGIN_IMAGE, build_processor  # noqa: E402
from unigame.backbones.janus.model import JanusBackbone  # noqa: E402
from unigame.synthetic.questions import vocabulary  # noqa: E402

Shape = dict[str, Any]


def _pro(width: int, mlp: int, layers: int, heads: int, vision: int, depth: int) -> Shape:
    """A shape with what all Janus-Pro sizes share."""
    return {
        "image_size": 384,
        "patch": 16,
        "text": {
            "vocab_size": 102_400,
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 16_384,
        },
        "vision": {
            "hidden_size": vision,
            "num_hidden_layers": depth,
            "num_attention_heads": vision // 64,
        },
        "vq": {"num_embeddings": 16_384, "channel_multiplier": [1, 1, 2, 2, 4]},
    }


_SMALL = _pro(768, 2112, 12, 6, 384, 12)
# Group norms of 32 allow widths in steps of 32. Against the 1B model the language model has 1/14 of
# the arithmetic per token, and this decoder 1/16 per picture.
_SMALL["vq"] |= {"base_channels": 32, "latent_channels": 64}

SHAPES: dict[str, Shape] = {
    "janus_pro_7b": _pro(4096, 11_008, 30, 32, 1024, 24),
    "janus_pro_1b": _pro(2048, 5632, 24, 16, 1024, 24),
    "janus_pro_small": _SMALL,
    "tiny": {
        "image_size": 16,
        "patch": 4,
        "text": {
            "vocab_size": 256,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
        },
        "vision": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
        "vq": {
            "num_embeddings": 64,
            "channel_multiplier": [1, 1, 1],
            "base_channels": 32,
            "latent_channels": 32,
            "num_res_blocks": 0,
        },
    },
}


def build(name: str, device: torch.device, dtype: torch.dtype) -> JanusBackbone:
    """A Janus: a shape of ``SHAPES`` by name, or a checkpoint: bundled name, folder or Hub id."""
    backbone = build_any(name, device, dtype)
    assert isinstance(backbone, JanusBackbone), "this benchmark is written for Janus"
    return backbone


def build_any(name: str, device: torch.device, dtype: torch.dtype) -> Backbone:
    """A random Janus by the name of its shape, or a checkpoint of any family."""
    if name in SHAPES:
        return random_janus(SHAPES[name], device, dtype)
    return load_backbone(name, dtype=str(dtype).removeprefix("torch."), device=device)


def resized(shape: Shape, *, tokens: int | None = None, width: int | None = None) -> Shape:
    """The shape with N image tokens (a square number), or with another width of the LM."""
    side = shape["image_size"] if tokens is None else round(tokens**0.5) * shape["patch"]
    text = dict(shape["text"])
    if width is not None:
        ratio = width / text["hidden_size"]
        text["hidden_size"] = width
        text["intermediate_size"] = round(text["intermediate_size"] * ratio)
        for name in ("num_attention_heads", "num_key_value_heads"):
            text[name] = max(1, round(text[name] * ratio))
    return {**shape, "image_size": side, "text": text}


def random_janus(shape: Shape, device: torch.device, dtype: torch.dtype) -> JanusBackbone:
    """A Janus of this shape with random weights and a small vocabulary, made on the device."""
    side, patch = shape["image_size"], shape["patch"]
    tokens, width = (side // patch) ** 2, shape["text"]["hidden_size"]
    processor = build_processor(vocabulary(), side, tokens)
    tokenizer = processor.tokenizer
    ends = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = JanusConfig(
        text_config=LlamaConfig(**shape["text"], **ends, tie_word_embeddings=False),
        vision_config=JanusVisionConfig(
            **shape["vision"],
            image_size=side,
            patch_size=patch,
            projection_dim=width,
            num_image_tokens=tokens,
        ),
        vq_config=JanusVQVAEConfig(
            **shape["vq"],
            embed_dim=8,
            num_patches=side // patch,
            projection_dim=width,
            image_token_embed_dim=width,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids(processor.image_token),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # 7B in float32 first would need twice the card's memory
    try:
        with torch.device(device):
            model = JanusForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    boi = tokenizer.convert_tokens_to_ids(BEGIN_IMAGE)
    model.generation_config = GenerationConfig(**ends, generation_kwargs={"boi_token_id": boi})
    return JanusBackbone(model, processor).to(device)
