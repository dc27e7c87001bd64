"""Parts that are chosen by name: ours, and those of installed packages by entry point.

    METHODS = Registry("unigame.methods", {"selfplay": "unigame.methods.selfplay.method:SelfPlay"})
    METHODS.get("selfplay")

A package of yours adds one in its ``pyproject.toml``, with no change here::

    [project.entry-points."unigame.methods"]
    feature_noise = "my_package:FeatureNoise"

Names cost no import; a part is imported when it is asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from unigame.errors import UserError


class Registry:
    """The parts of one kind.

    Args:
        group: of the entry points; its last word, less its ``s``, is what messages call a part.
        builtin: name -> ``"module:attribute"`` of ours. A plug-in cannot take their names.
    """

    def __init__(self, group: str, builtin: Mapping[str, str] | None = None) -> None:
        self.group, self.builtin = group, dict(builtin or {})
        self.kind = group.rpartition(".")[2].removesuffix("s")

    def references(self) -> dict[str, str]:
        """Name -> ``"module:attribute"``, ours first."""
        return self.builtin | {name: entry.value for name, entry in self._plug_ins().items()}

    def names(self) -> list[str]:
        """All names, ours first."""
        return list(self.references())

    def require(self, name: str) -> None:
        """Refuse a name that is not registered; nothing is imported.

        Raises:
            UserError: an unknown name.
        """
        if name not in self.builtin and name not in self.references():
            raise UserError(unknown(self.kind, name, self.references()))

    def get(self, name: str) -> Any:
        """What is registered under a name, imported.

        Raises:
            UserError: an unknown name, or a part that cannot be imported; its package is named.
        """
        self.require(name)
        references = self.references()
        module, _, attributes = references[name].partition(":")
        try:
            found: Any = import_module(module)
            for attribute in attributes.split("."):
                found = getattr(found, attribute)
        except Exception as error:  # code of others may raise anything
            if name in self.builtin and not isinstance(error, ImportError):
                raise
            raise UserError(
                f"{self.kind} {name!r} is registered as {references[name]!r}, which does not load "
                f"({type(error).__name__}: {error}); reinstall or fix {self._package(name)}"
            ) from error
        return found

    def _plug_ins(self) -> dict[str, EntryPoint]:
        found = sorted(entry_points(group=self.group), key=lambda entry: entry.name)
        return {entry.name: entry for entry in found if entry.name not in self.builtin}

    def _package(self, name: str) -> str:
        """The distribution that a part comes from."""
        entry = self._plug_ins().get(name)
        dist = entry.dist if entry else None
        return f"the package {dist.name}" if dist else "the package that provides it"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message about an unknown name, with the nearest of those that there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown {kind} {name!r}; {hint}choose from {', '.join(known) or 'none'}"
