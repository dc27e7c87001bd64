"""``unigame generate``: draw pictures from a text prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from unigame.cli import model as models
from unigame.cli import options
from unigame.cli.app import argument, command, option
from unigame.cli.endings import kept, next_step
from unigame.errors import UserError
from unigame.system.writable import require_writable

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

# Pictures drawn at once: enough to keep a GPU busy, small enough for a 7B model in 24 GB.
_BATCH = 4


@command("draw pictures from a text prompt")
@argument("prompt", "what to draw", type=options.words)
@options.model
@options.adapter
@options.dtype
@options.quantization
@option("--num-images", type=click.IntRange(1, 10_000), default=1, help="pictures to draw")
@option("--seed", type=options.SEED, default=0, help="same seed, same pictures")
@option(
    "--guidance-scale",
    type=options.guidance,
    default=5.0,
    help="how strictly to follow the prompt",
)
@option(
    "--temperature",
    type=options.temperature,
    default=1.0,
    help="0 draws the most likely picture",
)
@option("--output", type=options.PATH, default="runs/generated.png", help="picture file to write")
def generate(
    prompt: str,
    model: str,
    adapter: str | None,
    dtype: str,
    quantization: str,
    num_images: int,
    seed: int,
    guidance_scale: float,
    temperature: float,
    output: Path,
) -> None:
    """Draw pictures from a text prompt."""
    require_writable(output.parent, "--output")
    paths = _picture_paths(output, num_images)
    backbone = models.load(model, adapter, dtype, quantization, caption=prompt)
    from unigame.backbones.common.seeded import draw_seeded
    from unigame.seeds import seeds_of_rows
    from unigame.system.console import make_console

    seeds = seeds_of_rows(num_images, seed)
    with kept(lambda: "Stopped. Pictures already written are kept; run the same command again."):
        for start in range(0, num_images, _BATCH):
            part = slice(start, start + _BATCH)
            images_B3SS = draw_seeded(
                backbone,
                [prompt] * len(paths[part]),
                seeds[part],
                guidance_scale=guidance_scale,
                temperature=temperature,
            )
            for path, image_3SS in zip(paths[part], images_B3SS, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                _to_pil(image_3SS).save(path)
    for path in paths:
        make_console().print(f"wrote {path}")
    question = models.suggestion(
        "answer", str(paths[0]), "describe the image", model=model, adapter=adapter
    )
    next_step(f"ask the model about it:  {question}")


def _picture_paths(output: Path, num_images: int) -> list[Path]:
    """``name.png``, or ``name-1.png`` and so on.

    Raises:
        UserError: such a file cannot hold a picture.
    """
    from PIL import Image

    suffixes = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE
    }
    if output.is_dir() or output.suffix.lower() not in suffixes:
        raise UserError(f"--output {output} is not a picture file; name one such as runs/cat.png")
    if num_images == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{i + 1}") for i in range(num_images)]


def _to_pil(image_3SS: Tensor) -> Image.Image:
    """An image tensor (3, S, S), float in [0, 1], as an 8-bit picture."""
    from PIL import Image

    pixels_SS3 = image_3SS.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels_SS3.cpu().numpy())
