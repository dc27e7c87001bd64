"""Write the datasets once: a manifest says what is complete, and the next call reuses it."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unigame.errors import UserError

from ..dataset import CONDITIONS
from . import advqa, dpg, geneval, mmbench, mmmu, naturalbench, pope, unifiedbench, vqav2, wise
from .common import Rng, write_json

FORMAT = "unigame-synthetic-benchmarks/1"  # a new number makes every older folder be rewritten
STREAM = 31  # keeps these scenes apart from those of SyntheticDataset and of the recipe
LARGEST = 10_000
MANIFEST = "manifest.json"

WRITERS: dict[str, Callable[[Path, int, Rng], None]] = {
    "vqav2": vqav2.write,
    "mmmu": mmmu.write,
    "mmbench": mmbench.write,
    "pope": pope.write,
    "geneval": geneval.write,
    "dpg": dpg.write,
    "wise": wise.write,
    "unifiedbench": unifiedbench.write,
    "naturalbench": naturalbench.write,
    "advqa": advqa.write,
}
NAMES = tuple(WRITERS)
"""The benchmarks that come with the package."""
OOD = "ood"
"""Not one of them: questions of VQAv2's form under the world's six conditions, in turn."""
WRITERS[OOD] = partial(vqav2.write, conditions=CONDITIONS)
NEW_TASK = "new_task"
"""Nor this: questions of VQAv2's form of a task that the bundled model was not trained on."""
WRITERS[NEW_TASK] = vqav2.write_new_task

README = """\
# Synthetic benchmarks

Small datasets of unigame's synthetic world (coloured shapes on a 3 x 3 board, 48 x 48 px) in the
file formats and columns of ten real benchmarks, one folder each; `ood` and `new_task`, where they
are, have the form of VQAv2 and are the world's own. Written by
`unigame.synthetic.benchmarks.write_benchmarks`; `manifest.json` holds seed, size and checksums.
`size` is about the number of replies that each folder asks of a model.

    unigame evaluate --model janus-nano --data-root . --benchmarks pope,naturalbench

They show that the evaluation runs, and compare models of this world. **Figures on them say nothing
about a model's figures on the real benchmarks.** No picture, question or prompt is from the
originals.
"""


def write_benchmarks(
    root: Path, *, size: int = 200, seed: int = 0, names: Sequence[str] | None = None
) -> Path:
    """Write the datasets, or reuse those that are there with the same settings.

    Args:
        root: folder to write; each benchmark gets a sub-folder of its name.
        size: about how many replies each benchmark asks of a model: questions, or pictures to
            draw (WISE: 250 at most). Groups and rotations are whole.
        seed: another seed is another sample; none shares a scene with any training set.
        names: which benchmarks, or ``"ood"`` or ``"new_task"``; None: all of ``NAMES``.

    Returns:
        ``root``, for ``--data-root``.

    Raises:
        UserError: an unknown name, a size out of range, or a folder in the way that this function
            did not write.
    """
    chosen = list(NAMES if names is None else names)
    if unknown := [name for name in chosen if name not in WRITERS]:
        raise UserError(f"unknown benchmark {unknown[0]!r}; choose from {', '.join(WRITERS)}")
    if not 8 <= size <= LARGEST:
        raise UserError(f"size is {size}; give 8 to {LARGEST} replies per benchmark")
    root = Path(root)
    manifest = _Manifest(root / MANIFEST, size, seed)
    for name in chosen:
        manifest.check(name)
    root.mkdir(parents=True, exist_ok=True)
    (root / "README.md").write_text(README, encoding="utf-8")
    for name in chosen:
        if not manifest.complete(name):
            _write_one(name, manifest)
    return root


def _write_one(name: str, manifest: _Manifest) -> None:
    folder = manifest.folder(name)
    partial = folder.with_name(f".{name}.partial")
    for leftover in (partial, folder):
        if leftover.exists():
            shutil.rmtree(leftover)
    manifest.begin(name)
    partial.mkdir()
    # A stream of its own for each benchmark: what is written does not depend on which others are.
    rng = np.random.default_rng([STREAM, manifest.seed, zlib.crc32(name.encode())])
    WRITERS[name](partial, manifest.size, rng)
    partial.replace(folder)
    manifest.finish(name)


class _Manifest:
    """Which folders are ours, with which settings, and whether they are whole."""

    def __init__(self, path: Path, size: int, seed: int) -> None:
        self.path, self.size, self.seed = path, size, seed
        self.entries: dict[str, dict[str, Any]] = {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self.entries = dict(content["benchmarks"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no manifest of synthetic benchmarks ({type(error).__name__}); name an "
                "empty folder, or delete the file and the folders beside it"
            ) from error

    def folder(self, name: str) -> Path:
        return self.path.parent / name

    def check(self, name: str) -> None:
        """Never delete what somebody else put there, such as the real data."""
        if self.folder(name).exists() and name not in self.entries:
            raise UserError(
                f"{self.folder(name)} is there already and was not written by unigame; name "
                "another folder for the synthetic benchmarks"
            )

    def complete(self, name: str) -> bool:
        """Written whole with these settings, and not changed since."""
        entry = self.entries.get(name, {})
        return (
            {key: entry.get(key) for key in ("format", "size", "seed")} == self._settings()
            and self.folder(name).is_dir()
            and entry.get("sha256") == tree_sha256(self.folder(name))
        )

    def begin(self, name: str) -> None:
        self._put(name, "")

    def finish(self, name: str) -> None:
        self._put(name, tree_sha256(self.folder(name)))

    def _settings(self) -> dict[str, Any]:
        return {"format": FORMAT, "size": self.size, "seed": self.seed}

    def _put(self, name: str, sha256: str) -> None:
        self.entries[name] = {**self._settings(), "sha256": sha256}
        partial = self.path.with_suffix(".partial")
        write_json(partial, {"benchmarks": self.entries})
        partial.replace(self.path)


def tree_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
