"""``unigame generate`` and ``unigame answer``: what a person does with a model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from unigame.cli.console import make_console, next_step
from unigame.data.images import MISSING, CorruptImage, load_image
from unigame.errors import UserError
from unigame.seeds import seeds_of_rows

if TYPE_CHECKING:
    from torch import Tensor

    from unigame.backbones.base import Backbone

Dtype = Literal["auto", "float32", "bfloat16"]

# Pictures drawn at once: enough to keep a GPU busy, small enough for a 7B model in 24 GB.
_BATCH = 4


def generate(
    prompt: str,
    *,
    model: str,
    adapter: str | None = None,
    dtype: Dtype = "auto",
    num_images: int = 1,
    seed: int = 0,
    guidance_scale: float = 5.0,
    temperature: float = 1.0,
    output: Path,
) -> list[Path]:
    """Draw pictures of ``prompt`` and write them; returns the files, ``name-2.png`` and so on.

    Raises:
        UserError: an empty prompt, an output that cannot hold a picture, or a model that does not
            load.
    """
    prompt = prompt.strip()
    if not prompt:
        raise UserError("the prompt is empty; say what to draw, in quotes")
    paths = _picture_paths(output, num_images)
    backbone = _load(model, adapter, dtype)
    _require_fitting(backbone, "prompt", {"caption": prompt})
    _warn_of_unknown_words(prompt, model)
    from unigame.backbones.common.seeded import draw_seeded

    seeds = seeds_of_rows(num_images, seed)
    for start in range(0, num_images, _BATCH):
        batch_paths = paths[start : start + _BATCH]
        images_B3SS = draw_seeded(
            backbone,
            [prompt] * len(batch_paths),
            seeds[start : start + _BATCH],
            guidance_scale=guidance_scale,
            temperature=temperature,
        )
        for path, image_3SS in zip(batch_paths, images_B3SS, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil(image_3SS).save(path)
    console = make_console()
    for path in paths:
        console.print(f"wrote {path}")
    question = _command("answer", str(paths[0]), "describe the image", model, adapter)
    next_step(f"ask the model about it:  {question}")
    return paths


def answer(
    image: Path,
    question: str,
    *,
    model: str,
    adapter: str | None = None,
    dtype: Dtype = "auto",
    max_new_tokens: int = 32,
) -> str:
    """Print and return the model's answer to ``question`` about the picture in ``image``.

    Raises:
        UserError: an empty question, a file that is not a readable picture, or a model that does
            not load.
    """
    question = question.strip()
    if not question:
        raise UserError("the question is empty; ask something about the picture, in quotes")
    picture = read_picture(image)
    backbone = _load(model, adapter, dtype)
    _require_fitting(backbone, "question", {"question": question, "answer": "a"})
    _warn_of_unknown_words(question, model)
    images_13SS = backbone.preprocess([picture]).to(backbone.device)
    reply = backbone.answer(images_13SS, [question], max_new_tokens=max_new_tokens)[0]
    make_console().print(reply or "(the model said nothing)", markup=False)
    if model == "janus-nano":
        advice = "post-train on your own questions:  unigame train RECIPE.yaml  (recipes/ has some)"
    else:
        advice = f"see what training it would need:  unigame doctor --model {shlex.quote(model)}"
    next_step(advice)
    return reply


def read_picture(path: Path) -> Image.Image:
    """Read a picture as the data readers do, wholly, so that a damaged file is found now.

    Raises:
        UserError: no such file, or not a readable picture.
    """
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


def to_pil(image_3SS: Tensor) -> Image.Image:
    """An image tensor (3, S, S), float in [0, 1], as an 8-bit picture."""
    pixels_SS3 = image_3SS.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels_SS3.cpu().numpy())


def _load(model: str, adapter: str | None, dtype: Dtype) -> Backbone:
    from unigame.backbones import load_backbone

    return load_backbone(model, dtype=dtype, adapter=adapter)


def _require_fitting(backbone: Backbone, name: str, texts: dict[str, str]) -> None:
    """Beyond its positions a model answers nonsense and says nothing; as in training."""
    found = backbone.text_rules.problem(texts) if backbone.text_rules else None
    if found is not None:
        # Rules speak of a record's fields; here there is one text.
        reason = found[0].replace("in its caption", "in it").replace("in its question", "in it")
        raise UserError(f"the {name} cannot be used: {reason}; {found[1]}")


def _warn_of_unknown_words(text: str, model: str) -> None:
    """The bundled model knows a few dozen words; say which of these it does not know."""
    if model != "janus-nano":
        return
    from unigame.synthetic.questions import vocabulary

    known = set(vocabulary())
    unknown = [word for word in re.findall(r"\w+", text.lower()) if word not in known]
    if unknown:
        make_console(stderr=True).print(
            f"note: janus-nano does not know {', '.join(map(repr, unknown))}; it knows words such "
            "as 'north', 'red', 'disc', 'how many shapes are there?', 'is there a blue cross?'"
        )


def _picture_paths(output: Path, num_images: int) -> list[Path]:
    suffixes = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE
    }
    if output.is_dir() or output.suffix.lower() not in suffixes:
        raise UserError(f"--output {output} is not a picture file; name one such as runs/cat.png")
    if num_images == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{i + 1}") for i in range(num_images)]


def _command(name: str, first: str, second: str, model: str, adapter: str | None) -> str:
    words = ["unigame", name, first, second]
    if model != "janus-nano":
        words += ["--model", model]
    if adapter:
        words += ["--adapter", adapter]
    return shlex.join(words)
