"""``unigame compose``: make a model from a VLM or LLM and a diffusion image branch."""

from __future__ import annotations

from pathlib import Path

from unigame.cli.console import make_console, next_step


def compose(
    folder: Path,
    *,
    language: str,
    denoiser: str,
    vision_encoder: str | None = None,
    vae: str | None = None,
    image_size: int = 512,
    vision_size: int | None = None,
    num_queries: int = 64,
    strength: float = 0.5,
    draw_steps: int = 1,
    seed: int = 0,
) -> None:
    """Check that the parts fit and write ``config.json`` and a fresh connector into ``folder``.

    Raises:
        UserError: a part that is not supported, cannot be had, or does not fit the others.
    """
    from dataclasses import asdict

    from unigame.backbones.composed.config import (
        ComposedConfig,
        ConnectorConfig,
        DrawConfig,
        build_config,
    )
    from unigame.backbones.composed.load import compose as write

    wanted = ComposedConfig(
        language=language,
        denoiser=denoiser,
        vision_encoder=vision_encoder,
        vae=vae,
        image_size=image_size,
        vision_size=vision_size,
        connector=ConnectorConfig(num_queries=num_queries),
        draw=DrawConfig(strength=strength, steps=draw_steps),
    )
    write(folder, build_config(asdict(wanted)), seed=seed)
    parts = "connector" if vision_encoder is None else "connector,projector"
    make_console().print(f"Composed {folder}: its connector is untrained, so it draws noise yet.")
    next_step(
        f"unigame train composed_warm_up --model {folder} --train_parts {parts}",
    )
