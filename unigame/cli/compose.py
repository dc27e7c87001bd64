"""``unigame compose``: make a model from a VLM or LLM and a diffusion image branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unigame.cli import options
from unigame.cli.app import argument, command, option
from unigame.cli.endings import next_step
from unigame.system.writable import require_writable


@command("make a model from a VLM or LLM and a diffusion image branch")
@argument("folder", "to write", type=options.PATH)
@option("--language", required=True, help="VLM or LLM (folder or Hub id)")
@option("--denoiser", required=True, help="diffusers pipeline (folder or Hub id)")
@option("--vision-encoder", help="SigLIP or CLIP, for a text-only LLM")
@option("--vae", help="another VAE than the pipeline's")
@option("--image-size", type=options.POSITIVE, default=512, help="px, drawn")
@option("--vision-size", type=options.POSITIVE, help="px, read (Qwen only)")
@option("--num-queries", type=options.POSITIVE, default=64, help="drawn from")
@option("--strength", type=float, default=0.5, help="noise of a redrawing, (0, 1]")
@option("--draw-steps", type=options.POSITIVE, default=1, help="of a redrawing")
@option("--seed", type=options.SEED, default=0, help="of the connector's weights")
def compose(
    folder: Path,
    seed: int,
    num_queries: int,
    strength: float,
    draw_steps: int,
    **parts: Any,
) -> None:
    """Check that the parts fit, and write config.json and an untrained connector.

    The parts stay where they are. See docs/backbones/composed.md.
    """
    require_writable(folder, "folder")
    from dataclasses import asdict

    from unigame.backbones.composed import config
    from unigame.backbones.composed.load import compose as write
    from unigame.system.console import make_console

    wanted = config.ComposedConfig(
        **parts,
        connector=config.ConnectorConfig(num_queries=num_queries),
        draw=config.DrawConfig(strength=strength, steps=draw_steps),
    )
    write(folder, config.build_config(asdict(wanted)), seed=seed)
    trained = "connector" if parts["vision_encoder"] is None else "connector,projector"
    make_console().print(f"Composed {folder}: its connector is untrained, so it draws noise yet.")
    next_step(f"unigame train composed_warm_up --model {folder} --train_parts {trained}")
