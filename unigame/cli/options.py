"""Options that several commands have, and the kinds of values."""

from __future__ import annotations

from pathlib import Path

import click

from unigame.bundled import BUNDLED, BUNDLED_MODELS
from unigame.cli.app import option

__all__ = ["BUNDLED", "BUNDLED_MODELS"]

POSITIVE = click.IntRange(min=1)
SEED = click.IntRange(0, 2**32 - 1)
PATH = click.Path(path_type=Path)

model = option("--model", default=BUNDLED, help="bundled name, folder or Hub id")
model_or_own = option(
    "--model",
    help=f"bundled name, folder or Hub id [default: what --adapter was made for, or {BUNDLED}]",
)
adapter = option("--adapter", help="LoRA adapter folder, such as one that train wrote")
dtype = option(
    "--dtype",
    type=click.Choice(("auto", "float32", "bfloat16")),
    default="auto",
    help="of the weights",
)
device = option(
    "--device",
    help="cpu, cuda or cuda:1, where weights are merged [default: a GPU if there is one]",
)
quantization = option(
    "--quantization",
    type=click.Choice(("none", "nf4", "int8")),
    default="none",
    help="of the language model's linear layers, by bitsandbytes",
)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number") from None


def guidance(text: str) -> float:
    """A scale of classifier-free guidance; nan is in no range."""
    value = _number(text)
    if not 1 <= value <= 1e3:
        raise click.BadParameter(f"{text} is not from 1 (no guidance) to 1000")
    return value


def temperature(text: str) -> float:
    """A temperature of sampling."""
    value = _number(text)
    if not (value == 0 or 1e-3 <= value <= 1e3):
        raise click.BadParameter(f"{text} is neither 0 (greedy) nor from 0.001 to 1000")
    return value


def words(text: str) -> str:
    """What a model can read, without spaces around it."""
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 come as halves of surrogate pairs
        raise click.BadParameter(f"{text!r} is not valid text (UTF-8)") from None
    if not text.strip():
        raise click.BadParameter("it is empty")
    return text.strip()
