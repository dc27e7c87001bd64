"""Evaluations of one model that lie in several folders, as one record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unigame.reports.records import Record


@dataclass(frozen=True)
class Joined:
    """Records of one model.

    Attributes:
        record: all their benchmarks; the rest is of the first.
        parts: the records, in order.
        twice: a line for each benchmark that an earlier one has already.
    """

    record: Record
    parts: tuple[Record, ...]
    twice: tuple[str, ...]


def joined(records: Iterable[Record]) -> list[Joined]:
    """Join records of equal weights that were kept alike, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        # Weights without a digest are told apart by nothing: each of them stays alone.
        key = (*record.weights, record.kept) if record.weights[0] else (str(record.path),)
        groups.setdefault(key, []).append(record)
    return [_one(group) for group in groups.values()]


def _one(records: Sequence[Record]) -> Joined:
    if len(records) == 1:
        return Joined(records[0], tuple(records), ())
    owner: dict[str, Record] = {}
    twice = []
    for record in records:
        for name, benchmark in record.benchmarks.items():
            first = owner.setdefault(name, record)
            if first is not record:
                twice.append(
                    f"{benchmark.title} of {record.path.parent}, which {first.path.parent} has too"
                )
    whole = replace(
        records[0],
        benchmarks={name: record.benchmarks[name] for name, record in owner.items()},
        summary=_summary(records, owner),
        training=next((record.training for record in records if record.training), {}),
    )
    return Joined(whole, tuple(records), tuple(twice))


def _summary(records: Sequence[Record], owner: Mapping[str, Record]) -> dict[str, Any]:
    """Combined scores: the first of each of which all parts were taken from its own record."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for record in records for name in record.summary):
        scores = [(record, record.summary.get(name)) for record in records]
        there = [(record, score) for record, score in scores if isinstance(score, Mapping)]
        whole = [
            score
            for record, score in there
            if score.get("value") is not None and _is_own(score, record, owner)
        ]
        if whole:
            found[name] = whole[0]
        elif len(there) == 1 and there[0][1].get("value") is None:
            found[name] = there[0][1]  # with the reason, which joining does not change
        elif there:
            reason = "needs all its benchmarks in one evaluation"
            found[name] = {"value": None, "reason": reason}
    return found


def _is_own(score: Mapping[str, Any], record: Record, owner: Mapping[str, Record]) -> bool:
    parts = score.get("parts")
    return isinstance(parts, list) and all(
        isinstance(part, Mapping) and owner.get(str(part.get("benchmark"))) is record
        for part in parts
    )
