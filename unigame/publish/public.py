"""Texts without the folders of this machine: what is published names no more than last names."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import PurePath, PureWindowsPath
from typing import Any

import yaml

from unigame.settings import command_words

_PATH = re.compile(r"(?<![\w.:/~-])(?:~|\.{0,2})/(?:[^\s/'\"=,:;()]+/)+")
_BEGINS = re.compile(r"(?:~[\w.-]*|\.{0,2})/")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
_DEEP = re.compile(r"[\w.+@-]+(?:/[\w.+@-]+){2,}/?")  # more than a Hub id has
_FILE = re.compile(
    r"[^\[\]{}:]*/[^/]*\.(?:json|jsonl|ya?ml|csv|tsv|parquet|arrow|tar|zip|txt)", re.I
)
PLACES = (
    "data",
    "eval_data",
    "output_dir",
    "logging_dir",
    "resume_from_checkpoint",
    "model",
    "adapter",
    "images",
    "path",
    "questions",
)
"""Options and settings whose value is a place, however it is written."""


def public(text: str) -> str:
    """A sentence without folders: ``/home/me/cats.json`` -> ``cats.json``."""
    return _PATH.sub("", text)


def public_value(text: str, *, is_place: bool = False, known: Collection[str] = ()) -> str:
    """A value without folders; one that is a path, spaces and all, is its last name.

    Args:
        text: the value.
        is_place: whether it must be one: ``cats/a.json`` could be a Hub id.
        known: ids of the Hub, which stay as they are.
    """
    if text in known:
        return text
    if text.startswith("file://"):
        return PurePath(text).name
    if re.match(r"\w+://", text):
        return re.sub(r"(?<=://)[^/@\s]*@", "", text)  # no name and password
    if text[:1] in ("[", "{"):
        return _public_yaml(text, known)
    if _WINDOWS.match(text):
        return PureWindowsPath(text).name or text
    is_path = is_place or _BEGINS.match(text) or os.path.exists(text)
    if is_path or any(pattern.fullmatch(text) for pattern in (_DEEP, _FILE)):
        return PurePath(text).name or text
    return public(text)


def public_values(content: Any, known: Collection[str] = (), key: str = "") -> Any:
    """The same of every text in a table or list; ``key`` is what it is the value of."""
    if isinstance(content, Mapping):
        return {name: public_values(value, known, str(name)) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [public_values(value, known, key) for value in content]
    if isinstance(content, str):
        return public_value(content, is_place=key in PLACES, known=known)
    return content


def public_command(command: str, known: Collection[str] = ()) -> str:
    """A command without folders, and without what is its writer's alone: names of runs, tokens.

    Args:
        command: as it was typed.
        known: ids of the Hub, which stay as they are.

    Returns:
        The command; empty where its quotes do not close, so that nothing can be said of its words.
    """
    words = command_words.split(command)
    if words is None:
        return ""

    def change(key: str, value: str) -> str:
        parts = key.split(".")
        is_place = parts[0] in PLACES or parts[-1] in PLACES
        if not key and "=" in value:  # a word such as data=/home/me/cats.json
            name, _, rest = value.partition("=")
            return f"{name}={public_value(rest, is_place=name in PLACES, known=known)}"
        return public_value(value, is_place=is_place, known=known)

    words = command_words.masked(words)  # an earlier version wrote secrets into about.json
    return shlex.join(command_words.rewritten(words, drop=_is_private, change=change))


def _is_private(key: str) -> bool:
    name = key.rpartition(".")[2]
    return name == "run_name" or name.startswith("hub_") or command_words.is_secret(name)


def _public_yaml(text: str, known: Collection[str]) -> str:
    """A list or table, as recipes take it on the command line."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return public(text)
    shown = public_values(content, known)
    if shown == content:
        return text
    return yaml.safe_dump(
        shown, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    ).strip()
