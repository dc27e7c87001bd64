"""Making a composed model: parts that fit each other, and a fresh connector beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unigame.backbones.composed.config import CONFIG_FILE, ComposedConfig
from unigame.backbones.composed.connector import TrainedParts
from unigame.backbones.composed.parts import check_parts, denoiser_width
from unigame.backbones.composed.vision import build_reader
from unigame.errors import UserError


def compose(
    folder: str | Path, config: ComposedConfig, *, seed: int = 0, fit_width: bool = True
) -> Path:
    """Make a composed model: check that the parts fit, and write a fresh connector beside them.

    Args:
        folder: to write; made where it is not there.
        config: the parts and settings.
        seed: of the connector's weights.
        fit_width: set ``connector.width`` to what the denoiser reads.

    Raises:
        UserError: see ``check_parts``; or the folder holds a model already.
    """
    folder = Path(folder)
    if (folder / CONFIG_FILE).exists():
        raise UserError(f"{str(folder)!r} holds a model already; give another folder")
    if fit_width:
        connector = replace(config.connector, width=denoiser_width(config))
        config = replace(config, connector=connector)
    parts = check_parts(config)
    build_reader(parts.language, parts.encoder, config.vision_size, config.image_size)
    folder.mkdir(parents=True, exist_ok=True)
    TrainedParts.initialised(parts.hidden_size, config.connector, parts.feature_size, seed).save(
        folder
    )
    config.save(folder)
    return folder
