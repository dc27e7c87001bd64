"""``about.json`` of a run: how it was made and how it went, for its report.

``run.json`` and ``unigame_config.json`` say what run it is; this says which command, versions and
machine made it, which settings are not at their defaults, and what each method found.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from unigame.data.skips import SkipReport
from unigame.methods.findings import Finding
from unigame.settings import command_words
from unigame.training.config import UniGameConfig

ABOUT_FILE, FORMAT = "about.json", "unigame-run/1"
PACKAGES = ("unigame", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")


def write_about(
    args: UniGameConfig,
    steps: int,
    findings: Sequence[Finding],
    not_recorded: Mapping[str, str] | None = None,
    dataset: Any = None,
    said: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> None:
    """Write it into ``output_dir``. First process only.

    Args:
        args: settings of the run.
        steps: optimizer steps done.
        findings: what the methods found wrong.
        not_recorded: parts of the report that this run has nothing for, each with the reason.
        dataset: the training rows, of which the sources are counted.
        said: closing sentences of the methods.
        warnings: what was warned of while it was made.
    """
    device = args.device.type
    content = {
        "format": FORMAT,
        "command": _command(sys.argv),
        "steps": steps,
        "seeds": {"seed": args.seed, "data_seed": args.data_seed},
        "settings": _changed(args),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "processes": args.world_size,
        "peak_memory_mb": _peak_of_process(),
        "findings": [asdict(finding) for finding in findings],
        "said": list(said),
        "warnings": list(warnings),
        "not_recorded": {part: why for part, why in (not_recorded or {}).items() if why},
        "data": [_counted(part) for part in getattr(dataset, "datasets", [dataset])],
    }
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, default=str)
    (folder / ABOUT_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")


def _peak_of_process() -> int | None:
    """MiB of this process at its worst moment, as the system counts them; None: it does not."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _changed(args: UniGameConfig) -> dict[str, Any]:
    """Settings that are not at their defaults, and are more than this machine's."""
    here: dict[str, Any] = json.loads(args.to_json_string())
    default = {item.name: getattr(item.default, "value", item.default) for item in fields(args)}
    return {
        name: value
        for name, value in here.items()
        # Lists and tables are filled in by transformers itself; train_parts is ours.
        if (isinstance(value, str | int | float) or name == "train_parts" and value)
        and value != default.get(name)
        and not command_words.is_secret(name)
    }


def _counted(part: Any) -> dict[str, Any]:
    """A source of the data: where it lies, rows kept, rows left out when it was opened."""
    skips = getattr(part, "skips", None)
    return {
        "where": getattr(part, "where", type(part).__name__),
        "rows": len(part) if hasattr(part, "__len__") else None,
        "skipped": len(skips.skipped) if isinstance(skips, SkipReport) else None,
    }


def _command(words: Sequence[str]) -> str:
    """As it was typed, without secrets."""
    name = Path(words[0]).name
    own = "unigame" if name == "__main__.py" else name
    return shlex.join([own, *command_words.masked(words[1:])])


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its source folder
            continue
    return found
