"""``results.json``, the record of one model's evaluation, and ``run.json``, what made predictions.

The record holds every unit that was scored, so that intervals and paired differences can be
computed again from it, by others too. Which model it was is a SHA-256 over its weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import unigame
from unigame.backbones.base import Backbone
from unigame.backbones.common.quantization import NONE
from unigame.data import CorruptImage, SkipReport
from unigame.errors import UserError
from unigame.evaluation.base import Benchmark, Item, Loaded, Prediction, Scored
from unigame.reports.metrics import Metric, num_clusters, to_json
from unigame.reports.records import FORMAT, unparsed_warning
from unigame.reports.weights import folder_sha256, setup_sha256
from unigame.system.json_text import parse_json

_NAMED = 3
"""So many figures without an interval are named; more are counted."""


def new_record(model: Mapping[str, Any]) -> dict[str, Any]:
    """A record without benchmarks."""
    return {
        "format": FORMAT,
        "unigame": unigame.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": dict(model),
        "benchmarks": {},
        "summary": {"consistency": None, "understanding": None},
    }


def open_record(path: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    """The record in a file, to be added to, or a new one.

    Raises:
        UserError: the file is no record, or one of another model.
    """
    if not path.exists():
        return new_record(model)
    record = _read(path)
    changed = differences(weights_of(record["model"]), weights_of(model))
    if changed:
        was, now = _said(record["model"]), _said(model)
        # One that was trained anew has the same name, and only its digest tells.
        differs = f"{was}, and this is {now}" if was != now else f"{was} before: {changed[0]}"
        raise UserError(
            f"{path} is the record of another model: of {differs}; give another --output"
        )
    return record


def _said(model: Mapping[str, Any]) -> str:
    """A model in words: its name, its adapter, and how its weights are kept."""
    adapter = model.get("adapter")
    quantization = model.get("quantization", NONE)
    return (
        repr(str(model.get("id", "")))
        + (f" with adapter {str(adapter.get('id', ''))!r}" if adapter else "")
        + f" in {model['dtype']}"
        + (f", {quantization}" if quantization != NONE else "")
    )


def weights_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a model another one; the path to it does not."""
    adapter = model.get("adapter")
    return {
        "sha256": model["sha256"],
        "setup": model.get("setup"),
        "adapter": adapter["sha256"] if adapter else None,
        "adapter_setup": adapter.get("setup") if adapter else None,
        "dtype": model["dtype"],
        "quantization": model.get("quantization", NONE),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        record = parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is no record ({error}); delete it and evaluate again") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{path} is of format {found!r}, expected {FORMAT!r}")
    if not _whole(record):
        raise UserError(f"{path} lacks parts of a record; delete it and evaluate again")
    return record


def _whole(record: Mapping[str, Any]) -> bool:
    """Whether there is what adding a benchmark reads."""
    model, benchmarks = record.get("model"), record.get("benchmarks")
    if not isinstance(model, Mapping) or not {"sha256", "dtype"} <= model.keys():
        return False
    adapter = model.get("adapter")
    if adapter is not None and not (isinstance(adapter, Mapping) and "sha256" in adapter):
        return False
    return isinstance(benchmarks, dict) and all(
        isinstance(entry, Mapping)
        and isinstance(entry.get("metrics"), Mapping)
        and isinstance(entry.get("counts"), Mapping)
        for entry in benchmarks.values()
    )


