"""Licence notes of bases and data, as far as they are known; nothing is guessed.

What a family's page in ``docs/backbones`` says stands here in short. Of any other base the card in
its folder or in the Hub's cache is asked. Licences change: the card says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

UNKNOWN = "unknown"


class Licence(NamedTuple):
    """What is known.

    Attributes:
        text: for people; begins with ``unknown`` where nothing is.
        id: the Hub's name of it, ``"other"`` for one that has none; empty: unknown.
        name: of an ``"other"`` one.
        link: to it.
    """

    text: str
    id: str = ""
    name: str = ""
    link: str = ""


_OWN = Licence("Apache 2.0 (unigame)", "apache-2.0")
_KNOWN: Sequence[tuple[str, Licence]] = (
    ("(janus|bagel)-nano", _OWN),
    (
        r"deepseek-(community|ai)/Janus.*",
        Licence(
            "the weights are under the DeepSeek Model License, which restricts some uses and binds "
            "what is made from them, this model too; the authors' code is under MIT",
            "other",
            "deepseek-model-license",
            "https://github.com/deepseek-ai/Janus",
        ),
    ),
    (r"(BAAI|Emu3-community)/Emu3-(Chat|Gen).*", Licence("Apache 2.0", "apache-2.0")),
    (r"ByteDance-Seed/BAGEL-7B-MoT", Licence("Apache 2.0", "apache-2.0")),
    (
        r"(facebook|leloy)/(chameleon|Anole).*",
        Licence(
            "Meta's Chameleon Research License: noncommercial research only, for outputs too; it "
            "forbids enabling what Meta disabled",
            "other",
            "chameleon-research-license",
            "https://github.com/facebookresearch/chameleon",
        ),
    ),
)


def base_licence(name: str, place: str = "") -> Licence:
    """That of a base model.

    Args:
        name: its Hub id, or the bundled name.
        place: its folder here, where it is one.
    """
    for pattern, licence in _KNOWN:
        if re.fullmatch(pattern, name, flags=re.I):
            return licence
    said = _of_card(place, name)
    if said:
        return Licence(f"`{said}`, as its own card says", said)
    return Licence(f"{UNKNOWN}: read the base's page before you publish or use this")


def _of_card(place: str, name: str) -> str:
    """``license`` of the base's README.md, in its folder or in the Hub's cache."""
    from huggingface_hub import ModelCard, try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    file: Any = Path(place) / "README.md" if place else None
    if file is None or not file.is_file():
        try:
            file = try_to_load_from_cache(name, "README.md")
        except HFValidationError:  # a folder's name
            return ""
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return ""
    try:
        found = ModelCard.load(Path(file)).data.get("license")
    except Exception:  # someone else's text: no YAML, or an odd one
        return ""
    return found if isinstance(found, str) else ""


def data_licence(sources: Sequence[Mapping[str, Any]], given: str | None) -> str:
    """That of the training data, one sentence.

    Args:
        sources: the recipe's ``data``.
        given: what the user says of it.
    """
    if given:
        return given
    kinds = {str(source.get("type")) for source in sources}
    if kinds == {"synthetic"}:
        return "Apache 2.0: drawn by unigame itself, no one else's pictures"
    return f"{UNKNOWN}: nobody said under which terms the training data are; ask who trained this"
