"""What fits: an estimate of training memory from parameter counts and saved activations.

The figures of a checkpoint come from its family's ``size.py``, which the registry names.
Activations are what autograd keeps for the backward pass. For language models and vision towers
they are bytes per element by kind of layer; those constants were read off small models of the same
classes by counting saved tensors, and a test repeats the count. What draws (and reads codes) is
counted itself, without memory. ``SLACK`` stands for the allocator's slack and kernels' workspaces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unigame.backbones.common.quantization import NONE, PACKED_BYTES
from unigame.backbones.registry import BUILT_IN, available_backbones, find_info, resolve
from unigame.errors import UserError

Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float32")

GIB = 2**30
SLACK = 1.15
LORA_RANK = 16
TEXT_TOKENS = 64  # chat template, question and answer of a short VQA sample
# A trained float32 weight: itself, its gradient and the two moments of AdamW.
_TRAINED_BYTES = 16
_WEIGHT_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
# Saved for backward, bytes per token and layer: so many a hidden unit, so many an MLP unit
# (frozen linear layers with LoRA and its dropout on all seven of them; bfloat16 under autocast).
_LM_BYTES: dict[Dtype, tuple[float, float]] = {"float32": (74.0, 20.0), "bfloat16": (59.0, 13.5)}
# Frozen vision encoder with gradient to its input, bytes per token, layer and hidden unit.
_VISION_BYTES: dict[Dtype, float] = {"float32": 40.0, "bfloat16": 20.0}
# Scores, probabilities, a straight-through mix and a gradient over the codebook, in float32.
_CODEBOOK_BYTES = 16


@dataclass(frozen=True)
class PictureBytes:
    """What one picture's convolutions (or denoising) keep for backward, in bytes.

    Attributes:
        whole: without checkpointing.
        held: with checkpointing, until backward comes to them.
        recomputed: with checkpointing, while backward passes them.
    """

    whole: float = 0.0
    held: float = 0.0
    recomputed: float = 0.0


NOTHING: Mapping[Dtype, PictureBytes] = {dtype: PictureBytes() for dtype in DTYPES}


@dataclass(frozen=True)
class ModelSize:
    """The figures of a checkpoint that memory depends on.

    Attributes:
        name: what to call it.
        parameters: all weights.
        float32_parameters: of them, those that stay in float32 on any base.
        packable_parameters: of them, those of the language model's linear layers, which nf4 and
            int8 pack.
        lora_parameters: weights that LoRA of rank 16 adds.
        hidden_size: H of the language model.
        mlp_size: inner width of its MLPs; of experts, of all that a token passes.
        layers: of the language model.
        image_tokens: N of a picture that is read.
        codebook_size: V; 0 where pictures are latents.
        vision_hidden, vision_layers, vision_tokens: of a vision transformer; 0 without one.
        drawing: what drawing a picture keeps, under each dtype of the base.
        reading: the same of a convolutional image tokenizer that pictures are read by.
        reads_codes: whether what is read are codes, chosen straight-through.
        pictures_at_once: that convolutions recompute together; None: all of them.
        notes: what the estimate leaves out, for this model.
    """

    name: str
    parameters: int
    lora_parameters: int
    hidden_size: int
    mlp_size: int
    layers: int
    image_tokens: int
    codebook_size: int = 0
    vision_hidden: int = 0
    vision_layers: int = 0
    vision_tokens: int = 0
    float32_parameters: int = 0
    packable_parameters: int = 0
    drawing: Mapping[Dtype, PictureBytes] = field(default_factory=lambda: NOTHING)
    reading: Mapping[Dtype, PictureBytes] = field(default_factory=lambda: NOTHING)
    reads_codes: bool = False
    pictures_at_once: int | None = None
    notes: tuple[str, ...] = ()


def size_of(name: str) -> ModelSize:
    """The size of a checkpoint from its configurations alone.

    Raises:
        UserError: it is no model of a family that says its size, or files of it are missing.
    """
    from unigame.backbones.folder import find_checkpoint, find_family
    from unigame.backbones.model_files import loading_from

    checkpoint = find_checkpoint(name)
    hub_id = None if isinstance(checkpoint, Path) else checkpoint
    model_type, file = find_family(checkpoint, available_backbones())
    info = find_info(model_type)
    if info is None or info.size is None:
        known = sorted(family.model_type for family in BUILT_IN if family.size)
        raise UserError(
            f"{name!r} is of family {model_type!r}, which does not say how large its models are; "
            f"doctor can estimate {', '.join(known)}"
        )
    with loading_from(name, ("config.json",)):
        found: ModelSize = resolve(model_type, info.size)(name, file, hub_id)
    return found


def published_sizes() -> list[ModelSize]:
    """The sizes of published checkpoints that families know without a download."""
    return [
        size
        for info in BUILT_IN
        if info.published
        for size in resolve(info.model_type, info.published)()
    ]


@dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        game: whether the challenge is played.
        batch_size: clean samples of one understanding step.
        hard: samples from the buffer that join them.
        captions: samples of the batch that also get the caption -> image loss.
        redrawn: samples whose picture is drawn from what is read of it, in one row of twice a
            picture's tokens.
        candidates: pictures drawn per sample that C learns from.
        checkpointing: whether activations are recomputed in backward.
        read_at_once: rows of the mixed batch that U reads in one pass; None: ``batch_size``.
        challenged_at_once: samples of one pass of the challenge; None: a quarter of the batch.
        share: of the batch that is challenged.
    """

    game: bool
    batch_size: int
    hard: int = 0
    captions: int = 0
    redrawn: int = 0
    candidates: int = 1
    checkpointing: bool = True
    read_at_once: int | None = None
    challenged_at_once: int | None = None
    share: float = 1.0

    @property
    def read(self) -> int:
        """Rows of the mixed batch that U reads in one pass: passes are as equal as may be."""
        return _largest_part(self.batch_size + self.hard, self.read_at_once or self.batch_size)

    @property
    def challenged(self) -> int:
        """Samples of one pass of the challenge."""
        at_once = self.challenged_at_once or math.ceil(self.batch_size / 4)
        return _largest_part(math.ceil(self.share * self.batch_size), at_once)


