"""What fits: an estimate of training memory from parameter counts and saved activations.

Parameters are counted on the model's own classes, built without memory (meta device). Activations
are what autograd keeps for the backward pass, as bytes per element by kind of layer. Those
constants were read off small models of the same classes by counting saved tensors; a test repeats
the count. It is an estimate: ``SLACK`` stands for the allocator's slack and kernels' workspaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import JanusConfig

Dtype = Literal["float32", "bfloat16"]

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
# Frozen image decoder, bytes per feature-map element: a constant and a part per residual block.
_DECODER_BYTES: dict[Dtype, tuple[float, float]] = {
    "float32": (18.0, 33.0),
    "bfloat16": (9.0, 16.5),
}
# Logits, probabilities, the straight-through mix and a gradient over the codebook, in float32.
_CODEBOOK_BYTES = 16


@dataclass(frozen=True)
class ModelSize:
    """The figures of a checkpoint that memory depends on."""

    name: str
    parameters: int
    lora_parameters: int
    hidden_size: int
    mlp_size: int
    layers: int
    vision_hidden: int
    vision_layers: int
    image_tokens: int
    codebook_size: int
    decoder_elements: int
    decoder_blocks: int


@dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        game: whether the challenge is played.
        batch_size: clean samples of one understanding step.
        hard: samples from the buffer that join them.
        captions: samples of the batch that also get the caption -> image loss.
        candidates: K, pictures drawn per sample.
        checkpointing: whether the language model recomputes its activations.
    """

    game: bool
    batch_size: int
    hard: int = 0
    captions: int = 0
    candidates: int = 1
    checkpointing: bool = True


@dataclass(frozen=True)
class Estimate:
    """Bytes, by what takes them; ``total`` includes the slack."""

    weights: float
    trained: float
    activations: float

    @property
    def total(self) -> float:
        """All of it, with room for what the formula does not see."""
        return SLACK * (self.weights + self.trained + self.activations)


def janus_pro_config(size: Literal["1B", "7B"]) -> JanusConfig:
    """The shapes of the published Janus-Pro checkpoints, so that nothing need be downloaded."""
    from transformers import JanusConfig

    hidden, mlp, layers, heads = {
        "1B": (2048, 5632, 24, 16),
        "7B": (4096, 11008, 30, 32),
    }[size]
    text = {
        "model_type": "llama",
        "vocab_size": 102400,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "tie_word_embeddings": False,
    }
    return JanusConfig(
        text_config=text,
        vision_config={"projection_dim": hidden},
        vq_config={"projection_dim": hidden, "image_token_embed_dim": hidden},
        tie_word_embeddings=False,
    )


def measure(name: str, config: JanusConfig) -> ModelSize:
    """Count the parameters of a Janus configuration on the meta device and note its shapes."""
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    side = vision.image_size // vision.patch_size
    levels = len(vq.channel_multiplier)
    return ModelSize(
        name=name,
        parameters=_count_parameters(config),
        lora_parameters=_count_lora(text),
        hidden_size=text.hidden_size,
        mlp_size=text.intermediate_size,
        layers=text.num_hidden_layers,
        vision_hidden=vision.hidden_size,
        vision_layers=vision.num_hidden_layers,
        image_tokens=side**2,
        codebook_size=vq.num_embeddings,
        decoder_elements=sum(
            (side * 2 ** (levels - 1 - level)) ** 2 * vq.base_channels * multiplier
            for level, multiplier in enumerate(vq.channel_multiplier)
        ),
        decoder_blocks=vq.num_res_blocks + 1,
    )


def estimate(size: ModelSize, setting: Setting, dtype: Dtype) -> Estimate:
    """Peak training memory in bytes, by the larger of the two phases of a step.

    The challenge (C ascends) keeps the decoder's, the vision encoder's and the language model's
    activations of the candidates; the understanding step (U descends) the language model's of the
    mixed batch. They follow each other, so the peak is the larger, not the sum.
    """
    samples = setting.batch_size + setting.hard + setting.captions
    picture_logits = size.image_tokens * size.codebook_size * _CODEBOOK_BYTES
    understanding = (
        lm_activations(size, samples, setting, dtype) + setting.captions * picture_logits
    )
    challenge = 0.0
    if setting.game:
        drawn = setting.batch_size * setting.candidates
        challenge = (
            lm_activations(size, drawn, setting, dtype)
            + vision_activations(size, drawn, dtype)
            + decoder_activations(size, drawn, dtype)
            + drawn * picture_logits
        )
    return Estimate(
        weights=size.parameters * _WEIGHT_BYTES[dtype],
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
    units = size.image_tokens * size.vision_layers * size.vision_hidden
    return samples * units * _VISION_BYTES[dtype]


def decoder_activations(size: ModelSize, samples: int, dtype: Dtype) -> float:
    """Bytes that the frozen image decoder saves to carry the gradient to the drawing."""
    constant, per_block = _DECODER_BYTES[dtype]
    return samples * size.decoder_elements * (constant + per_block * size.decoder_blocks)


def _perturber(size: ModelSize, width: int = 256) -> int:
    return 2 * size.hidden_size * width + width * width + 2 * width


def _count_lora(text: Any) -> int:
    """LoRA weights on the seven linear layers of every block: rank x (inputs + outputs)."""
    hidden, mlp = text.hidden_size, text.intermediate_size
    key_value = hidden * text.num_key_value_heads // text.num_attention_heads
    attention = 2 * (hidden + hidden) + 2 * (hidden + key_value)
    return LORA_RANK * text.num_hidden_layers * (attention + 3 * (hidden + mlp))


def _count_parameters(config: JanusConfig) -> int:
    import torch
    from transformers import JanusForConditionalGeneration

    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    return sum(parameter.numel() for parameter in model.parameters())
