"""Picture encoders whose cosines UnifiedBench averages.

The UniGame paper names CLIP, SigLIP, DINOv2 and DreamSim; the UAE paper's own protocol uses CLIP,
LongCLIP, DINOv2 and DINOv3. Neither of the two says which SigLIP or DINOv3; the ids below are our
choice where ``docs/evaluation-generation.md`` says so. Scores under different lists do not compare.

Shapes: N pictures, D features.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModel

from unigame.backbones.folder import check_device
from unigame.errors import UserError
from unigame.evaluation.scorers.pretrained import Pretrained, PretrainedScorer, locate
from unigame.evaluation.scorers.registry import is_scorer, open_scorer

DREAMSIM = "dreamsim"
ENCODERS = {
    "clip": "openai/clip-vit-large-patch14",
    "siglip": "google/siglip-so400m-patch14-384",
    "dinov2": "facebook/dinov2-large",
    "dreamsim": DREAMSIM,
    "longclip": "zer0int/LongCLIP-L-Diffusers",
    "dinov3": "facebook/dinov3-vitl16-pretrain-lvd1689m",
}
"""Short names and the Hub ids that they stand for (DreamSim: its own package)."""

PRESETS = {
    "paper": ("clip", "siglip", "dinov2", "dreamsim"),
    "uae": ("clip", "longclip", "dinov2", "dinov3"),
}

# How a picture's feature is had from each type of model.
_TOWERS = ("clip", "siglip", "siglip2", "metaclip_2")  # image features of a text-image model
_POOLED = ("siglip_vision_model", "dinov3_convnext")
_CLS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")


class Encoder(Protocol):
    """Turns pictures into vectors. ``name`` goes into records beside the score."""

    @property
    def name(self) -> str:
        """Which weights."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> NDArray[np.floating[Any]]:
        """One vector per RGB picture, (N, D), of any length: the benchmark normalises them."""
        ...


class NamedEncoder(NamedTuple):
    """An encoder and the short label under which its mean is reported."""

    label: str
    encoder: Encoder


