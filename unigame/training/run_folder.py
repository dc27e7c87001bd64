"""What lies in the ``output_dir`` of a run: checkpoints, the finished adapter, and what is neither.

    checkpoint-N/              whole, or damaged after it was written
    _unfinished/checkpoint-N/  a checkpoint being written; nobody reads it
    _replaced/                 the run that was here before, until the one that replaces it is done
    last_finite/               what a run that diverged had before
    trainer_state.json         written last: the run reached its end

Names that begin with ``_`` are not pushed to the Hub.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from unigame.errors import UserError
from unigame.training.checkpoint import ADAPTER_FILES, TRAINER_STATE_FILE
from unigame.training.manifest import damage

UNFINISHED, REPLACED, LAST_FINITE = "_unfinished", "_replaced", "last_finite"
RESULTS = (*ADAPTER_FILES, "perturber.safetensors", TRAINER_STATE_FILE, "model.safetensors")
SHOWN = (
    "about.json",
    "drawings",
    "dynamics",
    "examples",
    "report.html",
)  # what only tells of the run


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Folders of checkpoints, the newest (of most steps) first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir()]
    return sorted((path for path in found if step_of(path) >= 0), key=step_of, reverse=True)


@dataclass(frozen=True)
class Newest:
    """The newest whole checkpoint, and why each newer one is none."""

    folder: Path
    passed_over: tuple[str, ...] = ()

    def said(self) -> str:
        """One line for people."""
        why = f" ({'; '.join(self.passed_over)})" if self.passed_over else ""
        return f"Resuming from {self.folder}{why}"


def newest_whole(output_dir: str | Path) -> Newest:
    """The newest checkpoint that is whole.

    Raises:
        UserError: there is none.
    """
    passed_over: list[str] = []
    for folder in checkpoints(output_dir):
        found = damage(folder)
        if found is None:
            return Newest(folder, tuple(passed_over))
        passed_over.append(f"{folder.name}: {' '.join(found)}")
    if passed_over:
        raise UserError(
            f"output_dir={str(output_dir)!r} has no whole checkpoint to resume from "
            f"({'; '.join(passed_over)}); start over in another output_dir, or name one that an "
            "older version wrote and add resume_anyway=true"
        )
    raise UserError(
        f"output_dir={str(output_dir)!r} has no checkpoint to resume from; name one, or start "
        "without resuming"
    )


def is_finished(output_dir: str | Path, steps: int) -> bool:
    """Whether a run of at least so many steps wrote its result here."""
    try:
        text = (Path(output_dir) / TRAINER_STATE_FILE).read_text(encoding="utf-8")
        return int(json.loads(text)["global_step"]) >= steps
    except (OSError, ValueError, KeyError, TypeError):
        return False


def require_free(output_dir: str | Path) -> None:
    """Refuse to write over a run that lies there.

    Raises:
        UserError: naming what lies there and the ways on.
    """
    there = [path.name for path in checkpoints(output_dir)[:1]]
    there += [name for name in RESULTS if (Path(output_dir) / name).exists()]
    if there:
        raise UserError(
            f"output_dir={str(output_dir)!r} already holds a run ({', '.join(there[:3])}); go on "
            "with --resume_from_checkpoint true, start over with --overwrite_output_dir, or give "
            "another --output_dir"
        )


def set_aside(output_dir: str | Path) -> None:
    """Move the run that lies there out of the way, until :func:`drop_replaced`."""
    folder = Path(output_dir)
    aside = folder / REPLACED
    kept = aside.exists()  # of a run that was to be replaced before, by one that never ended
    names = [path.name for path in checkpoints(folder)] + [*RESULTS, LAST_FINITE, *SHOWN]
    for path in (folder / name for name in names):
        if not path.exists():
            continue
        if not kept:
            aside.mkdir(exist_ok=True)
            os.replace(path, aside / path.name)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def drop_replaced(output_dir: str | Path) -> None:
    """Delete what :func:`set_aside` moved: its successor is there."""
    shutil.rmtree(Path(output_dir) / REPLACED, ignore_errors=True)


def step_of(folder: Path) -> int:
    """The N of ``checkpoint-N``; -1 for another name."""
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isascii() and number.isdigit() else -1
