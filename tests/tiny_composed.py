"""Tiny composed models in the real file formats: a VLM with a UNet, and an LLM with a DiT.

``make_vlm_unet`` is the paper's UMM-1 in small: Qwen2.5-VL, Stable Diffusion's UNet and VAE.
``make_llm_dit`` is its UMM-2: a text-only LLM with a SigLIP encoder and a projector, and, as the
second kind of denoiser, SANA's transformer, VAE and flow.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from tests.tiny import VOCAB_WORDS
from unigame.backbones.composed.config import ComposedConfig, ConnectorConfig, DrawConfig
from unigame.backbones.composed.load import compose

PATCH = 4
SPECIAL = (
    "<|pad|>",
    "<|im_end|>",
    "<|unk|>",
    "<|im_start|>",
    "<|vision_start|>",
    "<|image_pad|>",
    "<|vision_end|>",
    "<|video_pad|>",
)
# Qwen's format; the content of a turn is text, or a list of parts.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}
{%- for part in message['content'] -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


@dataclass(frozen=True)
class Size:
    """How big a tiny model is; the defaults serve tests, the alive runs take more."""

    image: int = 16
    hidden: int = 32
    layers: int = 2
    vision_layers: int = 2
    channels: int = 32
    latent_channels: int = 4
    queries: int = 6
    strength: float = 0.5
    vae_channels: tuple[int, ...] = (16, 16)


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word, with Qwen's special tokens and chat format."""
    punctuation = (":", ".", ",", "?", "!")
    known = dict.fromkeys((*SPECIAL, *punctuation, "user", "assistant", *words))
    vocabulary = {word: i for i, word in enumerate(known)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        unk_token="<|unk|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _save_transformers(model: Any, folder: Path, tokenizer: Any = None) -> None:
    _scale_up(model)
    if tokenizer is not None:
        model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _scale_up(model: torch.nn.Module) -> None:
    """Weights large enough that outputs depend on the inputs, as they do after training."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                weight.normal_(0.0, 1.0 if "embed_tokens" in name else weight[0].numel() ** -0.5)


def save_vlm(folder: Path, size: Size, words: Sequence[str]) -> None:
    """A random Qwen2.5-VL whose eyes read pictures of ``size.image`` px."""
    tokenizer = build_tokenizer(words)
    ids = tokenizer.convert_tokens_to_ids
    heads = 4
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden,
            "intermediate_size": 2 * size.hidden,
            "num_hidden_layers": size.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": _sections(size.hidden // heads // 2),
            },
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.hidden,
            "num_heads": heads,
            "intermediate_size": 2 * size.hidden,
            "out_hidden_size": size.hidden,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16 * PATCH,
            "fullatt_block_indexes": [size.vision_layers - 1],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    _save_transformers(Qwen2_5_VLForConditionalGeneration(config), folder, tokenizer)
    pixels = {"shortest_edge": 1, "longest_edge": 10**6}
    Qwen2VLImageProcessorPil(size=pixels, patch_size=PATCH).save_pretrained(folder)


def _sections(half: int) -> list[int]:
    """How rotary frequencies are shared among time, row and column."""
    return [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]


def save_llm(folder: Path, size: Size, words: Sequence[str]) -> None:
    """A random text-only Llama."""
    tokenizer = build_tokenizer(words)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=2 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    _save_transformers(LlamaForCausalLM(config), folder, tokenizer)


def save_siglip(folder: Path, size: Size) -> None:
    """A random SigLIP vision tower."""
    config = SiglipVisionConfig(
        hidden_size=size.hidden,
        intermediate_size=2 * size.hidden,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=4,
        image_size=size.image,
        patch_size=PATCH,
    )
    _save_transformers(SiglipVisionModel(config), folder)
    side = {"height": size.image, "width": size.image}
    SiglipImageProcessorPil(size=side).save_pretrained(folder)


def save_sd(folder: Path, size: Size) -> None:
    """Stable Diffusion's pipeline in small: UNet, AutoencoderKL, noise prediction."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    latent = size.image // 2 ** (len(size.vae_channels) - 1)
    unet = UNet2DConditionModel(
        sample_size=latent,
        in_channels=size.latent_channels,
        out_channels=size.latent_channels,
        block_out_channels=(size.channels, size.channels),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=size.hidden,
        attention_head_dim=4,
        layers_per_block=1,
        norm_num_groups=8,
    )
    levels = len(size.vae_channels)
    vae = AutoencoderKL(
        block_out_channels=size.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=size.latent_channels,
        norm_num_groups=8,
        layers_per_block=1,
        sample_size=size.image,
        scaling_factor=0.5,
    )
    schedule = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    _save_pipeline(folder, "unet", unet, vae, schedule)


def save_sana(folder: Path, size: Size) -> None:
    """SANA's pipeline in small: linear transformer, deep-compression VAE, flow matching."""
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaTransformer2DModel

    levels = len(size.vae_channels)
    dit = SanaTransformer2DModel(
        in_channels=size.latent_channels,
        out_channels=size.latent_channels,
        num_attention_heads=4,
        attention_head_dim=size.channels // 4,
        num_layers=2,
        num_cross_attention_heads=4,
        cross_attention_head_dim=size.channels // 4,
        cross_attention_dim=size.channels,
        caption_channels=size.hidden,
        sample_size=size.image // 2 ** (levels - 1),
        patch_size=1,
        mlp_ratio=2.0,
    )
    vae = AutoencoderDC(
        latent_channels=size.latent_channels,
        attention_head_dim=8,
        encoder_block_types=("ResBlock",) * levels,
        decoder_block_types=("ResBlock",) * levels,
        encoder_block_out_channels=size.vae_channels,
        decoder_block_out_channels=size.vae_channels,
        encoder_layers_per_block=(1,) * levels,
        decoder_layers_per_block=(1,) * levels,
        encoder_qkv_multiscales=((),) * levels,
        decoder_qkv_multiscales=((),) * levels,
        scaling_factor=0.5,
    )
    _save_pipeline(folder, "transformer", dit, vae, FlowMatchEulerDiscreteScheduler(shift=3.0))


def _save_pipeline(folder: Path, name: str, denoiser: Any, vae: Any, scheduler: Any) -> None:
    for part, place in ((denoiser, name), (vae, "vae")):
        _scale_up(part)
        part.save_pretrained(folder / place)
    scheduler.save_pretrained(folder / "scheduler")
    parts = {name: denoiser, "vae": vae, "scheduler": scheduler}
    index = {key: ["diffusers", type(part).__name__] for key, part in parts.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline", **index}))


def _compose(folder: Path, size: Size, seed: int, **parts: Any) -> Path:
    config = ComposedConfig(
        image_size=size.image,
        connector=ConnectorConfig(num_queries=size.queries, hidden=2 * size.hidden),
        draw=DrawConfig(strength=size.strength, steps=1),
        sample_steps=3,
        **parts,
    )
    return compose(folder, config, seed=seed)


def make_vlm_unet(
    folder: str | Path, *, size: Size = Size(), seed: int = 0, words: Sequence[str] = VOCAB_WORDS
) -> Path:
    """Save a random VLM + UNet model and its parts into ``folder``; return the model's folder."""
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_vlm(folder / "language", size, words)
        save_sd(folder / "pipeline", size)
    parts = {"language": str(folder / "language"), "denoiser": str(folder / "pipeline")}
    return _compose(folder / "model", size, seed, **parts)


def make_llm_dit(
    folder: str | Path, *, size: Size = Size(), seed: int = 0, words: Sequence[str] = VOCAB_WORDS
) -> Path:
    """Save a random LLM + SigLIP + DiT model and its parts; return the model's folder."""
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_llm(folder / "language", size, words)
        save_siglip(folder / "encoder", size)
        save_sana(folder / "pipeline", size)
    return _compose(
        folder / "model",
        size,
        seed,
        language=str(folder / "language"),
        vision_encoder=str(folder / "encoder"),
        denoiser=str(folder / "pipeline"),
    )


def _shared(make: Callable[[Path], Path]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tiny-composed-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make(folder)


@functools.cache
def shared_vlm_unet() -> Path:
    """One tiny VLM + UNet per test process. Read it, never write into it."""
    return _shared(make_vlm_unet)


@functools.cache
def shared_llm_dit() -> Path:
    """One tiny LLM + DiT per test process. Read it, never write into it."""
    return _shared(make_llm_dit)


# ---- other VLMs, to compare with transformers' own forward pass ----------------------------------
def save_llava(folder: Path, size: Size = Size(), words: Sequence[str] = VOCAB_WORDS) -> None:
    """A random LLaVA: CLIP, an MLP, Llama."""
    tokenizer = build_tokenizer(words)
    text = {"vocab_size": len(tokenizer), **_small_text(size), "model_type": "llama"}
    config = LlavaConfig(
        text_config={**text, "num_key_value_heads": 4},
        vision_config={
            "model_type": "clip_vision_model",
            "projection_dim": size.hidden,
            **_small_vision(size),
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        vision_feature_layer=-2,
    )
    _save_transformers(LlavaForConditionalGeneration(config), folder, tokenizer)
    SiglipImageProcessorPil(size={"height": size.image, "width": size.image}).save_pretrained(
        folder
    )


def save_smolvlm(folder: Path, size: Size = Size(), words: Sequence[str] = VOCAB_WORDS) -> None:
    """A random SmolVLM: SigLIP, a pixel shuffle, Llama."""
    marks = ("<fake_token_around_image>", "<global-img>")
    tokenizer = build_tokenizer([*words, *marks])
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    text = {"vocab_size": len(tokenizer), **_small_text(size), "model_type": "llama"}
    config = SmolVLMConfig(
        text_config=text,
        vision_config={"model_type": "smolvlm_vision", **_small_vision(size)},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    _save_transformers(SmolVLMForConditionalGeneration(config), folder, tokenizer)
    SiglipImageProcessorPil(size={"height": size.image, "width": size.image}).save_pretrained(
        folder
    )


def _small_text(size: Size) -> dict[str, Any]:
    return {
        "hidden_size": size.hidden,
        "intermediate_size": 2 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }


def _small_vision(size: Size) -> dict[str, Any]:
    return {
        "hidden_size": size.hidden,
        "intermediate_size": 2 * size.hidden,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": 4,
        "image_size": size.image,
        "patch_size": PATCH,
    }