class HubEncoder(PretrainedScorer):
    """A vision encoder of transformers.

    The feature is the projected image feature of CLIP (and LongCLIP), the pooled feature of SigLIP,
    and the CLS token of the last hidden state, after the final norm, of DINOv2 and DINOv3.

    Args:
        checkpoint: folder or Hub id.
        batch_size: pictures that are run together.
        device: None: the accelerator if there is one, else the CPU.

    Raises:
        UserError: no such model, no access to it, or a type whose feature is not defined here.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        batch_size: int = 16,
        device: str | torch.device | None = None,
    ) -> None:
        self.checkpoint = Pretrained[Any](checkpoint, AutoModel.from_pretrained, device)
        self._batch_size = batch_size
        known = (*_TOWERS, *_POOLED, *_CLS)
        if self.checkpoint.config.model_type not in known:
            raise UserError(
                f"encoder {str(checkpoint)!r} is a model of type "
                f"{self.checkpoint.config.model_type!r}; known are {', '.join(known)}: others can "
                "be given in Python, as an object with a name and a method encode"
            )

    def encode(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """One vector per picture, (N, D), float32, not normalised."""
        batches = [
            self._encode(images[start : start + self._batch_size])
            for start in range(0, len(images), self._batch_size)
        ]
        return np.concatenate(batches) if batches else np.zeros((0, 0), np.float32)

    def _encode(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        model, kind = self.checkpoint.load(), self.checkpoint.config.model_type
        inputs = self.checkpoint.pixels([image.convert("RGB") for image in images])
        with torch.inference_mode():
            if kind in _TOWERS:
                features_ND = model.get_image_features(**inputs).pooler_output
            elif kind in _POOLED:
                features_ND = model(**inputs).pooler_output
            else:
                features_ND = model(**inputs).last_hidden_state[:, 0]
        return features_ND.cpu().numpy()


class DreamSimEncoder:
    """DreamSim's ensemble (Fu et al. 2023); one minus its distance is the cosine of its vectors.

    Its own package loads it (``pip install dreamsim``, which brings torchvision); its weights go
    to torch's hub folder.

    Raises:
        UserError: the package is not installed, or its weights cannot be had.
    """

    def __init__(self, *, batch_size: int = 16, device: str | torch.device | None = None) -> None:
        self._device, self._batch_size = check_device(device), batch_size
        self._loaded: Any = None
        try:
            self._package = importlib.import_module("dreamsim")
        except ImportError as error:
            raise UserError(
                f"encoder 'dreamsim' needs the package dreamsim ({error}); install it with pip "
                "install dreamsim, or choose encoders without it, such as --encoders uae"
            ) from error

    @property
    def name(self) -> str:
        """The package's ensemble of three."""
        return "dreamsim ensemble"

    def encode(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """One vector per picture, (N, D), float32."""
        model, preprocess = self._load()
        vectors = []
        for start in range(0, len(images), self._batch_size):
            batch = [preprocess(image) for image in images[start : start + self._batch_size]]
            with torch.inference_mode():
                vectors.append(model.embed(torch.cat(batch).to(self._device)).cpu().numpy())
        return np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float32)

    def _load(self) -> Any:
        if self._loaded is None:
            folder = Path(torch.hub.get_dir()) / "dreamsim"
            try:
                self._loaded = self._package.dreamsim(
                    pretrained=True, device=str(self._device), cache_dir=str(folder)
                )
            except (OSError, RuntimeError, ValueError) as error:
                first = next(iter(str(error).splitlines()), type(error).__name__)
                raise UserError(
                    f"encoder 'dreamsim': its weights cannot be had ({first}); check the network, "
                    f"or put them into {folder}"
                ) from error
        return self._loaded

    def check(self) -> None:
        """Fetch and read the weights once."""
        self._load()
        self.unload()

    def unload(self) -> None:
        """Let the weights go."""
        self._loaded = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def encoder_list(chosen: str | Sequence[str | Encoder]) -> list[str | Encoder]:
    """The encoders of presets, of names with commas between, or of a list; nothing is loaded.

    Raises:
        UserError: an unknown name, an empty list, or an encoder that is given twice.
    """
    names = [name.strip() for name in chosen.split(",")] if isinstance(chosen, str) else chosen
    listed: list[str | Encoder] = []
    for each in names:
        listed += PRESETS.get(each, (each,)) if isinstance(each, str) else (each,)
    for each in listed:
        if isinstance(each, str) and each not in ENCODERS and not is_scorer(each):
            _check_source(each)
    labels = [label_of(each) for each in listed]
    if not labels or len(set(labels)) < len(labels):
        raise UserError(
            f"encoders {', '.join(labels) or 'none'}: give at least one, and each once; presets "
            f"are {', '.join(PRESETS)}"
        )
    return listed


def _check_source(name: str) -> None:
    try:
        locate(name)
    except UserError as error:
        raise UserError(
            f"encoder {name!r} is unknown; presets are {', '.join(PRESETS)}, names are "
            f"{', '.join(ENCODERS)}, or give a Hub id or a folder"
        ) from error


def label_of(encoder: str | Encoder) -> str:
    """The short label of an encoder in records: its short name, else its Hub id's last part."""
    name = encoder if isinstance(encoder, str) else encoder.name
    return name if name in ENCODERS else Path(name.partition("@")[0]).name


def open_encoder(encoder: str | Encoder, device: str | torch.device | None = None) -> NamedEncoder:
    """An encoder with its configuration read and its weights still to come.

    Raises:
        UserError: it cannot be had.
    """
    made: Encoder
    if not isinstance(encoder, str):
        made = encoder
    elif encoder == DREAMSIM:
        made = DreamSimEncoder(device=device)
    elif encoder not in ENCODERS and is_scorer(encoder):
        made = open_scorer(encoder, "encode")
    else:
        made = HubEncoder(ENCODERS.get(encoder, encoder), device=device)
    return NamedEncoder(label_of(encoder), made)
