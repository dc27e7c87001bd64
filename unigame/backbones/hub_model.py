"""One transformers model as an object: loading, freezing, LoRA, checkpointing, modes, precision.

``HubModel`` is the half of a backbone that knows nothing of questions and pictures. Precision:
under a bfloat16 base the language model runs in bfloat16 autocast, while LoRA weights and the image
tokenizer's weights are float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import peft
import torch
from torch import Tensor, nn

from unigame.backbones import lora
from unigame.backbones.base import Backbone
from unigame.backbones.chat_layout import ChatLayout
from unigame.backbones.pixels import PixelTwin
from unigame.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class HubModel(Backbone):
    """A frozen model with its processor, LoRA, checkpointing and precision; no verbs yet.

    Args:
        model: a transformers model with ``model.vqmodel``, a language model and ``lm_head``; it is
            frozen here and used in place.
        processor: its processor.
        layout: what turns text into token rows.
        pixels: the image processor's differentiable twin.
    """

    frozen_parts: ClassVar[tuple[str, ...]]
    """Frozen modules by their name in ``base.model``, and ``"lm_head"``."""
    language_name: ClassVar[str] = "language_model"
    """The language model's name in ``base.model``."""

    def __init__(self, model: Any, processor: Any, layout: ChatLayout, pixels: PixelTwin) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.pixels = pixels
        self.checkpointing = False
        self.requires_grad_(False)
        self.dtype: torch.dtype = model.get_input_embeddings().weight.dtype
        if self.dtype == torch.bfloat16:
            model.model.vqmodel.float()  # bfloat16 distances pick other codes
        for module in self.language_model.modules():
            if "attention_dropout" in vars(module):
                module.attention_dropout = 0.0  # not an nn.Dropout: without_dropout would miss it

    @property
    def base(self) -> Any:
        """The transformers model; with LoRA its linear layers are PEFT's, in place."""
        model = self.model
        return model.get_base_model() if isinstance(model, peft.PeftModel) else model

    @property
    def language_model(self) -> Any:
        """The language model without its head."""
        return getattr(self.base.model, self.language_name)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL images -> (B, 3, S, S) in [0, 1], resized and padded on the CPU."""
        return self.pixels.from_pil(images)

    # ---- LoRA and files ------------------------------------------------------------------------
    def add_lora(self, config: peft.LoraConfig | None = None) -> Self:
        """Add float32 LoRA weights to the language model's linear layers (default r 16, B.2).

        Raises:
            UserError: there is an adapter already, or the settings reach outside the LM.
        """
        if isinstance(self.model, peft.PeftModel):
            raise UserError("this backbone has a LoRA adapter already; load the model afresh")
        settings = lora.language_model_lora(config, LORA_TARGETS, self.language_name)
        self.model = lora.wrap(self.model, settings, self.language_name)
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
        wrapped = self.model
        try:
            lora.load_weights(wrapped, weights, folder)
        except UserError:
            if added:
                self.model = wrapped.unload()
            raise

    # ---- modes and precision -------------------------------------------------------------------
    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute activations of the LM, of what reads images and of the decoder in backward."""
        if every_n_layers != 1 or offload:
            raise UserError(
                f"activation checkpointing with every_n_layers={every_n_layers}, offload={offload} "
                "is not supported; leave both out of gradient_checkpointing_kwargs"
            )
        settings = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        for part in (self.language_model, *self.frozen_towers()):
            # Renamed in newer transformers, where the old name warns.
            enable = getattr(part, "activation_checkpointing_enable", None)
            (enable or part.gradient_checkpointing_enable)(settings)
        self.checkpointing = True
        self.train(self.training)

    def frozen_towers(self) -> Sequence[Any]:
        """Frozen transformers, with ``encoder.layers``, that gradients pass."""
        return ()

    def train(self, mode: bool = True) -> Self:
        """Only the language model takes the mode; frozen towers stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen_parts:
            part: nn.Module = self.base.lm_head if name == "lm_head" else self._inner(name)
            part.eval()
        for tower in self.frozen_towers():
            for layer in tower.encoder.layers:
                # Checkpointing acts on layers that are flagged as training; what is inside the
                # layer (and reads the flag for its dropout) stays in evaluation mode.
                layer.training = mode and self.checkpointing
        return self

    def _inner(self, name: str) -> nn.Module:
        return self.base.model.get_submodule(name)

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


def load_weights(
    model_class: Any, name_or_path: str | Path, dtype: str, optional: Sequence[str] = ()
) -> Any:
    """A model of ``model_class`` with all of its weights; float16 becomes bfloat16.

    Args:
        model_class: a ``PreTrainedModel``.
        name_or_path: checkpoint folder or Hub id.
        dtype: "float32", "bfloat16" or "auto".
        optional: modules by name that become None where the checkpoint has no weights for them.

    Raises:
        UserError: weights do not load, or some of the model's are not among them.
    """
    wanted: str | torch.dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        model, info = model_class.from_pretrained(
            name_or_path, dtype=wanted, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the weights of {str(name_or_path)!r} do not load: {reason}") from error
    missing = sorted(info["missing_keys"])
    for module in optional:
        if any(key.startswith(f"{module}.") for key in missing):
            parent, _, name = module.rpartition(".")
            setattr(model.get_submodule(parent), name, None)
            missing = [key for key in missing if not key.startswith(f"{module}.")]
    if missing:
        raise UserError(
            f"the weights of {str(name_or_path)!r} lack {len(missing)} tensors of the model, "
            f"{missing[0]!r} among them; the checkpoint is incomplete: download or save it again"
        )
    return model.to(torch.bfloat16) if model.dtype == torch.float16 else model
