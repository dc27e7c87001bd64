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
from itertools import pairwise
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
ALL_LINEAR = "all-linear"
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
        cast: beside ``whole``, once for all pictures: weights as autocast writes them out.
        held_cast: the same beside ``held``.
    """

    whole: float = 0.0
    held: float = 0.0
    recomputed: float = 0.0
    cast: float = 0.0
    held_cast: float = 0.0


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
        lora_parameters: weights that LoRA of rank 16 adds on the usual layers.
        lora_layers: the same by the name of a linear layer, with layers that only
            ``target_modules`` names; empty: not known.
        parts: weights of what ``train_parts`` can name; they are in float32.
        layer_parameters: of all weights, those that ``shard_frozen: language`` shares out.
        vision_layer_parameters: those that ``language+vision`` shares out beside them.
        hidden_size: H of the language model.
        mlp_size: inner width of its MLPs; of experts, of all that a token passes.
        layers: of the language model.
        image_tokens: N of a picture that is read.
        codebook_size: V; 0 where pictures are latents.
        vision_hidden, vision_layers, vision_tokens: of a vision transformer; 0 without one.
        drawing: what drawing a picture keeps, under each dtype of the base.
        denoising: what the caption loss keeps in a denoiser of its own, under each dtype of the
            base; nothing where the language model draws.
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
    lora_layers: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)
    layer_parameters: int = 0
    vision_layer_parameters: int = 0
    drawing: Mapping[Dtype, PictureBytes] = field(default_factory=lambda: NOTHING)
    denoising: Mapping[Dtype, PictureBytes] = field(default_factory=lambda: NOTHING)
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
class PerturberSize:
    """The sizes of C; its settings are ``perturber_*`` of self-play.

    Attributes:
        width: of the inner layers.
        depth: linear layers.
        heads: directions, of which each has outputs of its own.
        shared: whether directions are those of whole pictures, each with a learned vector.
    """

    width: int = 256
    depth: int = 3
    heads: int = 1
    shared: bool = False

    def parameters(self, hidden_size: int) -> int:
        """Weights on states of this width: linear layers (the last without bias), vectors, gate."""
        own = self.heads * hidden_size
        vectors = own if self.shared else 0
        if not self.depth:
            return vectors + 1
        sizes = [hidden_size, *[self.width] * (self.depth - 1), own]
        layers = sum(one * other for one, other in pairwise(sizes))
        return layers + (self.depth - 1) * self.width + vectors + 1


@dataclass(frozen=True)
class Learners:
    """What learns.

    Attributes:
        lora_rank: of LoRA.
        lora_targets: ``target_modules``: names of linear layers, or a word or pattern; None: the
            usual layers.
        parts: what trains in the place of LoRA (``train_parts``).
        perturber: C; None where it has no weights.
    """

    lora_rank: int = LORA_RANK
    lora_targets: tuple[str, ...] | str | None = None
    parts: tuple[str, ...] = ()
    perturber: PerturberSize | None = PerturberSize()


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
        learners: what learns, C in the game alone.
        processes: that the frozen layers are shared out over (``shard_frozen``); 1: nothing is.
        shards_vision: whether those of the vision transformer are, too.
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
    learners: Learners = Learners()
    processes: int = 1
    shards_vision: bool = False

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
    rows that it reads in one pass, and what draws learned captions. They follow each other, so the
    peak is the larger, not the sum. Under ``quantization`` one layer's weights at a time are
    written out, of frozen layers that are shared out one is whole; ``SLACK`` holds both.
    """
    samples = setting.read + setting.captions + 2 * setting.redrawn
    learned = setting.captions + setting.redrawn
    understanding = (
        lm_activations(size, samples, setting, dtype)
        + learned * size.image_tokens * size.codebook_size * _CODEBOOK_BYTES
        + denoising_activations(size, learned, setting, dtype)
    )
    challenge = 0.0
    if setting.game:
        drawn = setting.challenged * setting.candidates
        challenge = (
            lm_activations(size, drawn, setting, dtype)
            + vision_activations(size, drawn, setting, dtype)
            + picture_activations(size, drawn, setting, dtype)
            + codebook_activations(size, drawn)
        )
    return Estimate(
        weights=weight_bytes(size, setting, dtype, quantization),
        trained=trained_bytes(size, setting),
        activations=max(understanding, challenge),
    )


