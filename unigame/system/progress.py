"""How far something is: moving bars in a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

LINES = 10
"""Lines that a task takes at most, its last one included."""


@dataclass
class _Task:
    """One task, and the tenth of it that was said last."""

    label: str
    total: int
    done: int = 0
    said: int = 0
    begun: float = field(default_factory=time.perf_counter)


class PlainLines:
    """A line for each tenth of a task, written at once: a log shows where the demo is.

    Its methods are those of rich's ``Progress``.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.tasks: list[_Task] = []

    def add_task(self, description: str, *, total: float | None) -> TaskID:
        """A new task, begun now."""
        self.tasks.append(_Task(description.strip(), int(total or 0)))
        return TaskID(len(self.tasks) - 1)

    def update(self, task_id: TaskID, *, completed: float | None = None) -> None:
        """So much of it is done."""
        task = self.tasks[task_id]
        task.done = int(completed or 0)
        tenth = LINES * task.done // max(1, task.total)
        if tenth > task.said:
            task.said = tenth
            seconds = time.perf_counter() - task.begun
            self.console.print(
                f"{task.label}: {task.done} of {task.total}, {seconds:.0f} s", markup=False
            )
            self.console.file.flush()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """So much more of it is done."""
        self.update(task_id, completed=self.tasks[task_id].done + advance)


Display = PlainLines | Progress


@contextmanager
def progress_on(console: Console) -> Iterator[Display]:
    """A display that suits the console."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainLines(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress
