"""Overrides: ``--key value`` words, put into the tree of a recipe before it is checked.

``--learning_rate 1e-4`` sets a field of ``training``, ``--beta 0.25`` that of the listed method
that has it, ``--selfplay.beta`` that of a certain one; a dotted path (``--data.0.path X``,
``--lora.r 8``) or the name of a block (``--model X``) sets anything else. A word stays the word it
is until the rule of its setting reads it: ``--output_dir 007`` is the folder ``007``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from unigame.backbones.common import lora_settings
from unigame.backbones.common.quantization import QUANTIZATIONS
from unigame.data.guess import Guess, guess_source
from unigame.data.settings import SOURCES, change_source
from unigame.errors import UserError
from unigame.methods.registry import DEFAULT, METHODS, kind_of
from unigame.settings.rules import Many, Rule, Text, reject_unknown, shown
from unigame.settings.yaml_words import Word, is_text, parse_yaml, plain
from unigame.training.config import UniGameConfig, training_rules

BLOCKS: dict[str, Rule] = {
    "model": Text(optional=True, help="Bundled name, local folder or Hub id."),
    "dtype": Text(
        choices=("auto", "float32", "bfloat16"), optional=True, help="Of the frozen weights."
    ),
    "quantization": Text(
        choices=QUANTIZATIONS,
        optional=True,
        help="Of the language model's frozen linear layers, by bitsandbytes.",
    ),
    "adapter": Text(optional=True, help="Folder of a LoRA adapter to start from."),
    "data": Many(optional=True, help="A file, folder or Hub id; or --data.0.path, ..."),
    "eval_data": Many(optional=True, help="Sources of held-out data, likewise."),
    "lora": Rule(optional=True),
    "methods": Rule(
        optional=True, help="What is played beside fine-tuning: --methods sft, or sft,selfplay."
    ),
    "training": Rule(optional=True),
}
TREES = ("data", "eval_data", "lora", "training")  # read as YAML where they are set as a whole


def parse_overrides(words: Sequence[str]) -> list[tuple[str, Word | None]]:
    """``["--a", "1", "--b=2", "--flag"]`` -> ``[("a", "1"), ("b", "2"), ("flag", None)]``."""
    pairs: list[tuple[str, Word | None]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not is_text(word):
            raise UserError(f"{shown(word)} is not valid text (UTF-8); type it anew")
        if not word.startswith("--") or len(word) == 2:
            raise UserError(
                f"{shown(word)} is no override; write --key value, e.g. --learning_rate 1e-4"
            )
        key, given, value = word[2:].partition("=")
        found: Word | None = Word(value) if given else None
        if not given and rest and not rest[0].startswith("--"):
            found = Word(rest.pop(0))
        pairs.append((key.replace("-", "_"), found))
    return pairs


def apply_overrides(tree: dict[str, Any], words: Sequence[str]) -> list[str]:
    """Put ``--key value`` overrides into a recipe's tree.

    What is set of one source counts together, in whatever order: a new ``type`` or ``path`` takes
    out what it makes void (:func:`unigame.data.settings.change_source`). ``--data`` that comes
    twice names sources of one mixture: neither is dropped for the other.

    Returns:
        A line for each ``--data FILE``: what was found there; and one where passes over the data
        take the place of the recipe's steps.
    """
    found: list[str] = []
    settings: set[str] = set()
    deep: list[tuple[str, Any]] = []
    named: dict[str, list[Any]] = {}
    changes: dict[tuple[str, str], dict[str, Any]] = {}
    pairs = parse_overrides(words)
    for key, word in pairs:  # which methods are listed says whose other settings are
        if key == "methods":
            tree["methods"] = _listed(_valued(key, word), methods_block(tree))
    tree["methods"] = methods_block(tree)
    for key, word in pairs:
        if key == "methods":
            continue
        typed, key = key, _whole_path(tree, key)
        settings.add(key)
        block, *inner = key.split(".")
        value = _valued(key, word, typed)
        if isinstance(value, Guess):
            found.append(f"{block}: {value.said}")
            value = [value.source]
        if key in ("data", "eval_data") and isinstance(value, list):
            value = named[key] = [*named.get(key, ()), *value]
        if block in ("data", "eval_data") and len(inner) == 2:
            changes.setdefault((block, inner[0]), {})[inner[1]] = value
        elif block in ("data", "eval_data") and len(inner) > 2:
            deep.append((key, value))
        else:
            set_key(tree, key, value)
    _change_sources(tree, changes)
    for key, value in deep:
        set_key(tree, key, value)
    return found + _epochs_for_steps(tree, settings)


def _epochs_for_steps(tree: dict[str, Any], typed: Collection[str]) -> list[str]:
    """Drop the recipe's ``max_steps`` for passes that were typed, which it would make nothing of.

    Args:
        tree: the recipe, changed here.
        typed: whole paths of the overrides.

    Raises:
        UserError: both were typed.
    """
    passes, steps = "training.num_train_epochs", "training.max_steps"
    settings = tree.get("training")
    if passes not in typed or not isinstance(settings, dict):
        return []
    limit = plain(settings.get("max_steps", -1))
    if str(limit) == "-1":
        return []
    if steps in typed:
        raise UserError(
            f"--max_steps {limit} and --num_train_epochs {plain(settings['num_train_epochs'])}: "
            "a run ends after steps or after passes over the data; leave one of them out"
        )
    settings["max_steps"] = -1
    return [
        f"training: {plain(settings['num_train_epochs'])} passes over the data, not the recipe's "
        f"max_steps={limit}"
    ]


def _change_sources(
    tree: dict[str, Any], changes: Mapping[tuple[str, str], dict[str, Any]]
) -> None:
    for (block, place), changed in changes.items():
        source = _child(tree, block, block)
        source = _child(source, place, f"{block}.{place}")
        if not isinstance(source, dict):
            raise UserError(f"--{block}.{place}: there is nothing to set inside {shown(source)}")
        tree[block][int(place)] = change_source(source, changed)


def _whole_path(tree: Mapping[str, Any], key: str) -> str:
    """The dotted path that a short name stands for: a block, a training setting, or a method's.

    Raises:
        UserError: nobody has such a setting, several listed methods do, or one that is not listed.
    """
    first, _, rest = key.partition(".")
    listed = list(tree["methods"])
    if first in BLOCKS:
        return key
    if rest and (first in listed or first in METHODS.names()):
        _require_listed(first, listed, key)
        return f"methods.{key}"
    if rest:
        return key  # refused below, with the nearest block
    if key in training_rules(UniGameConfig):
        return f"training.{key}"
    owners = owners_of(key, listed)
    if len(owners) > 1:
        said = " or ".join(f"--{owner}.{key}" for owner in owners)
        raise UserError(f"--{key} is a setting of {' and '.join(owners)}; write {said}")
    if not owners:
        for owner in owners_of(key, METHODS.names()):
            _require_listed(owner, listed, key)
        known = [name for method in listed for name in kind_of(method).rules()]
        reject_unknown([key], [*training_rules(UniGameConfig), *known, *BLOCKS], "setting")
    return f"methods.{owners[0]}.{key}"


def _require_listed(method: str, listed: Sequence[str], key: str) -> None:
    if method not in listed:
        raise UserError(
            f"--{key} is a setting of method {method}, which this run does not list "
            f"({', '.join(listed) or 'none'}); add --methods {','.join([*listed, method])}"
        )


def owners_of(setting: str, methods: Iterable[str]) -> list[str]:
    """Which of these methods have a setting of that name."""
    found = []
    for name in methods:
        try:
            if setting in kind_of(name).rules():
                found.append(name)
        except UserError:  # another's package that does not load is no concern of this run
            continue
    return found


def methods_block(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The ``methods`` block as name -> settings: it may be a name, a list, or a mapping.

    Raises:
        UserError: it is none of these, or a name is unknown.
    """
    value = tree.get("methods")
    if value is None:
        value = [DEFAULT]
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    if isinstance(value, list):
        value = {str(plain(name)): {} for name in value}
    if not isinstance(value, Mapping):
        raise UserError(
            f"methods={shown(plain(value))} is no list of methods; write methods: {{selfplay: "
            "{beta: 0.5}}, or methods: [sft]"
        )
    for name, settings in value.items():
        METHODS.require(str(name))
        if settings is not None and not isinstance(settings, dict):
            raise UserError(
                f"methods.{name}={shown(plain(settings))} is not a block of key: value lines; "
                "write one"
            )
    return {str(name): dict(settings or {}) for name, settings in value.items()}


