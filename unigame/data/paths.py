"""The files that a user names: a path, a folder, a glob, a pattern of shards."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from unigame.errors import UserError

MAX_SHARDS = 100_000
"""More names than this are a slip in a brace pattern, and would not end."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_LONGEST_NUMBER = 18


def existing_path(value: object, option: str, *, folder: bool | None = None) -> Path:
    """A path that exists, with ``~`` expanded.

    Args:
        value: What the user wrote.
        option: The option's name, for the message.
        folder: Whether it must be a folder (True), a file (False) or either (None).

    Raises:
        UserError: It is no text, or no such file or folder exists.
    """
    if not isinstance(value, str | Path) or not str(value).strip():
        raise UserError(f"{option} must be a path, got {value!r}")
    path = Path(value).expanduser()
    if not path.exists():
        raise UserError(
            f"{option}: {path} does not exist; check the spelling, or download it first"
        )
    if folder is True and not path.is_dir():
        raise UserError(f"{option}: {path} is a file, but a folder is needed")
    if folder is False and path.is_dir():
        raise UserError(f"{option}: {path} is a folder, but a file is needed")
    return path


def is_mac_file(name: str | PurePosixPath) -> bool:
    """Whether a file is what macOS puts beside files when it packs them: no one's picture or text.

    ``._NAME`` beside NAME, the folder ``__MACOSX``, and ``.DS_Store``.
    """
    path = PurePosixPath(name)
    return path.name.startswith("._") or path.name == ".DS_Store" or "__MACOSX" in path.parts


def expand_shards(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The tars that a path, folder, glob, brace pattern or list of them names, in order.

    Raises:
        UserError: A pattern matches no tar, names more than :data:`MAX_SHARDS`, or has an empty
            range.
    """
    patterns = [path] if isinstance(path, str | Path) else path
    if not isinstance(patterns, Sequence) or not patterns:
        raise UserError(f"path must name tars, got {path!r}")
    shards: list[Path] = []
    for pattern in patterns:
        for single in _expand_braces(str(Path(pattern).expanduser())):
            try:
                shards += _found_by(single)
            except OSError as error:  # a name that is too long, or a folder that is closed
                raise UserError(
                    f"path: {single:.200} cannot be looked up: {error.strerror}"
                ) from None
    return list(dict.fromkeys(shards))


def _found_by(pattern: str) -> list[Path]:
    if Path(pattern).is_file():
        return [Path(pattern)]
    if Path(pattern).is_dir():
        pattern = f"{glob.escape(pattern)}/*.tar"
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if not found:
        raise UserError(f"path: no tar matches {pattern}; check the spelling, or download it first")
    return found


def _expand_braces(pattern: str) -> list[str]:
    """``a-{00..11}.tar`` and ``{a,b}.tar`` as a shell expands them; widths of numbers are kept."""
    texts = [pattern]
    while match := _BRACES.search(texts[0]):  # what is put in has no braces: all have as many
        more: list[str] = []
        for text in texts:
            match = _BRACES.search(text)
            assert match is not None
            before, after = text[: match.start()], text[match.end() :]
            more += [before + choice + after for choice in _choices(match[1], pattern)]
            if len(more) > MAX_SHARDS:
                raise _too_many(pattern)
        texts = more
    return texts


def _choices(inside: str, pattern: str) -> list[str]:
    """What stands for one pair of braces."""
    numbers = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", inside)
    if not numbers:
        return inside.split(",")
    if max(map(len, numbers.groups())) > _LONGEST_NUMBER:
        raise _too_many(pattern)
    first, last = map(int, numbers.groups())
    if first > last:
        raise UserError(f"path: {{{inside}}} in {pattern} is an empty range; put the lower first")
    if last - first >= MAX_SHARDS:
        raise _too_many(pattern)
    return [f"{n:0{len(numbers[1])}d}" for n in range(first, last + 1)]


def _too_many(pattern: str) -> UserError:
    return UserError(
        f"path: {pattern:.200} names more than {MAX_SHARDS} tars; correct the range in its braces"
    )
