"""An append-only JSONL file keyed by id: what a killed run leaves, the next one builds on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unigame.errors import UserError


class RowsById(Mapping[str, dict[str, Any]]):
    """Rows in memory, each under its id."""

    _rows: dict[str, dict[str, Any]]

    def __getitem__(self, id: str) -> dict[str, Any]:
        return self._rows[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class JsonlStore(RowsById):
    """Rows with an ``"id"``, kept on disk one per line; the last row of an id counts.

    A half-written last line (the process was killed in the middle of it) is cut off; a damaged line
    anywhere else is an error, because something other than this class wrote to the file.

    Args:
        path: the file; made with its folder at the first ``append``.

    Raises:
        UserError: the file is there but does not hold such rows.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._rows = {}
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        raw = self.path.read_bytes()
        complete = raw.rfind(b"\n") + 1
        for number, line in enumerate(raw[:complete].splitlines(), start=1):
            try:
                row = json.loads(line)
                self._rows[row["id"]] = row
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(
                    f"line {number} of {self.path} is damaged; delete the file to start this "
                    "benchmark again, or mend the line"
                ) from None
        if complete < len(raw):
            with self.path.open("r+b") as file:
                file.truncate(complete)

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Write rows and hand them to the operating system before returning."""
        if not rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # Half a character, as broken software writes it, becomes the escape that JSON has for it.
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        for row in rows:
            self._rows[row["id"]] = dict(row)
