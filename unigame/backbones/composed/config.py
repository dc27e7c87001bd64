"""What a composed model is made of: ``config.json`` beside ``connector.safetensors``.

    {"model_type": "unigame_composed", "version": 1,
     "language": "Qwen/Qwen2.5-VL-3B-Instruct",      a VLM, or a text-only LLM
     "vision_encoder": null,                         for a text-only LLM: a SigLIP or CLIP
     "denoiser": "owner/a-diffusers-pipeline",       its unet or transformer, vae and scheduler
     "vae": null,                                    another VAE than the pipeline's
     "image_size": 512, "vision_size": null,         side in pixels: drawn, and read (null: derived)
     "connector": {"num_queries": 64, "width": 768, "hidden": 2048},
     "draw": {"strength": 0.5, "steps": 1}, "sample_steps": 20, "caption_dropout": 0.1}

Parts are Hub ids or folders; a relative folder is looked for beside ``config.json`` first. Saving
a composed model writes the trained connector and these references, never the frozen parts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from unigame.backbones.model_files import MODEL_FAULT, check_numbers, read_json
from unigame.errors import UserError

MODEL_TYPE = "unigame_composed"
CONFIG_FILE, CONNECTOR_FILE = "config.json", "connector.safetensors"
VERSION = 1
LARGEST_SIDE = 8192


@dataclass(frozen=True)
class ConnectorConfig:
    """Sizes of the connector.

    Attributes:
        num_queries: learned tokens appended to a prompt; their states are what is drawn (N).
        width: of the conditioning that the denoiser reads (W).
        hidden: inner width of the two-layer MLP.
    """

    num_queries: int = 64
    width: int = 768
    hidden: int = 2048


@dataclass(frozen=True)
class DrawConfig:
    """How the game redraws an image.

    Attributes:
        strength: noise level from which a latent is denoised; 0 is the image, 1 pure noise.
        steps: denoising steps from there to a clean latent; memory grows with each.
    """

    strength: float = 0.5
    steps: int = 1


@dataclass(frozen=True)
class ComposedConfig:
    """The content of ``config.json``; see the module docstring."""

    language: str
    denoiser: str
    vision_encoder: str | None = None
    vae: str | None = None
    image_size: int = 512
    vision_size: int | None = None
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    draw: DrawConfig = field(default_factory=DrawConfig)
    sample_steps: int = 20
    caption_dropout: float = 0.1

    def save(self, folder: str | Path, **beside: str) -> None:
        """Write ``config.json``; folders are written as absolute paths, so that they stay right.

        Args:
            folder: where to.
            beside: parts by name that lie in ``folder`` itself, under these names.
        """
        content = {"model_type": MODEL_TYPE, "version": VERSION, **asdict(self)}
        for name in ("language", "vision_encoder", "denoiser", "vae"):
            if content[name] is not None and Path(content[name]).is_dir():
                content[name] = str(Path(content[name]).resolve())
        content.update(beside)
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n")


def read_config(folder: Path) -> ComposedConfig:
    """Read and check ``config.json`` of a composed model. No part is opened.

    Raises:
        UserError: a part that is not named, an unknown key, or a value that cannot be.
    """
    file = folder / CONFIG_FILE
    content = read_json(file, MODEL_FAULT)
    check_numbers(content, file)
    version = content.pop("version", None)
    content.pop("model_type", None)
    if version != VERSION:
        raise UserError(
            f"{str(folder)!r} is a composed model of version {version!r}, this code reads "
            f"{VERSION}; compose it again with this version of unigame"
        )
    return build_config(content, folder)


def build_config(content: dict[str, Any], folder: Path | None = None) -> ComposedConfig:
    """Check plain values and resolve folders of parts. See ``read_config`` for what it raises."""
    where = "composed model" if folder is None else f"composed model {str(folder)!r}"
    content = dict(content)
    if not content.get("language"):
        raise UserError(f"{where} names no language model; set 'language' to a VLM or an LLM")
    if not content.get("denoiser"):
        raise UserError(
            f"{where} has no image branch: {content['language']!r} alone draws nothing; set "
            "'denoiser' to a diffusers pipeline such as stable-diffusion-v1-5/stable-diffusion-v1-5"
        )
    for name, kind in (("connector", ConnectorConfig), ("draw", DrawConfig)):
        values = content.get(name) or {}
        if not isinstance(values, dict):
            raise UserError(f"{where}: {name}={values!r} must be a table of settings")
        _reject_unknown(values, kind, f"{where}: {name}")
        content[name] = kind(**values)
    _reject_unknown(content, ComposedConfig, where)
    for name in ("language", "vision_encoder", "denoiser", "vae"):
        if content.get(name) is not None:
            if not isinstance(content[name], str):
                raise UserError(
                    f"{where}: {name}={content[name]!r} must be a folder or a Hub id, as text"
                )
            content[name] = _resolve(content[name], folder)
    config = ComposedConfig(**content)
    _check_ranges(config, where)
    return config


def _resolve(reference: str, folder: Path | None) -> str:
    beside = None if folder is None else folder / reference
    return str(beside) if beside is not None and beside.is_dir() else str(reference)


def _reject_unknown(values: dict[str, Any], kind: type, where: str) -> None:
    known = [item.name for item in fields(kind)]
    for name in values:
        if name not in known:
            raise UserError(f"{where} has the unknown key {name!r}; known: {', '.join(known)}")


def _check_ranges(config: ComposedConfig, where: str) -> None:
    whole = {
        "image_size": config.image_size,
        "connector.num_queries": config.connector.num_queries,
        "connector.width": config.connector.width,
        "connector.hidden": config.connector.hidden,
        "draw.steps": config.draw.steps,
        "sample_steps": config.sample_steps,
        "vision_size": 1 if config.vision_size is None else config.vision_size,
    }
    for name, value in whole.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{where}: {name}={value!r} must be a whole number from 1")
        if name.endswith("_size") and value > LARGEST_SIDE:
            raise UserError(f"{where}: {name}={value!r} px is above {LARGEST_SIDE}")
    shares = {"draw.strength": config.draw.strength, "caption_dropout": config.caption_dropout}
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise UserError(f"{where}: {name}={share!r} must be a number")
    if not 0 < config.draw.strength <= 1:
        raise UserError(
            f"{where}: draw.strength={config.draw.strength!r} must be above 0 (the image itself) "
            "and at most 1 (pure noise)"
        )
    if not 0 <= config.caption_dropout < 1:
        raise UserError(f"{where}: caption_dropout={config.caption_dropout!r} must be in [0, 1)")
