"""``unigame convert``: an original Janus checkpoint into the Hub format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from unigame.cli import options
from unigame.cli.app import argument, command, option
from unigame.cli.endings import kept, next_step
from unigame.system.writable import require_writable

if TYPE_CHECKING:
    from unigame.backbones.janus.convert import Dtype


@command("turn an original deepseek-ai Janus into the Hub format")
@argument("source", "folder or Hub id: deepseek-ai/Janus-Pro-1B")
@argument("output", "folder to write; new or empty", type=options.PATH)
@option(
    "--dtype",
    type=click.Choice(("keep", "float32", "bfloat16")),
    default="keep",
    help="of the weights",
)
def convert(source: str, output: Path, dtype: Dtype) -> None:
    """Write Janus-1.3B or Janus-Pro as load_backbone and transformers read it.

    Every value is compared. See docs/backbones/janus.md.
    """
    require_writable(output, "output")
    from unigame.backbones.janus.convert import convert as write
    from unigame.system.console import make_console

    console = make_console()
    with kept(lambda: f"Stopped; {output} was not written. Run the same command again."):
        done = write(source, output, dtype=dtype, say=lambda line: console.print(f"  {line}"))
    same = "every value compared with the original and equal"
    if dtype != "keep":
        same = f"every value compared with the original's, rounded to {dtype}, and equal"
    console.print(
        f"Converted {source} to {output}: {done.parameters / 1e6:,.1f} M parameters in "
        f"{done.tensors} tensors, {done.dtype}; {same}."
    )
    for reason, count in done.left_out.items():
        console.print(f"Left out: {reason} ({count} {'tensor' if count == 1 else 'tensors'}).")
    low, high = done.codebook_norms
    if low < 0.99 or high > 1.01:
        console.print(
            f"Note: the image codes' vectors are {low:.3f} to {high:.3f} long. The authors bring "
            "them to length 1 before they look for the nearest code, transformers does not: "
            "its vqmodel.encode may pick other codes than theirs. unigame does as the authors do."
        )
    next_step(
        f"unigame doctor --model {output}",
        f'unigame generate "a red disc" --model {output}',
        f"unigame train janus_pro_1b --model {output}",
    )
