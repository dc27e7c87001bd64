"""The folder that the authors of Janus would publish for the tiny model beside this file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from tests.tiny_janus_original import (
    CODE_WIDTH,
    CODES,
    HIDDEN,
    PATCH,
    SIZE,
    TOKENIZER,
    TOWER,
    WIDTH,
    OriginalJanus,
    language_config,
)
from unigame.backbones.janus import convert as janus_original

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
MARKS = (BOS, EOS, PAD, "<begin_of_image>", "<end_of_image>", "<image_placeholder>")
TURNS = ("<|User|>", "<|Assistant|>")
TEXT = "what colour is the circle? a red circle, how many shapes are there? two blue squares\n\n"


@contextmanager
def tiny_shapes() -> Iterator[None]:
    """The authors name shapes instead of writing them down: two more names, for tiny models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(janus_original.TOWERS, "siglip_tiny", TOWER)
        patch.setitem(janus_original.IMAGE_TOKENIZERS, "VQ-tiny", TOKENIZER)
        yield


def original_config(depth: int = 2) -> dict[str, Any]:
    """config.json as the authors write it, the JSON keys that we do not read included."""
    mlp = {"n_embed": HIDDEN, "projector_type": "mlp_gelu"}
    parts = {
        "vision": (
            "CLIPVisionTower",
            {"image_size": SIZE, "model_name": "siglip_tiny", "select_layer": -1},
        ),
        "aligner": ("MlpProjector", mlp | {"depth": depth, "input_dim": WIDTH}),
        "gen_vision": ("VQ-tiny", {"image_token_size": CODES, "n_embed": CODE_WIDTH}),
        "gen_aligner": ("MlpProjector", mlp | {"depth": 2, "input_dim": CODE_WIDTH}),
        "gen_head": (
            "vision_head",
            {"image_token_embed": HIDDEN, "image_token_size": CODES, "n_embed": HIDDEN},
        ),
    }
    sections = {
        f"{name}_config": {"cls": kind, "model_type": name, "params": params}
        for name, (kind, params) in parts.items()
    }
    language = language_config() | {"model_type": "llama", "torch_dtype": "float32"}
    return {
        "architectures": ["MultiModalityCausalLM"],
        **sections,
        "language_config": language,
        "model_type": "multi_modality",
        "torch_dtype": "float32",
        "transformers_version": "4.33.1",
    }


def save_original(
    model: OriginalJanus,
    folder: Path,
    *,
    layout: str = "safetensors",
    changes: dict[str, Tensor | None] | None = None,
    depth: int = 2,
) -> Path:
    """Write the folder that the authors would publish.

    Args:
        model: to save.
        folder: to write.
        layout: "safetensors", "bin", or "sharded" (two .bin files and their index).
        changes: tensors to add or replace; None takes one away.
        depth: linear layers of the aligner, for config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    weights["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    weights |= {k: v for k, v in (changes or {}).items() if v is not None}
    weights = {k: v for k, v in weights.items() if (changes or {}).get(k, v) is not None}
    if layout == "safetensors":
        save_file(weights, folder / "model.safetensors")
    elif layout == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        names = sorted(weights)
        place = {n: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, n in enumerate(names)}
        for file in set(place.values()):
            torch.save({n: weights[n] for n in names if place[n] == file}, folder / file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": place}))
    write_json(folder, "config.json", original_config(depth))
    _save_processor(folder)
    return folder


def write_json(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def byte_level_tokenizer() -> Tokenizer:
    """DeepSeek's kind: byte-level BPE, whose file says nothing of the begin mark."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS + TURNS])
    return tokenizer


def _save_processor(folder: Path) -> None:
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    marks = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    write_json(folder, "special_tokens_map.json", marks)
    write_json(
        folder,
        "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": {"__type": "AddedToken", "content": BOS},
            "eos_token": EOS,
            "pad_token": None,
            "model_max_length": 512,
            "tokenizer_class": "LlamaTokenizerFast",
        },
    )
    tokens = (SIZE // PATCH) ** 2
    write_json(
        folder,
        "processor_config.json",
        {
            "add_special_token": False,
            "ignore_id": -100,
            "image_tag": "<image_placeholder>",
            "mask_prompt": False,
            "num_image_tokens": tokens,
            "processor_class": "VLChatProcessor",
            "sft_format": "deepseek",
        },
    )
    write_json(
        folder,
        "preprocessor_config.json",
        {
            "background_color": [127, 127, 127],
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "VLMImageProcessor",
            "image_size": SIZE,
            "image_std": [0.5, 0.5, 0.5],
            "min_size": 1,
            "rescale_factor": 1 / 255,
        },
    )
