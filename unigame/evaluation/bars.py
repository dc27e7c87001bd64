"""Progress of an evaluation on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from unigame.reports.record_text import headline
from unigame.system.console import make_console


class Bars:
    """Progress on stderr: bars in a terminal, one line per finished benchmark elsewhere.

    Args:
        titles: benchmark name -> what to call it.
    """

    def __init__(self, titles: Mapping[str, str]) -> None:
        self.titles = titles
        self.console = make_console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        for name, title in self.titles.items():
            self.tasks[name] = self.bars.add_task(title, total=None, start=False, state="")
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def begin(self, name: str, total: int, done: int) -> None:
        """The bar starts, with what an earlier run has done."""
        state = f"{done} kept from before" if done else ""
        self.bars.start_task(self.tasks[name])
        self.bars.update(self.tasks[name], total=total, completed=done, state=state)

    def advance(self, name: str, count: int) -> None:
        """The bar moves."""
        self.bars.advance(self.tasks[name], count)

    def scoring(self, name: str) -> None:
        """The bar says so."""
        self.bars.update(self.tasks[name], state="scoring")

    def end(self, name: str, entry: Mapping[str, Any] | None) -> None:
        """The bar stays, with the headline figure beside it."""
        state = "failed" if entry is None else headline(entry)
        self.bars.update(self.tasks[name], state=state)
        self.bars.stop_task(self.tasks[name])
        if not self.console.is_terminal:
            self.console.print(f"{self.titles[name]}: {state}")