def _listed(value: Any, there: Mapping[str, dict[str, Any]]) -> Any:
    """What ``--methods`` says: of names alone, each with the settings that the recipe gives it."""
    if isinstance(value, Mapping) or value is None:
        return value
    return {name: there.get(name, {}) for name in methods_block({"methods": value})}


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set any place of the recipe by its dotted path."""
    first, *inner = key.split(".")
    reject_unknown([first], BLOCKS, "recipe block")
    node: Any = tree
    for part in [first, *inner][:-1]:
        node = _child(node, part, key)
    last = ([first, *inner])[-1]
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"--{key}: there is nothing to set inside {shown(node)}; check the path")


def _valued(key: str, word: Word | None, typed: str | None = None) -> Any:
    """The word of an override; of a whole block or source what it stands for, as YAML.

    Of ``--data FILE`` (a folder, a Hub id) it is the source that reads it.
    """
    if word is not None and key == "methods" and word[:1] in ("{", "["):
        return parse_yaml(word, "--methods")
    if word is None:
        if not _stands_alone(key):
            typed = typed or key
            raise UserError(f"--{typed} has no value; write --{typed} VALUE")
        return Word("true")
    block, *inner = key.split(".")
    if key in ("data", "eval_data") and word and word != "null" and word[:1] not in "[{-":
        return guess_source(str(word))
    whole_source = len(inner) == 1 and inner[0].isdecimal()
    return parse_yaml(word, f"--{key}") if block in TREES and (not inner or whole_source) else word


def _stands_alone(key: str) -> bool:
    """Whether ``--key`` without a value means true; so it is of a name that is unknown anyway."""
    block, *inner = key.split(".")
    name = (inner or [block])[-1]
    tables: list[Mapping[str, Rule]] = list(SOURCES.values())
    if block == "lora":
        tables = [lora_settings.RULES]
    elif block == "training" or not inner:
        tables = [training_rules(UniGameConfig), BLOCKS]
    elif block == "methods":
        tables = [kind_of(inner[0]).rules()]
    found = [table[name] for table in tables if name in table]
    return any(rule.stands_alone for rule in found) or not found


def _child(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, key)]
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        return node[part]
    raise UserError(f"--{key}: there is nothing to set inside {shown(node)}; check the path")


def _index(node: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        raise UserError(f"--{key}: {part!r} is not a place in a list of {len(node)} (from 0)")
    return int(part)