def _largest_part(rows: int, at_once: int) -> int:
    return math.ceil(rows / math.ceil(rows / at_once))


@dataclass(frozen=True)
class Estimate:
    """Bytes, by what takes them; ``total`` includes the slack."""

    weights: float
    trained: float
    activations: float

    @property
    def tensors(self) -> float:
        """All of it, as the sum of tensors."""
        return self.weights + self.trained + self.activations

    @property
    def total(self) -> float:
        """The same with room for what the formula does not see."""
        return SLACK * self.tensors


def estimate(size: ModelSize, setting: Setting, dtype: Dtype, quantization: str = NONE) -> Estimate:
    """Peak training memory in bytes, by the larger of the two phases of a step.

    The challenge (C ascends) keeps the decoder's, the vision encoder's and the language model's
    activations of the candidates; the understanding step (U descends) the language model's of the
    rows that it reads in one pass. They follow each other, so the peak is the larger, not the sum.
    Under ``quantization`` one layer's weights at a time are written out, which ``SLACK`` holds.
    """
    samples = setting.read + setting.captions + 2 * setting.redrawn
    understanding = lm_activations(size, samples, setting, dtype)
    learned = setting.captions + setting.redrawn
    understanding += learned * size.image_tokens * size.codebook_size * _CODEBOOK_BYTES
    challenge = 0.0
    if setting.game:
        drawn = setting.challenged * setting.candidates
        challenge = (
            lm_activations(size, drawn, setting, dtype)
            + vision_activations(size, drawn, dtype)
            + picture_activations(size, drawn, setting, dtype)
            + codebook_activations(size, drawn)
        )
    packed = size.packable_parameters if quantization != NONE else 0
    half = size.parameters - size.float32_parameters - packed
    return Estimate(
        weights=half * _WEIGHT_BYTES[dtype]
        + size.float32_parameters * 4
        + packed * PACKED_BYTES.get(quantization, 0.0),
        trained=(size.lora_parameters + setting.game * _perturber(size)) * _TRAINED_BYTES,
        activations=max(understanding, challenge),
    )


def lm_activations(size: ModelSize, samples: int, setting: Setting, dtype: Dtype) -> float:
    """Bytes that the language model saves; with checkpointing one layer plus all layer inputs."""
    per_hidden, per_mlp = _LM_BYTES[dtype]
    layer = per_hidden * size.hidden_size + per_mlp * size.mlp_size
    tokens = samples * (size.image_tokens + TEXT_TOKENS)
    if not setting.checkpointing:
        return tokens * size.layers * layer
    return tokens * (layer + size.layers * size.hidden_size * _WEIGHT_BYTES[dtype])


def vision_activations(size: ModelSize, samples: int, dtype: Dtype) -> float:
    """Bytes that the frozen vision encoder saves to carry the gradient to its pixels."""
    units = size.vision_tokens * size.vision_layers * size.vision_hidden
    return samples * units * _VISION_BYTES[dtype]


def picture_activations(size: ModelSize, samples: int, setting: Setting, dtype: Dtype) -> float:
    """Bytes that drawing saves, and reading where it is convolutional too.

    With checkpointing, backward recomputes the reading before it comes to the drawing, so of the
    two the larger counts.
    """
    both = (size.drawing[dtype], size.reading[dtype])
    if not setting.checkpointing:
        return samples * sum(saved.whole for saved in both)
    at_once = min(samples, size.pictures_at_once or samples)
    held = samples * sum(saved.held for saved in both)
    return held + at_once * max(saved.recomputed for saved in both)


def codebook_activations(size: ModelSize, samples: int) -> float:
    """Bytes of scores over the codebook, when codes are drawn and when codes are read."""
    from unigame.backbones.common.codes import PAIRS

    pairs = samples * size.image_tokens * size.codebook_size
    read = min(pairs, PAIRS) if size.reads_codes else 0  # reading takes them in parts
    return (pairs + read) * _CODEBOOK_BYTES


def _perturber(size: ModelSize, width: int = 256) -> int:
    return 2 * size.hidden_size * width + width * width + 2 * width
