"""Janus as an object: loading, freezing, LoRA, checkpointing, modes and precision.

``JanusCore`` is the half of the Janus backbone that knows nothing of questions and pictures;
``janus.py`` adds the verbs of the contract. Precision: under a bfloat16 base the language model
runs in bfloat16 autocast, while LoRA weights and the image tokenizer's weights are float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import peft
import torch
from torch import Tensor, nn
from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor

from unigame.backbones import lora
from unigame.backbones.base import Backbone, BackboneFacts
from unigame.backbones.checkpoint import check_files
from unigame.backbones.janus_layout import JanusLayout
from unigame.backbones.janus_processor import load_processor
from unigame.backbones.pixels import PixelTwin
from unigame.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FROZEN_PARTS = (
    "vision_model",
    "aligner",
    "vqmodel",
    "generation_embeddings",
    "generation_aligner",
    "generation_head",
    "lm_head",
)


class JanusCore(Backbone):
    """A frozen Janus with its processor, LoRA, checkpointing and precision; no verbs yet.

    Args:
        model: any model of the family; it is frozen here and used in place.
        processor: its processor, with a chat template.

    Raises:
        UserError: model and processor disagree on the image size or the number of image tokens.
    """

    model: JanusForConditionalGeneration | peft.PeftModel

    def __init__(self, model: JanusForConditionalGeneration, processor: JanusProcessor) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.layout = JanusLayout(processor)
        self.pixels = PixelTwin(processor.image_processor)
        self.checkpointing = False
        self.requires_grad_(False)
        self.dtype: torch.dtype = model.get_input_embeddings().weight.dtype
        if self.dtype == torch.bfloat16:
            model.model.vqmodel.float()  # bfloat16 distances pick other codes
        for module in model.model.language_model.modules():
            if "attention_dropout" in vars(module):
                module.attention_dropout = 0.0  # not an nn.Dropout: without_dropout would miss it
        self.facts = self._facts()
        self.eval()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, dtype: str = "float32", device: torch.device | None = None
    ) -> Self:
        """Load a checkpoint in the Hub format of Janus or Janus-Pro; ``load_backbone`` calls this.

        Raises:
            UserError: files are missing or unreadable, or weights do not fit the configuration.
        """
        if isinstance(name_or_path, Path):
            check_files(name_or_path)
        processor = load_processor(name_or_path)
        model = _load_model(name_or_path, dtype)
        return cls(model.to(device or torch.device("cpu")), processor).to(device)

    @property
    def janus(self) -> JanusForConditionalGeneration:
        """The transformers model; with LoRA its linear layers are PEFT's, in place."""
        model = self.model
        inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
        return cast(JanusForConditionalGeneration, inner)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL images -> (B, 3, S, S) in [0, 1], by the checkpoint's own resize and padding."""
        return self.pixels.from_pil(images)

    def add_lora(self, config: peft.LoraConfig | None = None) -> Self:
        """Add float32 LoRA weights to the language model's linear layers (default r 16, B.2).

        Raises:
            UserError: there is an adapter already, or the settings reach outside the LM.
        """
        if isinstance(self.model, peft.PeftModel):
            raise UserError("this backbone has a LoRA adapter already; load the model afresh")
        settings = lora.language_model_lora(config, LORA_TARGETS)
        self.model = lora.wrap(self.model, settings, "language_model")
        return self.train(self.training)

    @contextmanager
    def lora_disabled(self) -> Iterator[None]:
        """Within: the base model's outputs, as if no adapter were there."""
        with lora.disabled(self):
            yield

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the LoRA adapter in PEFT's format, or model and processor where there is none."""
        if isinstance(self.model, peft.PeftModel):
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
            return
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def load_adapter(self, folder: str | Path) -> None:
        """Load a PEFT adapter, adding LoRA first where there is none.

        Raises:
            UserError: the adapter is missing, empty, or made for another model; the backbone is
                then as it was.
        """
        config, weights = lora.read_adapter(folder)
        added = not isinstance(self.model, peft.PeftModel)
        if added:
            self.add_lora(config)
        wrapped = cast(peft.PeftModel, self.model)
        try:
            lora.load_weights(wrapped, weights, folder)
        except UserError:
            if added:
                self.model = wrapped.unload()
            raise

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute activations of the LM, the vision tower and the image decoder in backward."""
        if every_n_layers != 1 or offload:
            raise UserError(
                f"activation checkpointing with every_n_layers={every_n_layers}, offload={offload} "
                "is not supported; leave both out of gradient_checkpointing_kwargs"
            )
        settings = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        for part in (self.janus.model.language_model, self.janus.model.vision_model):
            # Renamed in newer transformers, where the old name warns.
            enable = getattr(part, "activation_checkpointing_enable", None)
            (enable or part.gradient_checkpointing_enable)(settings)
        self.checkpointing = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Only the language model takes the mode; frozen towers stay in evaluation mode."""
        super().train(mode)
        model = self.janus.model
        for name in FROZEN_PARTS:
            part: nn.Module = self.janus.lm_head if name == "lm_head" else getattr(model, name)
            part.eval()
        for layer in model.vision_model.encoder.layers:
            # Checkpointing acts on layers that are flagged as training; what is inside the layer
            # (and reads the flag for its dropout) stays in evaluation mode.
            layer.training = mode and self.checkpointing
        return self

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Bfloat16 autocast for a bfloat16 base; else whatever the caller has set.

        Autocast's weight cache is off: in older torch, once filled in a pass without gradient, it
        cuts the LoRA weights out of the next pass with gradient (pytorch issue 112583).
        """
        kind = self.device.type
        half = self.dtype == torch.bfloat16
        enabled = half or torch.is_autocast_enabled(kind)
        dtype = torch.bfloat16 if half else torch.get_autocast_dtype(kind)
        with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
            yield

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Within: evaluation mode; afterwards every module is exactly as it was."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def _end_ids(self) -> set[int]:
        configured = self.janus.generation_config.eos_token_id
        listed = configured if isinstance(configured, list) else [configured]
        return {self.layout.eos_id, *(int(i) for i in listed if i is not None)}

    def _facts(self) -> BackboneFacts:
        config = cast(JanusConfig, self.janus.config)
        size, patch = int(config.vision_config.image_size), int(config.vision_config.patch_size)
        tokens = (size // patch) ** 2
        if (self.pixels.image_size, self.layout.num_image_tokens) != (size, tokens):
            raise UserError(
                f"the processor makes {self.pixels.image_size} px images of "
                f"{self.layout.num_image_tokens} tokens, the model reads {size} px and {tokens} "
                "tokens; load model and processor from the same checkpoint"
            )
        return BackboneFacts(
            family="janus",
            image_size=size,
            num_image_tokens=tokens,
            hidden_size=int(config.text_config.hidden_size),
            codebook_size=int(config.vq_config.num_embeddings),
            lora_targets=LORA_TARGETS,
            frozen_parts=FROZEN_PARTS,
            dtype=self.dtype,
            num_parameters=sum(p.numel() for p in self.janus.parameters()),
        )


def _load_model(name_or_path: str | Path, dtype: str) -> JanusForConditionalGeneration:
    wanted: str | torch.dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        model, info = JanusForConditionalGeneration.from_pretrained(
            name_or_path, dtype=wanted, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the weights of {str(name_or_path)!r} do not load: {reason}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"the weights of {str(name_or_path)!r} lack {len(missing)} tensors of the model, "
            f"{missing[0]!r} among them; the checkpoint is incomplete: download or save it again"
        )
    return model.to(torch.bfloat16) if model.dtype == torch.float16 else model
