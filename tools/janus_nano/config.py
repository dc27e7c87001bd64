"""What the model is made of."""

from __future__ import annotations

from transformers import JanusConfig

from tools.common.pictures import PATCH_PX, PX, TOKENS, WIDTH

CODES = 2048


def nano_config(vocab_size: int, image_token_id: int, pad_token_id: int) -> JanusConfig:
    """The *real* Janus configuration classes, small: 81 tokens read, 81 codes drawn.

    GroupNorm(32) is fixed in the class, so every channel count is a multiple of 32. A decoder of 32
    channels takes a third of the time of one of 64, and every candidate of the game is drawn by it.
    """
    vision = {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": PX,
        "patch_size": PATCH_PX,
        "projection_dim": WIDTH,
        "num_image_tokens": TOKENS,
        "depth": 2,
    }
    vq = {
        "embed_dim": 8,
        "num_embeddings": CODES,
        "latent_channels": 64,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 2],
        "num_res_blocks": 0,
        "num_patches": PX // PATCH_PX,
        "projection_dim": WIDTH,
        "image_token_embed_dim": WIDTH,
    }
    text = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "vocab_size": vocab_size,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 200.0},
        "tie_word_embeddings": False,
        "pad_token_id": pad_token_id,
    }
    return JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq,
        image_token_id=image_token_id,
        tie_word_embeddings=False,
    )
