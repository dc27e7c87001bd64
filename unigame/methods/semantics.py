"""Is the candidate still a picture of the same thing? Similarity scorers for the filter and for C.

    B  samples    K  candidates per sample    S  side of the image    N  tokens    D  feature width

Every scorer is called as ``scorer(images, reference_images, texts)`` with (B*K, 3, S, S)
candidates, (B, 3, S, S) originals and B texts, and gives (B*K,): row ``b * K + k`` compares
candidate k of sample b with original b. ``features`` and ``reference_features`` may bring what the
model's own vision encoder already said of them. All are differentiable in the candidates, frozen,
and deterministic, so the same scorer can judge candidates for the buffer and pull C back in the
label-preservation term.

In token space there is no picture: ``score_tokens`` compares the tokens themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unigame.bundled import bundled_folder
from unigame.errors import UserError
from unigame.registry import Registry

if TYPE_CHECKING:
    from unigame.backbones.base import Backbone

ClipMode = Literal["image-image", "image-text"]


def _repeat_to(reference: Tensor, rows: int) -> Tensor:
    """(B, ...) -> (rows, ...), each sample repeated for its K candidates."""
    samples = reference.shape[0]
    if rows % samples:
        raise ValueError(f"{rows} candidates cannot belong to {samples} samples: not a multiple")
    return reference if rows == samples else reference.repeat_interleave(rows // samples, dim=0)


def _mean_token_cosine(features_END: Tensor, reference_BND: Tensor) -> Tensor:
    """Mean over tokens of the cosine between matching tokens, (B*K,), in float32 or better."""
    reference = _repeat_to(reference_BND, features_END.shape[0])
    if features_END.dtype != torch.float64:
        features_END, reference = features_END.float(), reference.float()
    return F.cosine_similarity(features_END, reference, dim=-1).mean(dim=-1)


class SimilarityScorer(nn.Module):
    """Base of the scorers: see the module docstring for the call."""

    def forward(
        self,
        images: Tensor,
        reference_images: Tensor,
        texts: Sequence[str],
        *,
        features: Tensor | None = None,
        reference_features: Tensor | None = None,
    ) -> Tensor:
        """Similarity of each candidate to its original, (B*K,)."""
        raise NotImplementedError

    def score_tokens(self, embeds_END: Tensor, reference_BND: Tensor) -> Tensor:
        """Similarity in token space, (B*K,), from perturbed and original tokens."""
        return _mean_token_cosine(embeds_END, reference_BND)


class NoSimilarity(SimilarityScorer):
    """Every candidate passes: similarity 1."""

    def forward(
        self,
        images: Tensor,
        reference_images: Tensor,
        texts: Sequence[str],
        *,
        features: Tensor | None = None,
        reference_features: Tensor | None = None,
    ) -> Tensor:
        """Ones, (B*K,)."""
        return torch.ones(images.shape[0], device=images.device)

    def score_tokens(self, embeds_END: Tensor, reference_BND: Tensor) -> Tensor:
        """Ones, (B*K,)."""
        return torch.ones(embeds_END.shape[0], device=embeds_END.device)


class FeatureSimilarity(SimilarityScorer):
    """Mean over tokens of the cosine between frozen vision features of candidate and original.

    The paper's "cosine" arm. It needs no second model, but it asks the very encoder that C attacks
    through, so C can learn to please it.

    Args:
        feature_fn: images (E, 3, S, S) -> features (E, N, D), differentiable; normally
            ``backbone.image_features``. It is not asked for features that the caller brings, so
            they must be this function's own.
    """

    def __init__(self, feature_fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        # In a tuple: a bound method of a backbone must not become a submodule of the scorer.
        self._feature_fn = (feature_fn,)

    def forward(
        self,
        images: Tensor,
        reference_images: Tensor,
        texts: Sequence[str],
        *,
        features: Tensor | None = None,
        reference_features: Tensor | None = None,
    ) -> Tensor:
        """Mean cosine, (B*K,), in [-1, 1]."""
        feature_fn = self._feature_fn[0]
        if reference_features is None:
            with torch.no_grad():
                reference_features = feature_fn(reference_images)
        if features is None:
            features = feature_fn(images)
        return _mean_token_cosine(features, reference_features)


class ClipSimilarity(SimilarityScorer):
    """Cosine of the embeddings of a CLIP- or SigLIP-type model: the paper's "CLIP" arm.

    The checkpoint's own preprocessing (resize, centre crop, mean, std) is done in torch, so the
    gradient reaches the pixels. Image-image cosines of related pictures sit near 0.6 to 0.95,
    image-text cosines near 0.2 to 0.35: a similarity floor belongs to its mode.

    Args:
        model_or_path: a loaded model with ``get_image_features`` / ``get_text_features``, or a
            local folder or Hub id for ``transformers.AutoModel``.
        mode: compare with the original image or with its text.
        preprocessing: the image processor's settings as a dict (``size``, ``crop_size``,
            ``image_mean``, ``image_std``, ``resample``); read from the checkpoint when a path is
            given, required with a loaded model.
        tokenizer: for ``"image-text"`` with a loaded model; read from the checkpoint otherwise.

    Raises:
        UserError: unknown mode, no such checkpoint, a model without an image and a text tower, or
            missing preprocessing / tokenizer.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        model_or_path: nn.Module | str | Path,
        mode: ClipMode = "image-image",
        *,
        preprocessing: dict[str, Any] | None = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        if mode not in ("image-image", "image-text"):
            raise UserError(f"clip mode {mode!r} is unknown; use 'image-image' or 'image-text'")
        if isinstance(model_or_path, (str, Path)):
            model_or_path, preprocessing, tokenizer = _load(str(model_or_path), mode)
        if preprocessing is None:
            raise UserError("a loaded CLIP model needs preprocessing=: its image processor's dict")
        if mode == "image-text" and tokenizer is None:
            raise UserError("clip mode 'image-text' needs a tokenizer: pass tokenizer=")
        self.model = model_or_path.eval().requires_grad_(False)
        self.mode: ClipMode = mode
        self.tokenizer = tokenizer
        config: Any = self.model.config
        self._max_text = int(config.text_config.max_position_embeddings)
        self._resize, self._crop = _sizes(preprocessing, int(config.vision_config.image_size))
        # PIL's numbering: 2 is bilinear, 3 bicubic; nothing else occurs in CLIP-type checkpoints.
        self._interpolation = "bilinear" if preprocessing.get("resample", 3) == 2 else "bicubic"
        for name in ("image_mean", "image_std"):
            values = torch.tensor(preprocessing.get(name, [0.5] * 3), dtype=torch.float32)
            self.register_buffer(name, values.view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> ClipSimilarity:
        """A frozen judge stays in evaluation mode."""
        return super().train(False)

    def pixels(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> the model's ``pixel_values``, differentiably."""
        images = images.float()
        if images.shape[-2:] != (self._resize, self._resize):
            images = F.interpolate(
                images, (self._resize, self._resize), mode=self._interpolation, antialias=True
            ).clamp(0, 1)
        top = (self._resize - self._crop) // 2
        images = images[..., top : top + self._crop, top : top + self._crop]
        return (images - self.image_mean) / self.image_std

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit embeddings of images, (E, D), float32."""
        model: Any = self.model
        pixels = self.pixels(images).to(next(self.model.parameters()).dtype)
        return F.normalize(_embedding(model.get_image_features(pixel_values=pixels)), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings of texts, (B, D), float32; no gradient."""
        model: Any = self.model
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",  # SigLIP was trained so; to CLIP it makes no difference
            max_length=self._max_text,
            truncation=True,
            return_tensors="pt",
        ).to(next(self.model.parameters()).device)
        with torch.no_grad():
            return F.normalize(_embedding(model.get_text_features(**tokens)), dim=-1)

    def forward(
        self,
        images: Tensor,
        reference_images: Tensor,
        texts: Sequence[str],
        *,
        features: Tensor | None = None,
        reference_features: Tensor | None = None,
    ) -> Tensor:
        """Cosine between each candidate and its original (or its text), (B*K,)."""
        with torch.autocast(device_type=images.device.type, enabled=False):
            if self.mode == "image-text":
                reference_BD = self.embed_texts(texts)
            else:
                with torch.no_grad():
                    reference_BD = self.embed_images(reference_images)
            embedding_ED = self.embed_images(images)
            return (embedding_ED * _repeat_to(reference_BD, images.shape[0])).sum(dim=-1)

    def score_tokens(self, embeds_END: Tensor, reference_BND: Tensor) -> Tensor:
        """Not defined: CLIP looks at pictures, and in token space there is none."""
        raise UserError(
            "similarity 'clip' with the perturbation in token space: no picture is drawn that CLIP "
            "could look at; use similarity 'cosine' or 'none', or perturb in the decoder"
        )


SCORERS = Registry(
    "unigame.scorers",
    {
        "cosine": "unigame.methods.semantics:cosine_similarity",
        "clip": "unigame.methods.semantics:ClipSimilarity",
        "none": "unigame.methods.semantics:no_similarity",
    },
)
"""Similarity scorers by name. A package of yours adds one by an entry point of this group: what it
names is called with the backbone and gives a ``SimilarityScorer``."""


def cosine_similarity(backbone: Backbone) -> SimilarityScorer:
    """By the model's own frozen vision features."""
    return FeatureSimilarity(backbone.image_features)


def no_similarity(backbone: Backbone) -> SimilarityScorer:
    """Every candidate passes."""
    return NoSimilarity()


def build_scorer(
    kind: str,
    backbone: Backbone,
    *,
    clip_model: nn.Module | str | Path | None = None,
    clip_mode: ClipMode = "image-image",
) -> SimilarityScorer:
    """Build the scorer that a setting names, on the backbone's device.

    Raises:
        UserError: an unknown kind, ``"clip"`` without ``clip_model``, or an entry point that gives
            something else.
    """
    if kind == "clip":
        if clip_model is None:
            raise UserError(
                "similarity 'clip' needs a model: give clip_model a local folder or Hub id of a "
                "CLIP or SigLIP checkpoint, or use similarity 'cosine'"
            )
        return ClipSimilarity(clip_model, clip_mode).to(backbone.device)
    scorer = SCORERS.get(kind)(backbone)
    if not isinstance(scorer, SimilarityScorer):
        raise UserError(
            f"similarity {kind!r} is {type(scorer).__name__}, which is no SimilarityScorer; let "
            "its entry point give one"
        )
    return scorer.to(backbone.device)


def _embedding(output: Any) -> Tensor:
    """The pooled embedding in float32: transformers 5 wraps it, earlier ones gave the tensor."""
    return (output if isinstance(output, Tensor) else output.pooler_output).float()


def _sizes(preprocessing: dict[str, Any], image_size: int) -> tuple[int, int]:
    """(side after resize, side after centre crop) for a square picture."""
    side = image_size
    if preprocessing.get("do_resize", True):
        size = preprocessing.get("size") or image_size
        side = int(size if isinstance(size, int) else size.get("shortest_edge", size.get("height")))
    if not preprocessing.get("do_center_crop", False):
        return side, side
    crop = preprocessing.get("crop_size") or side
    return side, min(side, int(crop if isinstance(crop, int) else crop["height"]))


def _load(path: str, mode: ClipMode) -> tuple[nn.Module, dict[str, Any], Any]:
    """Model, preprocessing settings and (for image-text) tokenizer of a checkpoint."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.image_processing_base import ImageProcessingMixin

    path = str(bundled_folder(path) or path)
    try:
        config = AutoConfig.from_pretrained(path)
    except Exception as error:  # of transformers, the Hub and json: many kinds
        raise _unreadable(path, error) from error
    if not (hasattr(config, "vision_config") and hasattr(config, "text_config")):
        raise UserError(
            f"similarity_model={path!r} is a {config.model_type!r} model without an image and a "
            "text tower; give a CLIP or SigLIP checkpoint"
        )
    try:
        preprocessing, _ = ImageProcessingMixin.get_image_processor_dict(path)
        tokenizer = AutoTokenizer.from_pretrained(path) if mode == "image-text" else None
        return AutoModel.from_pretrained(path, dtype=torch.float32), preprocessing, tokenizer
    except Exception as error:  # also of tokenizers and safetensors
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(
        f"similarity_model={path!r} cannot be read as a checkpoint ({reason}); give a local folder "
        "or Hub id of a CLIP or SigLIP model"
    )
