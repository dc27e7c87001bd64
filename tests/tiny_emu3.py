"""A tiny random Emu3 in the real Hub format: model, processor, tokenizer, vocabulary map.

The image tokenizer keeps the published one's four levels and four frames (the processor counts 8 px
for a code, whatever the model), so a picture of 24 px has 3 x 3 codes.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Emu3Processor,
    Emu3TextConfig,
    Emu3VQVAE,
    Emu3VQVAEConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from tests.tiny import VOCAB_WORDS
from unigame.backbones.emu3 import model as emu3_vision
from unigame.backbones.emu3.load import from_pretrained
from unigame.backbones.emu3.model import Emu3Backbone

PAD, BOS, EOS = "<|endoftext|>", "<|extra_203|>", "<|extra_204|>"
MARKS = {
    "image_token": "<image>",
    "boi_token": "<|image start|>",
    "eoi_token": "<|image end|>",
    "image_wrapper_token": "<|image token|>",
    "eof_token": "<|extra_201|>",
}
ROW_END, UNKNOWN = "<|extra_200|>", "<|extra_1|>"
# The format of the published checkpoints: pictures first in each turn, a space after each text.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] != 'system' -%}{{- message['role'].upper() + ': ' -}}{%- endif -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] + ' ' -}}
{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"""


@dataclass(frozen=True)
class Size:
    """How big a tiny Emu3 is; the defaults serve tests, the alive run takes more."""

    image: int = 24
    hidden: int = 32
    layers: int = 2
    codes: int = 64
    channels: int = 32
    code_width: int = 4
    blocks: int = 1


def build_tokenizer(words: Sequence[str], codes: int) -> PreTrainedTokenizerFast:
    """One token a word, with Emu3's special tokens and one token for each image code."""
    visual = [f"<|visual token {code:06d}|>" for code in range(codes)]
    special = [PAD, BOS, EOS, UNKNOWN, ROW_END, *MARKS.values(), *visual]
    plain = [*"0123456789", *"*:.,?!", "user", "assistant", *words]
    known = {word: i for i, word in enumerate(dict.fromkeys([*special, *plain]))}
    tokenizer = Tokenizer(WordLevel(known, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=MARKS,
    )


def tiny_config(tokenizer: PreTrainedTokenizerFast, size: Size) -> Emu3Config:
    """Everything as in the published configuration, in small."""
    text = Emu3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=2 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vq = Emu3VQVAEConfig(
        codebook_size=size.codes,
        embed_dim=size.code_width,
        latent_channels=size.code_width,
        base_channels=size.channels,
        channel_multiplier=[1, 1, 1, 1],
        num_res_blocks=size.blocks,
        hidden_size=size.channels,
    )
    return Emu3Config(text_config=text, vq_config=vq, vocabulary_map=tokenizer.get_vocab())


def make_tiny_emu3(
    folder: str | Path,
    *,
    size: Size | None = None,
    seed: int = 0,
    words: Sequence[str] = VOCAB_WORDS,
) -> Path:
    """Save a random Emu3 into ``folder`` and return it. The global random state is left alone.

    Weights are scaled up from the usual initialisation, so that answers depend on the picture, and
    latents are spread like the codebook, so that pictures get different codes.
    """
    folder, size = Path(folder), size or Size()
    tokenizer = build_tokenizer(words, size.codes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Emu3ForConditionalGeneration(tiny_config(tokenizer, size))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() >= 2:
                    table = "embed" in name  # tokens and codes; all else by its number of inputs
                    weight.normal_(0.0, 1.0 if table else weight[0].numel() ** -0.5)
        spread_latents(model.model.vqmodel, size.image)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    pixels = size.image**2
    image_processor = Emu3ImageProcessor(
        min_pixels=pixels, max_pixels=pixels, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    Emu3Processor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    return folder


@torch.no_grad()
def spread_latents(vq: Emu3VQVAE, side: int) -> None:
    """Give the latents of noise mean 0 and deviation 1 in each direction, as the codebook has.

    A random encoder makes nearly the same latents of all pictures, and so the same code of them.
    """
    latents = emu3_vision.encode(vq, torch.rand(16, 3, side, side) * 2 - 1).flatten(0, 1)
    conv = vq.quant_conv.conv
    conv.bias -= latents.mean(0)
    scale = latents.std(0)
    conv.weight /= scale.view(-1, 1, 1, 1, 1)
    conv.bias /= scale


@functools.cache
def shared_tiny_emu3() -> Path:
    """One default tiny Emu3 per test process. Read it, never write into it."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-emu3-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_tiny_emu3(folder)


def tiny_emu3(dtype: str = "float32") -> Emu3Backbone:
    """A fresh backbone on the shared tiny checkpoint."""
    return from_pretrained(shared_tiny_emu3(), dtype=dtype).eval()
