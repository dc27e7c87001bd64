"""Counting the rows that were left out, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice

MOST_LETTERS = 300
"""Of a detail in a line; a long path stays whole."""


class SkipReport:
    """Which rows were left out and why; a row counts once, however often it is met.

    Attributes:
        kept: Rows that the reader kept at construction.
        text_only: Those of them without a picture.
        several: Those of them with several pictures.
        skipped: Reason of every row left out, by row id.
        details: What exactly was wrong with the first row of each reason, such as the path that
            was tried; not of every row, because there may be millions.
    """

    def __init__(self) -> None:
        self.kept = self.text_only = self.several = 0
        self.skipped: dict[str, str] = {}
        self.details: dict[str, str] = {}

    def keep(self, num_images: int) -> None:
        """Count one row that is kept."""
        self.kept += 1
        self.text_only += num_images == 0
        self.several += num_images > 1

    def add(self, id: str, reason: str, detail: str = "") -> None:
        """Count one row; adding the same id again changes nothing."""
        if id not in self.skipped:
            self.skipped[id] = reason
            if detail:
                self.details.setdefault(reason, detail)

    def counts(self) -> dict[str, int]:
        """Number of rows left out, by reason, most frequent first."""
        return dict(Counter(self.skipped.values()).most_common())

    def examples(self, reason: str, n: int = 2) -> list[str]:
        """The first ids that were left out for this reason."""
        return list(islice((id for id, why in self.skipped.items() if why == reason), n))

    def summary(self) -> str:
        """One line for people: rows, those left out by reason, their ids, and the first in full.

        ``"98 rows, 2 skipped: 2 missing image (17, 40), first: no file '/data/a.jpg'"``
        """
        special = [
            f"{count} {what}"
            for count, what in (
                (self.text_only, "of text alone"),
                (self.several, "of several pictures"),
            )
            if count
        ]
        kinds = f" ({', '.join(special)})" if special else ""
        head = f"{self.kept} rows{kinds}, {len(self.skipped)} skipped"
        return f"{head}: {reasons}" if (reasons := self.reasons()) else head

    def reasons(self) -> str:
        """Of each reason how many rows, two of their ids, and the first in full."""
        return "; ".join(
            f"{count} {reason} ({', '.join(self.examples(reason))}{', ...' if count > 2 else ''})"
            f"{self._first(reason)}"
            for reason, count in self.counts().items()
        )

    def _first(self, reason: str) -> str:
        """The detail of the first row of a reason, on one line; empty where there is none."""
        detail = " ".join(self.details.get(reason, "").split())
        cut = detail if len(detail) <= MOST_LETTERS else f"{detail[: MOST_LETTERS - 3]}..."
        return f", first: {cut}" if cut else ""

    @classmethod
    def merged(cls, reports: Iterable[tuple[str, SkipReport]]) -> SkipReport:
        """One report over several sources; each pair is an id prefix and that source's report."""
        total = cls()
        for prefix, report in reports:
            total.kept += report.kept
            total.text_only += report.text_only
            total.several += report.several
            for id, reason in report.skipped.items():
                total.add(prefix + id, reason)
            total.details = {**report.details, **total.details}
        return total
