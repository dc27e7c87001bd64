"""Tiny random scoring models, saved as the published ones are: seconds, no network, no skill."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    EomtConfig,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.eomt.image_processing_pil_eomt import EomtImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from unigame.evaluation.scorers.detectors import _no_need_of_scipy
from unigame.evaluation.tasks.geneval.rules import CLASSES, COLOURS

SIDE = 32
COCO_NAMES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
_VISION = {**_TOWER, "image_size": SIDE, "patch_size": 8}


def folder() -> Path:
    made = Path(tempfile.mkdtemp(prefix="unigame-tiny-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@functools.cache
def mask2former(labels: tuple[str, ...] = CLASSES, queries: int = 10) -> Path:
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=SIDE,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=queries,
        id2label={i: COCO_NAMES.get(label, label) for i, label in enumerate(labels)},
    )
    with _no_need_of_scipy(Mask2FormerForUniversalSegmentation):
        model = Mask2FormerForUniversalSegmentation(config)
    model.class_predictor.weight.data *= 40  # confident, so that something is found
    made = folder()
    model.save_pretrained(made)
    Mask2FormerImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(made)
    return made


@functools.cache
def eomt() -> Path:
    torch.manual_seed(5)
    config = EomtConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        num_blocks=1,
        num_upscale_blocks=1,
        num_queries=6,
        num_register_tokens=1,
        id2label=dict(enumerate(CLASSES)),
    )
    with _no_need_of_scipy(EomtForUniversalSegmentation):
        model = EomtForUniversalSegmentation(config)
    model.class_predictor.weight.data *= 100
    made = folder()
    model.save_pretrained(made)
    size = {"shortest_edge": 64, "longest_edge": 64}
    EomtImageProcessorPil(size=size, do_pad=True).save_pretrained(made)
    return made


@functools.cache
def clip() -> Path:
    torch.manual_seed(1)
    words = ["<pad>", "<start>", "<unk>", "a", "photo", "of", "object", "colored", "-"]
    words += [*COLOURS, *(word for name in CLASSES for word in name.split()), "<end>"]
    known = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", known["<end>"])]
    )
    config = CLIPConfig(
        text_config={
            **_TOWER,
            "vocab_size": len(known),
            "max_position_embeddings": 24,
            "projection_dim": 12,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": known["<end>"],
        },
        vision_config={**_VISION, "projection_dim": 12},
        projection_dim=12,
    )
    made = folder()
    CLIPModel(config).save_pretrained(made)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        model_max_length=24,
    ).save_pretrained(made)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(made)
    return made


@functools.cache
def siglip() -> Path:
    torch.manual_seed(2)
    config = SiglipConfig(
        text_config={
            **_TOWER,
            "vocab_size": 20,
            "max_position_embeddings": 8,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config=_VISION,
    )
    made = folder()
    SiglipModel(config).save_pretrained(made)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(made)
    return made


@functools.cache
def dinov2() -> Path:
    torch.manual_seed(3)
    made = folder()
    Dinov2Model(
        Dinov2Config(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            mlp_ratio=1,
            image_size=SIDE,
            patch_size=8,
        )
    ).save_pretrained(made)
    BitImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(made)
    return made


@functools.cache
def dinov3() -> Path:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(4)
    made = folder()
    DINOv3ViTModel(
        DINOv3ViTConfig(**_TOWER, image_size=SIDE, patch_size=8, num_register_tokens=2)
    ).save_pretrained(made)
    # As on the Hub; transformers has this image processor for torchvision only.
    processor = {
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": SIDE, "width": SIDE},
    }
    (made / "preprocessor_config.json").write_text(json.dumps(processor))
    return made
