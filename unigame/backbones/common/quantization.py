"""How the weights of a frozen language model may be kept. Imports nothing heavy."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from unigame.errors import UserError

Quantization = Literal["none", "nf4", "int8"]
NONE = "none"
FIX = 'pip install "unigame[quantization]"'
QUANTIZATIONS: tuple[Quantization, ...] = ("none", "nf4", "int8")

PACKED_BYTES: dict[str, float] = {
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),  # a scale of 8 bits for 64 weights, and theirs
    "int8": 1.0,
}
"""Of a weight; an output unit's own scale in int8 is not counted."""


def require_quantization(kind: str) -> None:
    """Say what is wrong, or what to install, before anything is loaded.

    Raises:
        UserError: ``kind`` is none of ``QUANTIZATIONS``; bitsandbytes is not installed, or does not
            work here.
    """
    if kind not in QUANTIZATIONS:
        raise UserError(
            f"quantization={kind!r} is not supported; choose from {', '.join(QUANTIZATIONS)}"
        )
    if kind == NONE:
        return
    if find_spec("bitsandbytes") is None:
        raise UserError(f"quantization={kind!r} needs bitsandbytes, which is not installed: {FIX}")
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"quantization={kind!r}: bitsandbytes does not load ({reason}); install it again: {FIX}"
        ) from error