def weight_bytes(
    size: ModelSize, setting: Setting, dtype: Dtype, quantization: str = NONE
) -> float:
    """Bytes of the model's weights on one process."""
    packed = size.packable_parameters if quantization != NONE else 0
    half = size.parameters - size.float32_parameters - packed
    whole = (
        half * _WEIGHT_BYTES[dtype]
        + size.float32_parameters * 4
        + packed * PACKED_BYTES.get(quantization, 0.0)
    )
    elsewhere = 1 - 1 / setting.processes
    return whole - elsewhere * shared_bytes(size, dtype, vision=setting.shards_vision)


def shared_bytes(size: ModelSize, dtype: Dtype, *, vision: bool = False) -> float:
    """Bytes of the frozen layers that ``shard_frozen`` shares out, of all processes together."""
    layers = size.layer_parameters + (size.vision_layer_parameters if vision else 0)
    return float(layers * _WEIGHT_BYTES[dtype])


def trained_bytes(size: ModelSize, setting: Setting) -> float:
    """Bytes of what learns: weights, gradients and moments, the weights of parts apart."""
    learners = setting.learners
    perturber = learners.perturber if setting.game else None
    own = perturber.parameters(size.hidden_size) if perturber else 0
    if learners.parts:  # which are counted with the model
        parts = sum(size.parts.get(name, 0) for name in learners.parts)
        return parts * (_TRAINED_BYTES - 4) + own * _TRAINED_BYTES
    return (lora_weights(size, learners) + own) * _TRAINED_BYTES


def lora_weights(size: ModelSize, learners: Learners) -> int:
    """Weights of LoRA; of the usual layers where its targets are not known by name."""
    found = size.lora_parameters
    if learners.lora_targets is not None and knows_targets(size, learners.lora_targets):
        every = learners.lora_targets == ALL_LINEAR
        names = size.lora_layers if every else learners.lora_targets
        found = sum(size.lora_layers[name] for name in names)
    return found * learners.lora_rank // LORA_RANK


def knows_targets(size: ModelSize, targets: tuple[str, ...] | str) -> bool:
    """Whether ``target_modules`` are names that the size has weights of."""
    if isinstance(targets, str):
        return targets == ALL_LINEAR and bool(size.lora_layers)
    return all(name in size.lora_layers for name in targets)


def lm_activations(size: ModelSize, samples: int, setting: Setting, dtype: Dtype) -> float:
    """Bytes that the language model saves; with checkpointing one layer plus all layer inputs."""
    per_hidden, per_mlp = _LM_BYTES[dtype]
    layer = per_hidden * size.hidden_size + per_mlp * size.mlp_size
    tokens = samples * (size.image_tokens + TEXT_TOKENS)
    if not setting.checkpointing:
        return tokens * size.layers * layer
    return tokens * (layer + size.layers * size.hidden_size * _WEIGHT_BYTES[dtype])


def vision_activations(size: ModelSize, samples: int, setting: Setting, dtype: Dtype) -> float:
    """Bytes that the frozen vision encoder saves to carry the gradient to its pixels.

    With checkpointing one layer plus all layer inputs, as of the language model.
    """
    units, layer = samples * size.vision_tokens * size.vision_hidden, _VISION_BYTES[dtype]
    if not setting.checkpointing:
        return units * size.vision_layers * layer
    return units * (layer + size.vision_layers * _WEIGHT_BYTES[dtype])


def denoising_activations(size: ModelSize, samples: int, setting: Setting, dtype: Dtype) -> float:
    """Bytes that a denoiser saves to carry the caption loss to what conditions it.

    All samples pass it together, so blocks are recomputed for all at once.
    """
    saved = size.denoising[dtype]
    if not samples:
        return 0.0
    if not setting.checkpointing:
        return samples * saved.whole + saved.cast
    return samples * (saved.held + saved.recomputed) + saved.held_cast


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
