"""Scoring models from the Hub or a folder: found early, loaded late, let go after use.

A scorer's configuration and image processor are read when it is made, so that a wrong name, a gated
model or a missing file costs seconds and not the hours of drawing that come before the scoring. Its
weights are in memory only between ``load`` and ``unload``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig

# Under its short name transformers 5.17 asks for torchvision, even for the PIL processors.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from unigame.backbones.folder import check_device
from unigame.errors import UserError
from unigame.reports.weights import file_sha256

# Image processors that transformers has for torchvision only: resize, rescale, normalise. The PIL
# one for ViT does the same from the same file (it rounds to 8 bits after resizing).
_TORCHVISION_ONLY = ("dinov3_vit", "dinov3_convnext")
_FILES = (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja")
_MARKS_OF_A_GATE = ("gated", "401 client error", "403 client error", "awaiting a review")


@runtime_checkable
class Loadable(Protocol):
    """A scorer whose weights need not stay in memory; scorers of users may do without it."""

    def check(self) -> None:
        """Read the weights once, so that what is wrong with them is known now."""
        ...

    def unload(self) -> None:
        """Let the weights go; they come back when they are needed."""
        ...


Model = TypeVar("Model", bound=torch.nn.Module)


class Pretrained(Generic[Model]):
    """A frozen float32 checkpoint of transformers, with its PIL image processor.

    Args:
        source: local folder, or Hub id ``owner/name``.
        read: ``AutoModel.from_pretrained`` or the like.
        device: where it runs; None: the accelerator if there is one, else the CPU.

    Raises:
        UserError: no such model, no access to it, or not a complete checkpoint.
    """

    def __init__(
        self,
        source: str | Path,
        read: Callable[..., tuple[Model, dict[str, Any]]],
        device: str | torch.device | None = None,
    ) -> None:
        self.source, self._read = locate(source), read
        self.device = check_device(device)
        self.config = load_config(self.source)
        self.processor = load_image_processor(self.source, self.config.model_type)
        self._model: Model | None = None

    @cached_property
    def name(self) -> str:
        """What a record shows; see ``checkpoint_name``."""
        return checkpoint_name(self.source, commit_of(self.config))

    def check(self) -> None:
        """Read the weights once and let them go, so that a broken checkpoint is found now.

        Raises:
            UserError: they cannot be had, or do not fit the configuration.
        """
        if self._model is None:
            self._weights()

    def load(self) -> Model:
        """The model on its device, in evaluation mode; the first call reads it."""
        if self._model is None:
            self._model = self._weights().to(self.device)
        return self._model

    def unload(self) -> None:
        """Let the weights go; the next ``load`` reads them again."""
        self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _weights(self) -> Model:
        with clear_errors(self.source, "its weights"):
            model, told = self._read(self.source, dtype=torch.float32, output_loading_info=True)
        # transformers fills what a checkpoint lacks with random numbers and a line in the log.
        sizes = {name: weight.numel() for name, weight in model.named_parameters()}
        lacking = sorted(name for name in told["missing_keys"] if sizes.get(name, 0) > 1)
        if lacking:
            raise UserError(
                f"scoring model {self.source!r} lacks {len(lacking)} weights of its architecture "
                f"({lacking[0]}, ...): it was made for another task; give a complete checkpoint"
            )
        return model.eval().requires_grad_(False)

    def pixels(self, images: Sequence[Image.Image], **kwargs: Any) -> dict[str, torch.Tensor]:
        """What the image processor makes of RGB pictures, on the model's device."""
        inputs = self.processor(images=list(images), return_tensors="pt", **kwargs)
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        return {name: value.to(self.device) for name, value in tensors.items()}


class PretrainedScorer:
    """A scorer on one checkpoint, which is its name in records."""

    checkpoint: Pretrained[Any]

    @property
    def name(self) -> str:
        """The checkpoint."""
        return self.checkpoint.name

    def check(self) -> None:
        """See ``Loadable``."""
        self.checkpoint.check()

    def unload(self) -> None:
        """See ``Loadable``."""
        self.checkpoint.unload()


def checkpoint_name(source: str | Path, commit: str = "") -> str:
    """A folder's name and a digest of its files, or a Hub id and its commit.

    Other weights at the same path, or a Hub repository that moved, are another scorer: what an
    earlier one said is not theirs, and figures of the two do not compare. Large files are read
    once (``file_sha256``).
    """
    folder = Path(source)
    if folder.is_dir():
        return f"{folder.resolve().name}@{_digest(folder)}"
    return f"{source}@{commit[:12]}" if commit else str(source)


def commit_of(config: Any) -> str:
    """The Hub's commit of a configuration that transformers loaded; empty for one of a folder."""
    # Set by transformers on what came from the Hub; there is no public name for it.
    return str(getattr(config, "_commit_hash", None) or "")


def _digest(folder: Path) -> str:
    """First letters of the SHA-256 over the files that make up a checkpoint."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _FILES:
            total.update(bytes.fromhex(file_sha256(path)))
    return total.hexdigest()[:12]


def locate(source: str | Path) -> str:
    """A folder's path or a Hub id.

    Raises:
        UserError: neither.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path)
    parts = str(source).split("/")
    if len(parts) == 2 and all(parts) and not str(source).startswith((".", "~")):
        return str(source)
    raise UserError(
        f"scoring model {str(source)!r}: no such folder; give a checkpoint folder or a Hub id "
        "such as openai/clip-vit-large-patch14"
    )


def load_config(source: str) -> Any:
    """The configuration of a checkpoint.

    Raises:
        UserError: it cannot be had.
    """
    with clear_errors(source, "its config.json"):
        return AutoConfig.from_pretrained(source)


def load_image_processor(source: str, model_type: str) -> Any:
    """The image processor of a checkpoint, always the PIL one, so that no torchvision is needed.

    Where torchvision is installed transformers would choose its resize, which differs by up to a
    grey level: scores would depend on what else is installed.

    Raises:
        UserError: it cannot be had, or there is only one that needs torchvision.
    """
    with clear_errors(source, "its image processor"):
        if model_type in _TORCHVISION_ONLY:
            return ViTImageProcessorPil.from_pretrained(source)
        return AutoImageProcessor.from_pretrained(source, backend="pil")


@contextmanager
def clear_errors(source: str, what: str) -> Iterator[None]:
    """Within: whatever the Hub or transformers say becomes one line for people."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        text = " ".join(_texts(error)).lower()
        if any(mark in text for mark in _MARKS_OF_A_GATE):
            raise UserError(
                f"scoring model {source!r} is gated: accept its terms on its Hub page and log in "
                "(hf auth login, or set HF_TOKEN), or download it and give its folder"
            ) from error
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"scoring model {source!r}: {what} cannot be had ({first}); check the spelling and the "
            "network, or download it and give its folder"
        ) from error


def _texts(error: BaseException | None) -> Iterator[str]:
    """Type and message of an error and of those that led to it."""
    while error is not None:
        yield f"{type(error).__name__} {error}"
        error = error.__cause__ or error.__context__
