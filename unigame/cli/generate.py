"""``unigame generate``: draw pictures from a text prompt."""

from __future__ import annotations

from pathlib import Path

import click

from unigame.cli import model as models
from unigame.cli import options
from unigame.cli import processes as launching
from unigame.cli.app import argument, command, option
from unigame.cli.endings import kept, next_step
from unigame.cli.picture_files import PictureFiles, picture_paths
from unigame.system.say import warn
from unigame.system.writable import require_writable


@command("draw pictures from a text prompt")
@argument("prompt", "what to draw", type=options.words)
@options.model_or_own
@options.adapter
@options.dtype
@options.quantization
@option("--num-images", type=click.IntRange(1, 10_000), default=1, help="pictures to draw")
@option("--seed", type=options.SEED, default=0, help="same seed, same pictures")
@option(
    "--guidance-scale",
    type=options.guidance,
    help="how strictly to follow the prompt; default: the family's usual, 5 (BAGEL: 4)",
)
@option(
    "--temperature",
    type=options.temperature,
    default=1.0,
    help="0 draws the most likely picture",
)
@option("--output", type=options.PATH, default="runs/generated.png", help="picture file to write")
@option(
    "--processes",
    type=options.POSITIVE,
    help="share the pictures among so many processes here; several machines: torchrun",
)
def generate(
    prompt: str,
    model: str | None,
    adapter: str | None,
    dtype: str,
    quantization: str,
    num_images: int,
    seed: int,
    guidance_scale: float | None,
    temperature: float,
    output: Path,
    processes: int | None,
) -> None:
    """Draw pictures from a text prompt."""
    require_writable(output.parent, "--output")
    paths = picture_paths(output, num_images)
    ranks, to_start = launching.ranks_of(processes)  # before torch is imported
    model = models.chosen(model, adapter)
    count = min(ranks.count, num_images)
    if ranks.rank >= count:
        return  # more processes than pictures
    if to_start > count:
        idle = to_start - count
        warn(f"--processes {to_start} for {count} pictures: {idle} not started")
    files = PictureFiles(paths, count)
    words = click.get_current_context().find_root().obj
    with (
        kept(lambda: "Stopped. Pictures already written are kept; run the same command again."),
        launching.others(words, min(to_start, count), of=ranks.count) as started,
    ):
        backbone = models.load(
            model,
            adapter,
            dtype,
            quantization,
            device=ranks.device(),
            speaks=ranks.first,
            caption=prompt,
        )
        from unigame.backbones.common.seeded import draw_seeded
        from unigame.seeds import seeds_of_rows

        seeds = seeds_of_rows(num_images, seed)
        for part in files.to_draw(ranks.rank, count, lambda: launching.ended(started)):
            images_B3SS = draw_seeded(
                backbone,
                [prompt] * len(part),
                [seeds[number] for number in part],
                guidance_scale=guidance_scale,
                temperature=temperature,
            )
            for number, image_3SS in zip(part, images_B3SS, strict=True):
                files.write(number, image_3SS)
        failed = launching.lost(started)
    if not ranks.first:
        return
    files.tidy()
    launching.say_lost(failed, "the others drew what it had not written")
    from unigame.system.console import make_console

    for path in paths:
        make_console().print(f"wrote {path}")
    question = models.suggestion(
        "answer", str(paths[0]), "describe the image", model=model, adapter=adapter
    )
    next_step(f"ask the model about it:  {question}")
