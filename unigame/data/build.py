"""From the ``data:`` part of a recipe to one dataset."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unigame.data.captions import Captions
from unigame.data.chat import Chat
from unigame.data.dataset import PicturesNotFound
from unigame.data.hf import HFData
from unigame.data.mixture import Mixture
from unigame.data.picture_folder import PictureFolder
from unigame.data.records import RecordSource
from unigame.data.settings import SOURCES, check_values
from unigame.data.vqa import VQA
from unigame.data.webdataset import WebDataset
from unigame.errors import UserError


def _synthetic(
    *, split: str = "train", size: int = 1_000, seed: int = 0, limit: int | None = None
) -> RecordSource:
    # Imported on use: readers of files don't need the renderer.
    from unigame.synthetic import SyntheticDataset

    return SyntheticDataset(split=split, size=min(size, limit or size), seed=seed)


TYPES: dict[str, Callable[..., RecordSource]] = {
    "vqa": VQA,
    "captions": Captions,
    "webdataset": WebDataset,
    "hf": HFData,
    "chat": Chat,
    "pictures": PictureFolder,
    "synthetic": _synthetic,
}
"""A type that is new here needs a table of its settings in ``settings.SOURCES``, too."""


def build_dataset(
    sources: Sequence[Mapping[str, Any]], *, seed: int = 0, limit: int | None = None
) -> RecordSource:
    """Open the sources of a recipe, check their rows, and mix them.

    Args:
        sources: Each a mapping with ``type`` (one of :data:`TYPES`), the options of that reader,
            and optionally ``limit`` (rows) and ``weight``. Without any weight the sources are
            concatenated; with weights they are shares of the mixture, and all sources need one.
        seed: Order of the mixture; also of synthetic sources that name no seed of their own.
        limit: At most so many rows in all.

    Returns:
        The source itself if there is one, else a :class:`Mixture`.

    Raises:
        UserError: Unknown type or option, impossible value, missing path, malformed or empty data.
    """
    if isinstance(sources, Mapping | str) or not isinstance(sources, Sequence) or not sources:
        raise UserError(
            f"data must be a list of sources such as [{{type: vqa, ...}}], got {sources!r}"
        )
    limit = SOURCES["vqa"]["limit"].check("limit", limit)
    weights = check_sources(sources)
    checked = [check_values(source, f"source {n}") for n, source in enumerate(sources)]
    if len(checked) == 1:
        return _open(checked[0], 0, seed, limit)
    datasets = [_open(source, number, seed) for number, source in enumerate(checked)]
    size = sum(len(dataset) for dataset in datasets)
    return Mixture(datasets, weights or None, seed, size if limit is None else min(size, limit))


def check_sources(sources: Sequence[Any], place: str = "source ") -> list[float]:
    """Check types and keys of sources without touching their data; returns the weights.

    Args:
        sources: of a recipe.
        place: what stands before the number of a source in messages.

    Raises:
        UserError: an unknown type or key, a key that is missing, a weight that others have.
    """
    for number, source in enumerate(sources):
        _check_keys(source, f"{place}{number}")
    given = [source["weight"] for source in sources if source.get("weight") is not None]
    for number, source in enumerate(sources):
        if given and source.get("weight") is None:
            raise UserError(f"{place}{number} ({source['type']}) has no weight, but others do")
    return given


def _check_keys(source: Any, place: str) -> None:
    """Check type and keys of one source."""
    if not isinstance(source, Mapping) or "type" not in source:
        raise UserError(f"{place} needs a type ({', '.join(TYPES)}), got {source!r:.80}")
    kind = source["type"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise UserError(f"{place}: unknown type {kind!r:.80}; choose from {', '.join(TYPES)}")
    known = SOURCES[kind]
    for key in source:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            if others := [name for name, rules in SOURCES.items() if key in rules]:
                hint = f"{', '.join(others)} have it: is the type right? "
            raise UserError(
                f"{place} ({kind}): unknown key {key!r}; {hint}known: {', '.join(known)}"
            )
    for key, parameter in inspect.signature(TYPES[kind]).parameters.items():
        if parameter.default is parameter.empty and key not in source:
            raise UserError(f"{place} ({kind}) needs {key}:")


def _open(
    source: Mapping[str, Any], number: int, seed: int, limit: int | None = None
) -> RecordSource:
    kind = source["type"]
    options = {key: value for key, value in source.items() if key not in ("type", "weight")}
    if kind == "synthetic":
        options.setdefault("seed", seed)
    limits = [value for value in (options.get("limit"), limit) if value is not None]
    options["limit"] = min(limits) if limits else None
    try:
        return TYPES[kind](**options)
    except UserError as error:
        said = f"source {number} ({kind}): {error}"
        if isinstance(error, PicturesNotFound):
            said += (
                ": images: FOLDER in the source (unigame data --images FOLDER; unigame train "
                f"--data.{number}.images FOLDER, or --eval_data.{number}.images FOLDER)"
            )
        raise UserError(said) from error
