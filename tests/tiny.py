"""Tiny random models in the real Hub format, for tests that need weights but not skill."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)
from transformers.models.janus.processing_janus import JanusProcessor

from unigame.backbones.base import Backbone
from unigame.backbones.janus.layout import BEGIN_IMAGE, build_processor
from unigame.backbones.janus.load import from_pretrained
from unigame.backbones.janus.model import JanusBackbone

VOCAB_WORDS = (
    "what colour is the circle square triangle cross red green blue yellow how many are there "
    "one two three yes no a an and of left right above below in picture describe image draw "
    "object objects shape it this that big small".split()
)
PATCH = 4


def tiny_config(
    processor: JanusProcessor, *, image_size: int = 16, hidden: int = 32, layers: int = 2
) -> JanusConfig:
    """A Janus of about 0.2 M parameters: patches of 4 px, 64 codes."""
    tokenizer = processor.tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=PATCH,
        projection_dim=hidden,
        num_image_tokens=(image_size // PATCH) ** 2,
    )
    vq = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=64,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 1],  # two halvings: one code for each patch of 4 px
        num_res_blocks=0,
        projection_dim=hidden,
        image_token_embed_dim=hidden,
    )
    return JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq,
        image_token_id=tokenizer.convert_tokens_to_ids(processor.image_token),
        tie_word_embeddings=False,
    )


def make_tiny_janus(
    folder: str | Path,
    *,
    image_size: int = 16,
    hidden: int = 32,
    layers: int = 2,
    seed: int = 0,
    vocab_words: Sequence[str] = VOCAB_WORDS,
) -> Path:
    """Save a random Janus (model, processor, tokenizer) into ``folder`` and return the folder.

    Weights are scaled up from the usual initialisation, so that answers depend on the image and
    different images get different codes. The global random state is left as it was.
    """
    folder = Path(folder)
    processor = build_processor(vocab_words, image_size, (image_size // PATCH) ** 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = JanusForConditionalGeneration(
            tiny_config(processor, image_size=image_size, hidden=hidden, layers=layers)
        )
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() >= 2:
                    fan_in = weight[0].numel()
                    scale = 1.0 if "embed" in name or "quantize" in name else fan_in**-0.5
                    weight.normal_(0.0, scale)
    tokenizer = processor.tokenizer
    # A fresh object: one derived from the model's config drops custom keys when it is loaded.
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        guidance_scale=5.0,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids(BEGIN_IMAGE)},
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@functools.cache
def shared_tiny_janus() -> Path:
    """One default tiny Janus per test process. Read it, never write into it."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-janus-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_tiny_janus(folder)


def tiny_backbone(dtype: str = "float32") -> JanusBackbone:
    """A fresh backbone on the shared tiny checkpoint."""
    return from_pretrained(shared_tiny_janus(), dtype=dtype)


def stir_lora(backbone: Backbone, scale: float = 0.05, seed: int = 0) -> None:
    """Give new LoRA weights random values: PEFT starts B at zero, where adapters do nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in backbone.trainable_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.copy_(scale * noise)


def random_images(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    """Images (count, 3, size, size) in [0, 1]."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
