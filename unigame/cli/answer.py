"""``unigame answer``: answer a question about a picture."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from unigame.cli import model as models
from unigame.cli import options
from unigame.cli.app import argument, command, option
from unigame.cli.endings import next_step
from unigame.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


@command("answer a question about a picture")
@argument("image", "picture file", type=options.PATH)
@argument("question", "what to ask about it", type=options.words)
@options.model_or_own
@options.adapter
@options.dtype
@options.quantization
@option("--max-new-tokens", type=options.POSITIVE, default=32, help="longest answer, in tokens")
def answer(
    image: Path,
    question: str,
    model: str | None,
    adapter: str | None,
    dtype: str,
    quantization: str,
    max_new_tokens: int,
) -> None:
    """Answer a question about a picture."""
    picture = read_picture(image)
    model = models.chosen(model, adapter)
    backbone = models.load(model, adapter, dtype, quantization, question=question, answer="a")
    from unigame.system.console import make_console

    images_13SS = backbone.preprocess([picture]).to(backbone.device)
    reply = backbone.answer(images_13SS, [question], max_new_tokens=max_new_tokens)[0]
    make_console().print(reply or "(the model said nothing)")
    if model in options.BUNDLED_MODELS:
        advice = "post-train on your own questions:  unigame train janus_nano --data FILE"
    else:
        advice = f"see what training it would need:  unigame doctor --model {shlex.quote(model)}"
    next_step(advice)


def read_picture(path: Path) -> Image.Image:
    """Read a picture as the data readers do, wholly, so that a damaged file is found now.

    Raises:
        UserError: no such file, or not a readable picture.
    """
    from unigame.data.images import MISSING, CorruptImage, load_image

    try:
        return load_image(path)
    except CorruptImage as error:
        if error.reason == MISSING:
            raise UserError(f"no picture at {path}; check the path") from None
        raise UserError(
            f"{path} is not a picture that can be read ({error.detail}); try PNG or JPEG, it may "
            "be damaged"
        ) from None
    except (OSError, ValueError) as error:  # no permission, or a name that no file can have
        raise UserError(f"cannot read {path}: {error}") from None
