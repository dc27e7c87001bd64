"""Which base model an adapter belongs to: written with it, and compared when it is loaded.

An adapter of another base of equal shapes loads without complaint and answers nonsense. PEFT writes
the base's name only; a digest of its weights goes into the header of ``adapter_model.safetensors``
beside it, where it stays with the weights and PEFT takes no notice of it.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from safetensors.torch import save_file

from unigame.backbones.common.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS

logger = logging.getLogger(__name__)
NAME_KEY, DIGEST_KEY = "base_model", "base_model_digest"


class Base(NamedTuple):
    """A base model: Hub id, bundled name or absolute path, and ``identity.weights_digest``."""

    name: str
    digest: str


def write_base(folder: str | Path, base: Base) -> None:
    """Add the base to the weights that PEFT has just written."""
    file = Path(folder) / ADAPTER_WEIGHTS
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata() or {}
        weights = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    whole = file.with_name(f"{file.name}.part")
    save_file(weights, whole, {**header, NAME_KEY: base.name, DIGEST_KEY: base.digest})
    _sort_metadata(whole)
    os.replace(whole, file)


def _sort_metadata(file: Path) -> None:
    """The header's texts in the order of their names: safetensors writes them in a random one.

    So equal weights are equal files, and a run that is repeated can be compared byte for byte. The
    file is 8 bytes of length, the header in JSON, and the weights.
    """
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the weights stay aligned
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def read_base(folder: str | Path) -> Base:
    """What an adapter says of its base; texts are empty where it does not."""
    with safe_open(Path(folder) / ADAPTER_WEIGHTS, framework="pt") as opened:
        header = opened.metadata() or {}
    name = header.get(NAME_KEY)
    if not name:  # written by PEFT, or by a version before this
        config = json.loads((Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        name = config.get("base_model_name_or_path")
    return Base(str(name or ""), header.get(DIGEST_KEY, ""))


def warn_if_other(folder: str | Path, base: Base) -> None:
    """Log a warning if an adapter was made for another base model than ``base``.

    By the digests where it has one: a model may lie in another folder by now. Else by the names.
    """
    made_for = read_base(folder)
    if made_for.digest and made_for.digest != base.digest:
        logger.warning(
            "adapter %r was made for the base model %r (weights %s), but this is %r (weights %s): "
            "its answers will be wrong; load it with its own base model",
            str(folder),
            made_for.name,
            made_for.digest,
            base.name,
            base.digest,
        )
    elif not made_for.digest and not _same_name(made_for.name, base.name):
        logger.warning(
            "adapter %r was made for the base model %r, but this is %r; it holds no digest of its "
            "base, so check that they are the same model",
            str(folder),
            made_for.name,
            base.name,
        )


def _same_name(one: str, other: str) -> bool:
    """Whether two names may mean one model; a name that is not given may mean any."""
    last = [Path(name).name.lower().replace("_", "-") for name in (one, other)]
    return not all(last) or last[0] == last[1]
