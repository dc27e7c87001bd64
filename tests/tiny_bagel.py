"""A tiny random BAGEL in the published layout."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, SiglipVisionConfig

from tests.tiny import VOCAB_WORDS
from tests.tiny_composed import build_tokenizer
from unigame.backbones.bagel.configuration import BagelConfig
from unigame.backbones.bagel.files import CONFIG
from unigame.backbones.bagel.load import from_pretrained
from unigame.backbones.bagel.model import BagelBackbone
from unigame.backbones.bagel.modeling import BagelModel

PATCH = 4


def tiny_config(vocabulary: int, **settings: Any) -> BagelConfig:
    """Pictures of 16 px: 16 tokens that are read, 16 that are drawn, on grids of 8 x 8.

    ``image`` may be (height, width).
    """
    sizes = {"hidden": 32, "layers": 2, "vae": (32, 32), "image": 16, **settings}
    hidden, layers = sizes.pop("hidden"), sizes.pop("layers")
    vae, image = sizes.pop("vae"), sizes.pop("image")
    return BagelConfig(
        llm_config=Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
        ),
        vit_config=SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=8 * PATCH,
            patch_size=PATCH,
        ),
        vae_config={
            "block_out_channels": list(vae),
            "layers_per_block": 1,
            "latent_channels": 4,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
        },
        max_latent_size=8,
        vit_max_num_patch_per_side=8,
        **{"image_size": image, "vision_size": image, "sample_steps": 4, **sizes},
    )


def make_tiny_bagel(
    folder: str | Path, *, seed: int = 0, words: Sequence[str] = VOCAB_WORDS, **settings: Any
) -> Path:
    """Save a random BAGEL, all weights at random and scaled so that outputs hang on inputs.

    The global random state is left as it was. ``settings`` go to ``tiny_config``.
    """
    folder = Path(folder)
    tokenizer = build_tokenizer(words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BagelModel(tiny_config(len(tokenizer), **settings))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("pos_embed"):
                    continue
                if weight.dim() >= 2:
                    table = "embed_tokens" in name
                    weight.normal_(0.0, 1.0 if table else weight[0].numel() ** -0.5)
                elif "norm" in name and name.endswith("weight"):
                    weight.uniform_(0.7, 1.3)
                else:
                    weight.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def as_published(folder: Path) -> Path:
    """Take away what a published folder need not have: the settings."""
    (folder / CONFIG).unlink()
    return folder


def set_settings(folder: Path, **settings: Any) -> None:
    """Change settings in ``config.json``."""
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@functools.cache
def shared_tiny_bagel(**settings: Any) -> Path:
    """One default tiny BAGEL per test process. Read it, never write into it."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-bagel-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_tiny_bagel(folder, **settings)


def shared_wide_bagel() -> Path:
    """The same weights, for pictures of 8 x 16 px: 8 tokens read, 8 drawn."""
    return shared_tiny_bagel(image=(8, 16))


def tiny_bagel(dtype: str = "float32") -> BagelBackbone:
    """A fresh backbone on the shared tiny checkpoint."""
    return from_pretrained(shared_tiny_bagel(), dtype=dtype)
