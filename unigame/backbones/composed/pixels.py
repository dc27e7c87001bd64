"""Pixels and words of a composed model: square pictures, the eyes' normalisation, the tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from unigame.backbones.common.pixels import PixelTwin
from unigame.backbones.model_files import loading_from, processor_from, read_json
from unigame.errors import UserError

_GREY = [127, 127, 127]
SETTINGS_FILES = ("*.json", "*.jinja", "*.txt", "*.model")


def square_pixels(
    side: int, mean: list[float] | None = None, std: list[float] | None = None
) -> PixelTwin:
    """Pictures as squares of ``side`` px, padded with mid-grey; by default to [-1, 1] for a VAE.

    The parts of a composed model each come with a resize of their own, some of which crop or
    squash; a question about a corner needs the corner. One resize for all parts keeps what is
    read equal to what is drawn.
    """
    return PixelTwin(
        JanusImageProcessorPil(
            size={"height": side, "width": side},
            min_size=1,
            image_mean=mean or [0.5] * 3,
            image_std=std or [0.5] * 3,
            background_color=_GREY,
        )
    )


def vision_pixels(reference: str, side: int) -> PixelTwin:
    """What the eyes read: ``side`` px with mean and deviation of their own image processor.

    Raises:
        UserError: the checkpoint has no image processor's configuration.
    """
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(reference)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{reference!r} has no preprocessor_config.json, which holds the mean and deviation "
            "of its pixels; save its image processor beside it"
        ) from error
    with loading_from(
        reference, ("preprocessor_config.json", "processor_config.json"), "image processor"
    ):
        settings = settings.get("image_processor", settings)
        mean, std = settings.get("image_mean"), settings.get("image_std")
        if not mean or not std:
            raise UserError(
                f"preprocessor_config.json of {reference!r} has no image_mean or no image_std, so "
                "pixels cannot be brought to the scale that the eyes know; download it again"
            )
        return square_pixels(side, mean, std)


def copy_settings(reference: str, folder: Path) -> None:
    """The language model's own small files, such as its image processor's, for a copy of it."""
    if Path(reference).is_dir():
        place = Path(reference)
    else:
        from huggingface_hub import snapshot_download

        place = Path(snapshot_download(reference, allow_patterns=list(SETTINGS_FILES)))
    for pattern in SETTINGS_FILES:
        for file in place.glob(pattern):
            if "index" not in file.name:  # of the weights' files, which are written anew
                shutil.copyfile(file, folder / file.name)


def load_tokenizer(reference: str) -> Any:
    """The language model's tokenizer, with the chat template wherever it is kept.

    Raises:
        UserError: the checkpoint has no tokenizer.
    """
    from transformers import AutoTokenizer

    with processor_from(reference):
        tokenizer = AutoTokenizer.from_pretrained(reference)
    if not tokenizer.chat_template:
        tokenizer.chat_template = _processor_template(reference)
    return tokenizer


def _processor_template(reference: str) -> str | None:
    """Older VLM checkpoints keep the template in a file of their processor."""
    name = "chat_template.json"
    file = Path(reference) / name
    if not Path(reference).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            file = Path(hf_hub_download(reference, name))
        except (EntryNotFoundError, OSError):
            return None
    if not file.is_file():
        return None
    template = read_json(file).get("chat_template")
    return template if isinstance(template, str) else None
