"""What a run leaves out of its data: said when it is opened, and again when pictures turn bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from unigame.data.dataset import advice
from unigame.data.images import MISSING
from unigame.data.skips import SkipReport
from unigame.errors import UserError
from unigame.system.console import make_console

NAMED = 2
"""So many rows whose picture could not be read are named at the end."""

ENOUGH_ROWS = 20
"""So many rows are met before a share of them says anything."""


def report_skips(dataset: Any, block: str, max_share: float, speaks: bool = True) -> None:
    """Print a line for each source of a data set: its rows, and those left out, by reason.

    Args:
        dataset: from ``build_dataset``; None: there is nothing to say.
        block: of the recipe: ``"data"`` or ``"eval_data"``.
        max_share: of a source's rows that may be left out.
        speaks: whether to print; of several processes only one does.

    Raises:
        UserError: more was left out of a source.
    """
    if dataset is None:
        return
    for number, source in enumerate(getattr(dataset, "datasets", [dataset])):
        where = getattr(source, "where", type(source).__name__)
        name = f"{block}: source {number} ({where})"
        report = getattr(source, "skips", None)
        if not isinstance(report, SkipReport):
            _say(f"{name}: {len(source)} rows", speaks)
            continue
        left_out, rows = len(report.skipped), report.kept + len(report.skipped)
        if left_out > max_share * rows:
            fix = advice(report)
            if next(iter(report.counts())) == MISSING and getattr(source, "images_option", False):
                fix += f" (--{block}.{number}.images FOLDER)"
            raise UserError(
                f"{name}: {left_out} of {rows} rows were left out, more than max_skipped_share "
                f"{max_share:g} ({report.summary()}); {fix}; or train on the rest with "
                "max_skipped_share: 1"
            )
        _say(f"{name}: {report.summary()}", speaks)


class UnreadablePictures(TrainerCallback):
    """Counts rows whose picture could not be read when it was needed, and says so.

    ``verify: exists`` looks for files, not into them. A warning comes once the share is above
    ``max_share``, and the count at the end of training and of an evaluation.

    Args:
        max_share: of the rows met.
        speaks: whether to print; of several processes only one does, and counts its own rows.
    """

    def __init__(self, max_share: float, speaks: bool = True) -> None:
        self.max_share, self.speaks = max_share, speaks
        self.rows = {"data": 0, "eval_data": 0}
        self.unreadable = {"data": 0, "eval_data": 0}
        self._named: dict[str, list[str]] = {"data": [], "eval_data": []}
        self._warned: set[str] = set()

    def count(self, block: str, read: int, unreadable: int, named: Sequence[str] = ()) -> None:
        """One batch: rows that were read, and rows that could not be.

        Args:
            block: of the recipe.
            read: rows whose picture was read.
            unreadable: rows whose picture was not.
            named: of these the id and why, such as ``"7: corrupt image (truncated file)"``.
        """
        self.rows[block] += read + unreadable
        self.unreadable[block] += unreadable
        self._named[block] += list(named)[: NAMED - len(self._named[block])]
        rows, bad = self.rows[block], self.unreadable[block]
        if block not in self._warned and rows >= ENOUGH_ROWS and bad > self.max_share * rows:
            self._warned.add(block)
            _say(
                f"warning: {self._figures(block)}, more than max_skipped_share "
                f"{self.max_share:g}; verify: decode names and drops such rows at the start",
                self.speaks,
            )

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """The count of the whole training."""
        self._close("data")

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """The count of this evaluation; the next one starts at 0."""
        self._close("eval_data")
        self.rows["eval_data"] = self.unreadable["eval_data"] = 0
        self._named["eval_data"].clear()

    def _close(self, block: str) -> None:
        if self.unreadable[block]:
            first = f" (the first: {'; '.join(self._named[block])})" if self._named[block] else ""
            _say(
                f"{self._figures(block)}, and were left out{first}; verify: decode in the source "
                f"(such as --{block}.0.verify decode) names and drops such rows at the start",
                self.speaks,
            )

    def _figures(self, block: str) -> str:
        return (
            f"{block}: the pictures of {self.unreadable[block]} of {self.rows[block]} rows could "
            "not be read"
        )


def _say(line: str, speaks: bool) -> None:
    if speaks:
        console = make_console(stderr=True)
        console.print(line, markup=False)