def write_json(path: Path, content: Any) -> None:
    """Replace a file as a whole: a reader sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        text = json.dumps(content, ensure_ascii=False, indent=1)
        # Half a character, as broken software writes it, becomes the escape that JSON has for it.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def require_no_fewer(path: Path, items: Mapping[str, int], limit: int | None) -> None:
    """Refuse a limit by which a benchmark's entry would give way to one of fewer items.

    Replies are kept whatever the limit, but figures and intervals of the fuller entry would be
    gone without a word.

    Args:
        path: the record, which may not be there yet.
        items: how many of each benchmark would be asked, by its name in the record.
        limit: of each; None: nothing was cut.

    Raises:
        UserError: it names the benchmarks with both numbers; or the file is no record.
    """
    if limit is None or not path.exists():
        return
    fuller = []
    for name, entry in _read(path)["benchmarks"].items():
        before = entry["counts"].get("items") or 0
        if name in items and before > max(items[name], limit):
            fuller.append(f"{name} of {before} items, which {items[name]} would replace")
    if fuller:
        raise UserError(
            f"--limit {limit}: {path} already holds {'; '.join(fuller)}; give another --output, "
            "or leave --limit out"
        )


def benchmark_entry(
    benchmark: Benchmark,
    loaded: Loaded,
    predictions: Mapping[str, Prediction],
    scored: Scored,
    *,
    generation: Mapping[str, Any],
    details: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """One benchmark's part of the record.

    Raises:
        UserError: a metric without units: nothing could be scored.
    """
    errors = _errors(predictions)
    skipped = Counter(loaded.skips.counts()) + Counter(errors.values())
    # A scorer may list an item without its picture as unscored too: it counts once, as skipped.
    unscored = {id: why for id, why in scored.unscored.items() if id not in errors}
    counts = {
        "items": len(loaded.items),
        "scored": len(loaded.items) - len(errors) - len(unscored),
        "unparsed": len(scored.unparsed),
        "skipped": dict(skipped.most_common()),
        "unscored": dict(Counter(unscored.values()).most_common()),
    }
    examples = left_out_first(loaded, errors)
    return {
        "title": benchmark.title,
        "group": benchmark.group,
        "task": benchmark.task,
        "dataset": loaded.dataset.as_dict(),
        "variant": benchmark.variant(),
        "scorer": scored.scorer,
        "generation": dict(generation),
        "counts": counts,
        **({"examples": examples} if examples else {}),
        "warnings": [
            *filter(None, [unparsed_warning(counts), no_interval(scored.metrics)]),
            *scored.warnings,
        ],
        "details": {**details, **scored.details},
        "seconds": round(seconds, 3),
        "metrics": metrics_json(scored.metrics),
    }


def no_interval(metrics: Iterable[Metric]) -> str:
    """Why figures have no interval; empty where they all have one."""
    alone = [metric.label for metric in metrics if metric.units and num_clusters(metric) == 1]
    if not alone:
        return ""
    more = f" and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
    return (
        f"no interval for {', '.join(alone[:_NAMED])}{more}: what was scored is about one picture "
        "or group, and intervals are over several; add questions about other pictures"
    )


def require_predictions(loaded: Loaded, predictions: Mapping[str, Prediction]) -> None:
    """Refuse to score where no item could be asked.

    Raises:
        UserError: it names each reason with the first item that was left out by it.
    """
    errors = _errors(predictions)
    if not loaded.items or len(errors) < len(loaded.items):
        return
    first = left_out_first(loaded, errors)
    reasons = [
        f"{count} {reason} (first: {first[reason]})"
        for reason, count in Counter(errors.values()).most_common()
    ]
    raise UserError(
        f"no item was scored: all {len(errors)} skipped, {', '.join(reasons)}; put the pictures "
        "there, or mend the paths, and run the same command again"
    )


def left_out_first(loaded: Loaded, errors: Mapping[str, str]) -> dict[str, str]:
    """By reason the first row or item that was left out, and what exactly was wrong with it.

    Args:
        loaded: the items, and rows that gave none.
        errors: item id -> why it could not be asked.
    """
    found = {reason: _row(loaded.skips, reason) for reason in loaded.skips.counts()}
    for item in loaded.items:
        reason = errors.get(item.id)
        if reason is not None and reason not in found:
            found[reason] = f"{item.id}{_what_is_wrong(item)}"
    return found


def _errors(predictions: Mapping[str, Prediction]) -> dict[str, str]:
    return {id: found.error for id, found in predictions.items() if found.error}


def _row(skips: SkipReport, reason: str) -> str:
    detail = skips.details.get(reason)
    return skips.examples(reason, 1)[0] + (f": {detail}" if detail else "")


def _what_is_wrong(item: Item) -> str:
    """Its pictures are looked at again: a prediction keeps the reason alone."""
    for picture in item.pictures:
        try:
            picture()
        except CorruptImage as error:
            return f": {error.detail}"
    return ""


def metrics_json(metrics: Iterable[Metric]) -> dict[str, Any]:
    """Metrics by name; the first is the headline."""
    return {
        metric.name: {**to_json(metric), "headline": number == 0}
        for number, metric in enumerate(metrics)
    }


# ---- what made the predictions -------------------------------------------------------------------


def check_run(folder: Path, settings: Mapping[str, Any], hint: str) -> None:
    """Refuse to add to predictions that other settings made; note the settings of new ones.

    Args:
        folder: of one benchmark; ``run.json`` lies there.
        settings: all that changes what the model gives.
        hint: how to go on, for the message.

    Raises:
        UserError: it names the first setting that differs.
    """
    path, predictions = folder / "run.json", folder / "predictions.jsonl"
    asked = predictions.exists()  # looked at first: another rank may be writing both
    if not path.exists():
        if asked:
            raise UserError(
                f"{predictions} has no run.json beside it, so its settings are unknown; {hint}"
            )
        write_json(path, settings)
        return
    try:
        before = parse_json(path.read_bytes())
    except ValueError:
        raise UserError(f"{path} is damaged; {hint}") from None
    changed = differences(before, json.loads(json.dumps(settings)))
    if changed:
        raise UserError(f"{folder} was made with other settings: {'; '.join(changed)}; {hint}")


def differences(before: Any, now: Any, place: str = "") -> list[str]:
    """What differs between two JSON values, as ``"a.b was 1 and is now 2"``."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [
            line
            for key in dict.fromkeys([*before, *now])
            for line in differences(before.get(key), now.get(key), f"{place}.{key}".lstrip("."))
        ]
    return (
        [] if before == now else [f"{place or 'it'} was {_short(before)} and is now {_short(now)}"]
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---- which model ---------------------------------------------------------------------------------


def model_entry(
    backbone: Backbone,
    *,
    id: str = "",
    folder: Path | None = None,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """Which model was evaluated.

    Args:
        backbone: the loaded model.
        id: its name, folder or Hub id, as the user gave it.
        folder: where its weight files are; None: the weights in memory are hashed, adapter and all.
        adapter: folder of its adapter.

    Raises:
        UserError: a folder without weights.
    """
    entry: dict[str, Any] = {
        "id": id or backbone.facts.family,
        "family": backbone.facts.family,
        "sha256": folder_sha256(folder) if folder is not None else weights_sha256(backbone),
        "setup": setup_sha256(folder) if folder is not None else None,
        "adapter": None,
        "dtype": str(backbone.facts.dtype).removeprefix("torch."),
    }
    if adapter:
        entry["adapter"] = {
            "id": str(adapter),
            "sha256": folder_sha256(adapter),
            "setup": setup_sha256(adapter),
        }
    if backbone.quantization != NONE:
        entry["quantization"] = backbone.quantization
    return entry


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over the weights in memory, for a model that never was a file."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(
            weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
