"""What every result file says of itself: figures first, then the machine, versions and command."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import unigame


def write(figures: dict[str, Any], settings: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """Print the record of a run, and write it to ``file`` if there is one; returns the record."""
    record = {**figures, "settings": settings, **machine()}
    text = json.dumps(record, indent=2)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
    print(text)
    return record


def machine() -> dict[str, Any]:
    """Hardware, versions, command and date."""
    cuda = torch.cuda.is_available()
    return {
        "machine": {
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
    }


def code() -> str:
    """The commit that runs, and the libraries that most figures hang on, in a line.

    An installed ``unigame`` may be of another checkout than this script: then both are named.
    """
    here, library = (_commit(Path(file).parent) for file in (__file__, unigame.__file__))
    commit = here if here == library else f"{here} with unigame of {library}"
    return f"{commit}, torch {torch.__version__}, transformers {transformers.__version__}"


def _commit(folder: Path) -> str:
    commit = _git(folder, "rev-parse", "--short=12", "HEAD") or "no commit"
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if changed else commit


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True)
    except OSError:  # no git here
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


CODE = code()
"""Asked as the modules are loaded: a commit during a long run is not what ran."""


def rounded(values: dict[str, float], digits: int = 4) -> dict[str, float]:
    """Figures with so many digits behind the point."""
    return {name: round(value, digits) for name, value in values.items()}
