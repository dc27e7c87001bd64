"""A tiny random Chameleon in the real Hub format, and its decoder in the layout of vqgan.ckpt."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
    ChameleonVQVAEConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from tests.tiny import VOCAB_WORDS
from unigame.backbones.chameleon.load import ChameleonVQDecoder, from_pretrained
from unigame.backbones.chameleon.model import ChameleonBackbone

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
BEGIN_IMAGE, END_IMAGE, IMAGE, TURN_END = "<racm3:break>", "<eoss>", "<image>", "<reserved08706>"
SPECIAL = (BOS, PAD, EOS, UNK, BEGIN_IMAGE, END_IMAGE, IMAGE, TURN_END)


def image_token(code: int) -> str:
    """The published vocabulary's name of an image code: digits as letters, A for 0."""
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def build_processor(
    words: Sequence[str], image_size: int, num_tokens: int, num_codes: int
) -> tuple[ChameleonProcessor, dict[str, int]]:
    """Processor and ``vocabulary_map``. Image codes are scattered over the vocabulary."""
    codes = [image_token((7 * index + 3) % num_codes) for index in range(num_codes)]
    known = list(dict.fromkeys((*SPECIAL, *codes, *(word.lower() for word in words))))
    vocabulary = {word: index for index, word in enumerate(known)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=PAD,
        sep_token=TURN_END,
        clean_up_tokenization_spaces=False,
    )
    image_processor = ChameleonImageProcessorPil(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
    )
    return ChameleonProcessor(image_processor, fast, image_seq_length=num_tokens), vocabulary


def make_tiny_chameleon(
    folder: str | Path,
    *,
    image_size: int = 16,
    hidden: int = 32,
    layers: int = 2,
    num_codes: int = 64,
    halvings: int = 2,
    with_decoder: bool = True,
    swin_norm: bool = False,
    seed: int = 0,
    vocab_words: Sequence[str] = VOCAB_WORDS,
) -> Path:
    """Save a random Chameleon as the Hub has it, and beside it a decoder as Meta publishes it.

    Weights are scaled up from the usual initialisation, so that answers depend on the image and
    different images get different codes. The global random state is left as it was.

    Args:
        folder: where to.
        image_size: in px.
        hidden: width of the language model.
        layers: of the language model.
        num_codes: size of the codebook.
        halvings: of the resolution in the image tokenizer; one code stands for a patch of
            2 ** halvings px.
        with_decoder: whether ``vqgan.ckpt`` is written.
        swin_norm: the layout of the 34B model, which also shares keys and values among heads.
        seed: of the weights.
        vocab_words: of the tokenizer.
    """
    folder = Path(folder)
    tokens = (image_size // 2**halvings) ** 2
    processor, vocabulary = build_processor(vocab_words, image_size, tokens, num_codes)
    vq = ChameleonVQVAEConfig(
        embed_dim=8,
        num_embeddings=num_codes,
        latent_channels=16,
        resolution=image_size,
        base_channels=32,
        channel_multiplier=[1] * (halvings + 1),
        num_res_blocks=1,
    )
    config = ChameleonConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2 if swin_norm else 4,
        model_parallel_size=2 if swin_norm else 1,
        swin_norm=swin_norm,
        max_position_embeddings=512,
        pad_token_id=vocabulary[PAD],
        bos_token_id=vocabulary[BOS],
        eos_token_id=vocabulary[EOS],
        vq_config=vq.to_dict(),
        vocabulary_map=vocabulary,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ChameleonForConditionalGeneration(config)
        decoder = ChameleonVQDecoder(model.config.vq_config)
        with torch.no_grad():
            for module in (model, decoder):
                for name, weight in module.named_parameters():
                    if weight.dim() >= 2 and "norm" not in name:
                        fan_in = weight[0].numel()
                        table = "embed" in name or "lm_head" in name or "quantize" in name
                        weight.normal_(0.0, 1.0 if table else fan_in**-0.5)
    model.generation_config = GenerationConfig(
        bos_token_id=vocabulary[BOS], eos_token_id=vocabulary[EOS], pad_token_id=vocabulary[PAD]
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if with_decoder:
        # What a trainer leaves beside the weights, as such files have.
        rest = {"epoch": 1, "global_step": 2}
        weights = {**original_vqgan(model, decoder), "loss.discriminator.bias": torch.zeros(1)}
        torch.save({"state_dict": weights, **rest}, folder / "vqgan.ckpt")
    return folder


def original_vqgan(
    model: ChameleonForConditionalGeneration, decoder: ChameleonVQDecoder
) -> dict[str, torch.Tensor]:
    """The whole image tokenizer under the names of Meta's file."""
    tokenizer = {name: tensor.clone() for name, tensor in model.model.vqmodel.state_dict().items()}
    return tokenizer | {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}


@functools.cache
def shared_tiny_chameleon() -> Path:
    """One default tiny Chameleon per test process. Read it, never write into it."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-chameleon-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_tiny_chameleon(folder)


def tiny_chameleon(dtype: str = "float32") -> ChameleonBackbone:
    """A fresh backbone on the shared tiny checkpoint."""
    return from_pretrained(shared_tiny_chameleon(), dtype=dtype)
