"""``unigame convert``: an original Janus checkpoint into the Hub format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unigame.cli.console import make_console, next_step

if TYPE_CHECKING:
    from unigame.backbones.janus.convert import Conversion, Dtype


def convert(source: str, output: Path, *, dtype: Dtype = "keep") -> Conversion:
    """Convert ``source`` (folder or Hub id) into the new folder ``output`` and say what was done.

    Raises:
        UserError: see ``unigame.backbones.janus.convert.convert``.
    """
    from unigame.backbones.janus.convert import convert as write

    console = make_console()
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
    return done
