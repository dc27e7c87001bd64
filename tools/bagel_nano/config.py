"""What the model is made of: the published classes, small."""

from __future__ import annotations

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tools.common.pictures import PATCH_PX, PX, TOKENS, WIDTH
from unigame.backbones.bagel.configuration import FLUX_VAE, BagelConfig
from unigame.backbones.bagel.layout import PICTURE_END, PICTURE_START, TEXT_END, TEXT_START
from unigame.backbones.janus.layout import PUNCTUATION
from unigame.synthetic.knowledge import knowledge_words
from unigame.synthetic.questions import vocabulary

LATENT_PATCH, LATENTS = 6, 9
"""Latents along a side of a token's square; tokens of a picture that is drawn."""
CHANNELS = 2
SAMPLE_STEPS = 17
"""Points in time of free drawing, both ends included."""
END, PAD, UNK = "<|endoftext|>", "<|pad|>", "<|unknown|>"
MARKS = (PAD, END, UNK, TEXT_START, TEXT_END, PICTURE_START, PICTURE_END)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, all words of the world and of its knowledge prompts; BAGEL's marks."""
    known = dict.fromkeys((*MARKS, *PUNCTUATION, *vocabulary(), *knowledge_words()))
    built = Tokenizer(WordLevel({word: i for i, word in enumerate(known)}, unk_token=UNK))
    built.normalizer = normalizers.Lowercase()
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    built.add_special_tokens(list(MARKS))
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        pad_token=PAD,
        eos_token=TEXT_END,
        unk_token=UNK,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def nano_config(vocabulary_size: int) -> BagelConfig:
    """81 tokens read, 9 drawn: one to a cell of the board, 6 x 6 latents of 2 px each.

    Two channels: the 72 numbers of a token are then well below the width, which has to carry the
    noise in them to the other end as well.

    The image autoencoder normalises in 32 groups. With 32 channels each would be a group of its
    own, its level and spread taken out of every picture, and these are what a faint picture is; so
    there are 64.
    """
    return BagelConfig(
        llm_config={
            "vocab_size": vocabulary_size,
            "hidden_size": WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 200.0},
            "tie_word_embeddings": False,
        },
        vit_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,  # the published folder counts one that is not there
            "num_attention_heads": 4,
            "image_size": PX,
            "patch_size": PATCH_PX,
        },
        vae_config={
            **FLUX_VAE,
            "block_out_channels": [64, 64],
            "layers_per_block": 1,
            "latent_channels": CHANNELS,
        },
        latent_patch_size=LATENT_PATCH,
        max_latent_size=round(LATENTS**0.5),
        vit_max_num_patch_per_side=round(TOKENS**0.5),
        image_size=PX,
        vision_size=PX,
        sample_steps=SAMPLE_STEPS,
        sample_shift=2.0,
        timestep_shift=2.0,
    )
