"""Random Januses and BAGELs of published and smaller shapes, made on the device they run on.

Cost does not depend on what weights say, so a benchmark needs no checkpoint. The vocabulary of the
tokenizer is the synthetic world's; the embedding and the head have the size that the shape names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
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
from unigame.backbones.bagel.configuration import FLUX_VAE, BagelConfig  # noqa: E402
from unigame.backbones.bagel.layout import (  # noqa: E402
    PICTURE_END,
    PICTURE_START,
    TEXT_END,
    TEXT_START,
)
from unigame.backbones.bagel.model import BagelBackbone  # noqa: E402
from unigame.backbones.bagel.modeling import BagelModel  # noqa: E402
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

# BAGEL-7B-MoT has 1,024 tokens read and 1,024 drawn, a language model of 28 layers of 3,584, eyes
# of 26 of 1,152, and an autoencoder of 128 to 512 channels. Here widths are an eighth (the
# autoencoder's a sixteenth, in fewer groups), layers and tokens a quarter: language model, eyes and
# autoencoder then share the arithmetic of a picture as they do there.
BAGELS: dict[str, Shape] = {
    "bagel_small": {
        "llm_config": {
            "vocab_size": 152_064 // 8,
            "hidden_size": 448,
            "intermediate_size": 2368,
            "num_hidden_layers": 7,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
        },
        "vit_config": {
            "hidden_size": 144,
            "intermediate_size": 538,
            "num_hidden_layers": 8,  # the last is not there, as in the published configuration
            "num_attention_heads": 2,
            "image_size": 980,
            "patch_size": 14,
        },
        "vae_config": {**FLUX_VAE, "block_out_channels": [8, 16, 32, 32], "norm_num_groups": 8},
        "image_size": 256,
        "vision_size": 224,
    },
    "bagel_tiny": {
        "llm_config": {
            "vocab_size": 256,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "vit_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 16,
            "patch_size": 4,
        },
        "vit_max_num_patch_per_side": 4,
        "max_latent_size": 4,
        "vae_config": {
            **FLUX_VAE,
            "block_out_channels": [32, 32],
            "layers_per_block": 1,
            "latent_channels": 4,
        },
        "image_size": 16,
        "vision_size": 16,
    },
}


def build(name: str, device: torch.device, dtype: torch.dtype) -> JanusBackbone:
    """A Janus: a shape of ``SHAPES`` by name, or a checkpoint: bundled name, folder or Hub id."""
    backbone = build_any(name, device, dtype)
    assert isinstance(backbone, JanusBackbone), "this benchmark is written for Janus"
    return backbone


def build_any(name: str, device: torch.device, dtype: torch.dtype) -> Backbone:
    """A random Janus or BAGEL by the name of its shape, or a checkpoint of any family."""
    if name in SHAPES:
        return random_janus(SHAPES[name], device, dtype)
    if name in BAGELS:
        return random_bagel(BAGELS[name], device, dtype)
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
    model = _random(lambda: JanusForConditionalGeneration(config), device, dtype)
    boi = tokenizer.convert_tokens_to_ids(BEGIN_IMAGE)
    model.generation_config = GenerationConfig(**ends, generation_kwargs={"boi_token_id": boi})
    return JanusBackbone(model, processor).to(device)


def random_bagel(shape: Shape, device: torch.device, dtype: torch.dtype) -> BagelBackbone:
    """A BAGEL of this shape with random weights and a small vocabulary; autoencoder in float32."""
    tokenizer = build_processor(vocabulary(), 16, 16).tokenizer
    marks = [TEXT_START, TEXT_END, PICTURE_START, PICTURE_END]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    model = _random(lambda: BagelModel(BagelConfig(**shape)), device, dtype)
    model.vae.float()
    return BagelBackbone(model, tokenizer).to(device)


def _random(make: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A model with random weights, made in ``dtype`` on the device."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # 7B in float32 first would need twice the card's memory
    try:
        with torch.device(device):
            return make()
    finally:
        torch.set_default_dtype(before)
