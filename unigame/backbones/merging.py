"""A trained adapter and its base as one plain checkpoint, compared with them before it counts."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unigame.backbones.base import Backbone
from unigame.backbones.common.adapter_files import read_adapter, read_base
from unigame.backbones.loading import load_backbone
from unigame.errors import UserError

PROBES = 4
QUESTION, ANSWER = "what colour is the circle", "a red circle"
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Of a probe's loss, relative to losses above 1. Adding BA to W first changes the last bits of
float32; in bfloat16 W + BA is rounded to 8 bits."""


@dataclass(frozen=True)
class Merged:
    """What a merge gave.

    Attributes:
        base: the model that the adapter was made for.
        loss_gap: largest difference of a probe's loss.
        answers: probes with the same free answer, of ``PROBES``.
        pixel_gap: mean difference of a drawn picture's pixels, of 1; None: the model cannot draw.
        dtype: of the weights.
    """

    base: str
    loss_gap: float
    answers: int
    pixel_gap: float | None
    dtype: str


@dataclass
class _Outputs:
    loss_B: Tensor
    answers: list[str]
    picture: Tensor | None


def merge(
    folder: str | Path,
    output: str | Path,
    *,
    model: str | None = None,
    dtype: str = "auto",
    device: str | torch.device | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Merged:
    """Write base + adapter as a checkpoint of its own, load it again, and compare.

    Args:
        folder: holds the adapter: the output_dir of a run, or a checkpoint of it.
        output: folder to write; new or empty. It is removed again if the outputs differ.
        model: the base, where it is no longer where the adapter says.
        dtype: of the weights written; "auto": the base's own.
        device: where to compute.
        say: takes a line on what is done now.

    Raises:
        UserError: no adapter or no base is there, the base has another digest than the adapter
            says, the family cannot be merged, or the outputs of the two differ.
    """
    folder, output = Path(folder), Path(output)
    _require_new(output)
    read_adapter(folder)
    base = base_of(folder, model)
    say(f"loading {base} with the adapter of {folder}")
    backbone = load_backbone(base, dtype=dtype, device=device, adapter=folder)
    require_own_base(folder, base, backbone.weights_digest())
    before = _outputs(backbone)
    there = output.exists()
    try:
        say(f"writing {output}")
        output.mkdir(parents=True, exist_ok=True)
        backbone.save_merged(output)
        kind = next(backbone.parameters()).dtype
        del backbone
        say("loading it again, and comparing")
        name = "bfloat16" if kind == torch.bfloat16 else "float32"
        after = _outputs(load_backbone(output, dtype=name, device=device))
        return _compared(before, after, base, kind, output)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        if there:
            output.mkdir()
        raise


def base_of(folder: Path, model: str | None) -> str:
    """The base that is meant: ``model``, else what the adapter names.

    Raises:
        UserError: it names none.
    """
    base = model or read_base(folder).name
    if not base:
        raise UserError(f"the adapter in {str(folder)!r} names no base model; give it by --model")
    return base


def require_own_base(folder: Path, base: str, digest: str) -> None:
    """Refuse another base than the adapter's: merged, it would agree with itself in every test.

    An adapter that names no digest is only warned of, as it is loaded.

    Args:
        folder: of the adapter.
        base: the name of what is there.
        digest: of its weights.

    Raises:
        UserError: the adapter names another digest.
    """
    named = read_base(folder)
    if named.digest in ("", digest):
        return
    # Of the same name another model lies there by now; its own one has another place.
    own = "ITS_BASE" if not named.name or named.name == base else shlex.quote(named.name)
    raise UserError(
        f"the adapter in {str(folder)!r} was made for {named.name or 'a base'!r} with the weights "
        f"{named.digest}, and {base!r} has the weights {digest}: merged they would answer "
        "nonsense, and nothing was written; merge it with its own base: unigame merge "
        f"{shlex.quote(str(folder))} OUTPUT --model {own}"
    )


def _require_new(output: Path) -> None:
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"output {str(output)!r} is not empty; name a new folder")


@torch.no_grad()
def _outputs(backbone: Backbone) -> _Outputs:
    """What a model makes of a few fixed pictures: losses, free answers, and a drawing."""
    side = backbone.facts.image_size
    noise = torch.Generator().manual_seed(0)
    coarse = torch.rand(PROBES, 3, 4, 4, generator=noise)
    images = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    images = images.clamp(0, 1).to(backbone.device)
    questions = [QUESTION] * PROBES
    picture = None
    try:
        backbone.require_drawing()
        picture = backbone.generate([ANSWER], do_sample=False, guidance_scale=1.0).float().cpu()
    except UserError:
        pass  # reads, and does not draw
    loss_B = backbone.answer_loss(images, questions, [ANSWER] * PROBES).float().cpu()
    return _Outputs(loss_B, backbone.answer(images, questions), picture)


def _compared(
    before: _Outputs, after: _Outputs, base: str, kind: torch.dtype, output: Path
) -> Merged:
    scale_B = before.loss_B.clamp(min=1)
    gap = ((before.loss_B - after.loss_B).abs() / scale_B).max().item()
    if not gap <= TOLERANCE.get(kind, 1e-3):
        raise UserError(
            f"the merged model of {str(output)!r} answers otherwise than the adapter: losses "
            f"differ by {gap:.3g}, {TOLERANCE.get(kind, 1e-3):g} at most may be rounding; it was "
            "removed. Merge with --dtype float32, or load the adapter as it is"
        )
    same = sum(a == b for a, b in zip(before.answers, after.answers, strict=True))
    pixels = None
    if before.picture is not None and after.picture is not None:
        pixels = (before.picture - after.picture).abs().mean().item()
    return Merged(base, gap, same, pixels, str(kind).removeprefix("torch."))
