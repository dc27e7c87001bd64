"""From the ``data:`` part of a recipe to one dataset."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unigame.data.hf import HFData
from unigame.data.local import VQA, Captions
from unigame.data.mixture import Mixture, checked_weights
from unigame.data.reader import check_options
from unigame.data.records import RecordSource
from unigame.data.webdataset import WebDataset
from unigame.errors import UserError

COMMON_KEYS = ("type", "weight", "limit")


def _synthetic(
    *, split: str = "train", size: int = 1_000, seed: int = 0, limit: int | None = None
) -> RecordSource:
    # Imported on use: readers of files don't need the renderer.
    from unigame.synthetic import SyntheticDataset

    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"size must be a whole number of samples above 0, got {size!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"seed must be a whole number from 0, got {seed!r}")
    return SyntheticDataset(split=split, size=min(size, limit or size), seed=seed)


TYPES: dict[str, Callable[..., RecordSource]] = {
    "vqa": VQA,
    "captions": Captions,
    "webdataset": WebDataset,
    "hf": HFData,
    "synthetic": _synthetic,
}


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
    check_options(verify="none", limit=limit)
    if isinstance(sources, Mapping | str) or not isinstance(sources, Sequence) or not sources:
        raise UserError(
            f"data must be a list of sources such as [{{type: vqa, ...}}], got {sources!r}"
        )
    given = check_sources(sources)
    if len(sources) == 1:
        return _open(sources[0], 0, seed, limit)
    datasets = [_open(source, number, seed) for number, source in enumerate(sources)]
    size = sum(len(dataset) for dataset in datasets)
    return Mixture(datasets, given or None, seed, size if limit is None else min(size, limit))


def check_sources(sources: Sequence[Any], place: str = "source ") -> list[float]:
    """Check types, keys and weights of sources without touching their data; returns the weights.

    Args:
        sources: of a recipe.
        place: what stands before the number of a source in messages.

    Raises:
        UserError: an unknown type or key, a key that is missing, impossible weights.
    """
    weights = [_check_source(source, f"{place}{number}") for number, source in enumerate(sources)]
    given = [weight for weight in weights if weight is not None]
    if given and len(given) < len(weights):
        bare = weights.index(None)
        raise UserError(f"{place}{bare} ({sources[bare]['type']}) has no weight, but others do")
    return checked_weights(given, given)


def _check_source(source: Any, place: str) -> float | None:
    """Check type and keys of one source without touching its data; returns its weight."""
    if not isinstance(source, Mapping) or "type" not in source:
        raise UserError(f"{place} needs a type ({', '.join(TYPES)}), got {source!r:.80}")
    kind = source["type"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise UserError(f"{place}: unknown type {kind!r:.80}; choose from {', '.join(TYPES)}")
    allowed = [*COMMON_KEYS, *inspect.signature(TYPES[kind]).parameters]
    for key in source:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            others = [name for name in TYPES if key in inspect.signature(TYPES[name]).parameters]
            if others:
                hint = f"{', '.join(others)} have it: is the type right? "
            choices = ", ".join(dict.fromkeys(allowed))
            raise UserError(f"{place} ({kind}): unknown key {key!r}; {hint}known: {choices}")
    for key, parameter in inspect.signature(TYPES[kind]).parameters.items():
        if parameter.default is parameter.empty and key not in source:
            raise UserError(f"{place} ({kind}) needs {key}:")
    return source.get("weight")


def _open(
    source: Mapping[str, Any], number: int, seed: int, limit: int | None = None
) -> RecordSource:
    kind = source["type"]
    options = {key: value for key, value in source.items() if key not in ("type", "weight")}
    if kind == "synthetic":
        options.setdefault("seed", seed)
    try:
        check_options(verify="none", limit=options.get("limit"))
        limits = [value for value in (options.get("limit"), limit) if value is not None]
        options["limit"] = min(limits) if limits else None
        return TYPES[kind](**options)
    except UserError as error:
        raise UserError(f"source {number} ({kind}): {error}") from error
