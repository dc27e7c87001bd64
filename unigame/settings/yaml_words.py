"""YAML whose unquoted words stay words, until the setting that takes them says what they are.

YAML reads ``007`` as 7, ``12:30`` as 750 and ``no`` as false, whatever they were meant for. Here
every unquoted scalar is a :class:`Word`, the same as a word on the command line, and the setting's
own rule (``rules.py`` beside this file) makes a number, a switch or a text of it. Only ``null``,
``~`` and nothing at all are None, as YAML has it. Quoted scalars are texts.

Files come from anywhere, so nesting, aliases that multiply and size have bounds, a key that comes
twice is an error, and every fault is one line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from unigame.errors import UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 30
MAX_NODES = 20_000  # aliases counted as often as they are used
_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
_TEXT, _MAP = "tag:yaml.org,2002:str", "tag:yaml.org,2002:map"
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


class Word(str):
    """A word as it was typed: text, number, switch or ``null``, as the setting has it."""


def read_yaml_file(path: str | Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is not valid YAML within the bounds.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; check it") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} has {len(data)} bytes, settings have a few thousand; check it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not valid YAML: byte {error.start} is not UTF-8; save it as UTF-8"
        ) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML text; ``where`` names it in messages.

    Raises:
        UserError: not valid YAML, a key that comes twice, too deep or too large.
    """
    try:
        _check_depth(text, where)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {}, (), where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} is not valid YAML: {reason}; correct it") from error


def plain(value: Any) -> Any:
    """The same without :class:`Word`, for a place whose type no rule tells: YAML 1.2's reading."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, Word):
        return value
    lower = value.lower()
    if lower in _TRUE or lower in _FALSE:
        return lower in _TRUE
    if lower in ("null", "~", ""):
        return None
    for kind in (int, float):
        # A leading zero is a name or a date, and Python's 1_000 is no YAML.
        if re.fullmatch(r"[-+]?(0|[1-9]\d*)?(\.\d*)?([eE][-+]?\d+)?", value):
            try:
                return kind(value)
            except ValueError:
                continue
    return str(value)


def is_text(text: str) -> bool:
    """Whether it can be written: no NUL, and no half of a surrogate pair (bytes not UTF-8)."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


class _Loader(yaml.SafeLoader):
    """``SafeLoader`` with words for plain scalars, and without keys that come twice."""

    # Of YAML's guesses from the look of a scalar only null and the merge key remain.
    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in pairs if tag in (_NULL, _MERGE)]
        for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    value = str(loader.construct_scalar(node))
    if not is_text(value):
        raise yaml.constructor.ConstructorError(
            None, None, f"{value!r:.60} holds what no text can", node.start_mark
        )
    return Word(value) if node.style is None else value


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Any:
    _check_keys(node)
    mapping: dict[Any, Any] = {}
    yield mapping
    mapping.update(loader.construct_mapping(node))


def _check_keys(node: yaml.MappingNode) -> None:
    """A key that comes twice; YAML would keep the last one, without a word."""
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(
                None, None, "a key that is not a word", key.start_mark
            )
        if key.tag == _MERGE:
            continue
        if key.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key.value!r} comes twice; keep one of them", key.start_mark
            )
        seen.add(key.value)


_Loader.add_constructor(_TEXT, _text)
_Loader.add_constructor(_MAP, _mapping)


def _check_depth(text: str, where: str) -> None:
    """By the parser's events: what follows it calls itself once for each level."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1
            raise UserError(
                f"{where} is not valid YAML: line {line} is nested deeper than {MAX_DEPTH} levels; "
                "settings need a few"
            )


def _count(node: yaml.Node, counted: dict[int, int], inside: tuple[int, ...], where: str) -> int:
    """Nodes below and with this one, an alias for all that it stands for."""
    if id(node) in inside:
        raise UserError(f"{where} is not valid YAML: an alias holds itself; write it out")
    if id(node) not in counted:
        below: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            below = list(node.value)
        around = (*inside, id(node))
        counted[id(node)] = 1 + sum(_count(part, counted, around, where) for part in below)
    if counted[id(node)] > MAX_NODES:
        raise UserError(
            f"{where} is not valid YAML: with its aliases it has over {MAX_NODES} values; write "
            "out what is needed"
        )
    return counted[id(node)]
