"""The model that ``generate`` and ``answer`` use, and whether a text is one that it can take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from unigame.cli import options
from unigame.errors import UserError

if TYPE_CHECKING:
    from unigame.backbones.base import Backbone


def load(
    model: str,
    adapter: str | None,
    dtype: str,
    quantization: str,
    *,
    device: str | None = None,
    speaks: bool = True,
    **texts: str,
) -> Backbone:
    """The model, once it is sure that it can take ``texts``: fields of a record by name.

    Args:
        model: as for ``load_backbone``.
        adapter: the same.
        dtype: the same.
        quantization: the same.
        device: the same.
        speaks: whether words that the bundled model does not know are said here.
        texts: by the name of their field.

    Raises:
        UserError: it does not load, or cannot take the texts.
    """
    from unigame.backbones import load_backbone

    backbone = load_backbone(
        model, dtype=dtype, device=device, adapter=adapter, quantization=quantization
    )
    # Beyond its positions a model answers nonsense and says nothing; the rules are training's.
    found = backbone.text_rules.problem(texts) if backbone.text_rules else None
    if found is not None:
        reason = re.sub(r"in its (caption|question)", "in it", found[0])  # here there is one text
        raise UserError(f"{next(iter(texts.values()))[:40]!r} cannot be used: {reason}; {found[1]}")
    if model in options.BUNDLED_MODELS and speaks:
        _warn_of_unknown_words(model, next(iter(texts.values())))
    return backbone


def chosen(model: str | None, adapter: str | None) -> str:
    """The model that is meant: the one named, else the adapter's own base, else the bundled one.

    Raises:
        UserError: the adapter names no base, or a folder that is no longer there.
    """
    if model is not None:
        return model
    if adapter is None:
        return options.BUNDLED
    from safetensors import SafetensorError

    from unigame.backbones.common.adapter_files import read_base

    try:
        name = read_base(adapter).name
    except (OSError, ValueError, AttributeError, SafetensorError):
        return options.BUNDLED  # loading it says what is wrong with it
    if not name:
        raise UserError(f"the adapter in {adapter!r} names no base model; give it by --model")
    if Path(name).is_absolute() and not Path(name).exists():
        raise UserError(
            f"the adapter in {adapter!r} was made for the model in {name!r}, which is not there; "
            "give its folder by --model"
        )
    return name


def _warn_of_unknown_words(model: str, text: str) -> None:
    """A bundled model knows a few dozen words; say which of these it does not know."""
    from unigame.synthetic.questions import vocabulary
    from unigame.system.console import make_console

    known = set(vocabulary())
    unknown = [word for word in re.findall(r"\w+", text.lower()) if word not in known]
    if unknown:
        make_console(stderr=True).print(
            f"note: {model} does not know {', '.join(map(repr, unknown))}; it knows words such "
            "as 'north', 'red', 'disc', 'how many shapes are there?', 'is there a blue cross?'"
        )


def suggestion(*words: str, model: str, adapter: str | None) -> str:
    """A command with this model, for the shell."""
    asked = ["--model", model] if model != options.BUNDLED else []
    asked += ["--adapter", adapter] if adapter else []
    return shlex.join(["unigame", *words, *asked])
