"""Recipes: one YAML file per experiment, overridden from the command line, checked before use.

A recipe has these blocks::

    model: janus-nano            # bundled name, local folder or Hub id
    dtype: auto                  # of the frozen weights: auto, float32 or bfloat16
    adapter: null                # a LoRA adapter to start from
    data:                        # mixture of sources, see unigame.data
      - {type: vqa, ..., weight: 1.0}
    eval_data: []                # sources for the loss on held-out data
    lora: {r: 16, ...}           # peft.LoraConfig
    training: {...}              # UniGameConfig, which extends transformers.TrainingArguments

``--learning_rate 1e-4`` sets a field of ``training``; a dotted path (``--data.0.path X``,
``--lora.r 8``) or the name of a block (``--model X``) sets anything else. Nothing is loaded here:
a wrong key or value ends in one line of :class:`UserError` before any weight is read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import peft
import yaml

from unigame.errors import UserError
from unigame.training.coerce import coerce
from unigame.training.config import UniGameConfig

BLOCKS = ("model", "dtype", "adapter", "data", "eval_data", "lora", "training")
DTYPES = ("auto", "float32", "bfloat16")


@dataclass
class Recipe:
    """A checked recipe; the fields are the blocks that the module docstring describes."""

    model: str
    training: UniGameConfig
    data: list[dict[str, Any]]
    eval_data: list[dict[str, Any]] = field(default_factory=list)
    dtype: str = "auto"
    adapter: str | None = None
    lora: dict[str, Any] = field(default_factory=dict)

    def lora_config(self) -> peft.LoraConfig | None:
        """The LoRA settings, or None to leave them to the backbone's default."""
        return peft.LoraConfig(**self.lora) if self.lora else None


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply ``--key value`` overrides and check every key and value.

    Args:
        path: a YAML file, or the name of a recipe that ships with the package (``janus_nano``).
        overrides: the words after the recipe on the command line.

    Raises:
        UserError: no such recipe, malformed YAML, unknown key (with the nearest known one), a
            value of the wrong type or out of its range.
    """
    path = find_recipe(path)
    tree = read_yaml(path)
    tree.setdefault("training", {})
    if isinstance(tree["training"], dict):
        tree["training"].setdefault("output_dir", f"runs/{path.stem}")
    for key, value in parse_overrides(overrides):
        set_key(tree, key, value)
    return build_recipe(tree)


def build_recipe(tree: dict[str, Any]) -> Recipe:
    """Check a recipe given as nested dictionaries. See :func:`load_recipe` for what it raises."""
    reject_unknown(tree, BLOCKS, "recipe block")
    if not isinstance(tree.get("model"), str) or not tree["model"]:
        raise UserError(
            f"model={tree.get('model')!r} names no checkpoint; give a folder, Hub id or janus-nano"
        )
    dtype = tree.get("dtype") or "auto"
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}; pick one")
    adapter = tree.get("adapter")
    if adapter is not None and not isinstance(adapter, str):
        raise UserError(f"adapter={adapter!r} is not a folder or Hub id; give one, or null")
    data = _sources(tree, "data")
    if not data:
        raise UserError("data is empty; list at least one source, e.g. {type: synthetic}")
    return Recipe(
        model=tree["model"],
        training=build_training(_mapping(tree, "training")),
        data=data,
        eval_data=_sources(tree, "eval_data"),
        dtype=dtype,
        adapter=adapter,
        lora=_lora(_mapping(tree, "lora")),
    )


def build_training(settings: dict[str, Any]) -> UniGameConfig:
    """``UniGameConfig`` from plain values, after checking names and types."""
    hints = _training_hints()
    reject_unknown(settings, hints, "training setting")
    return UniGameConfig(
        **{name: coerce(name, value, hints[name]) for name, value in settings.items()}
    )


def find_recipe(path: str | Path) -> Path:
    """The file itself, or the shipped recipe of that name."""
    if Path(path).is_file():
        return Path(path)
    shipped = Path(str(files("unigame") / "recipes"))
    named = shipped / f"{Path(path).name.removesuffix('.yaml')}.yaml"
    if named.is_file() and len(Path(path).parts) == 1:
        return named
    known = ", ".join(sorted(item.stem for item in shipped.glob("*.yaml")))
    raise UserError(f"no recipe at {str(path)!r}; give a YAML file or a shipped one: {known}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The top-level mapping of a YAML file."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds {type(tree).__name__}, not settings; see recipes/ for one")
    return tree


def parse_overrides(words: Sequence[str]) -> list[tuple[str, Any]]:
    """``["--a", "1", "--b=2", "--flag"]`` -> ``[("a", 1), ("b", 2), ("flag", True)]``."""
    pairs: list[tuple[str, Any]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise UserError(
                f"{word!r} is no override; write --key value, e.g. --learning_rate 1e-4"
            )
        key, given, value = word[2:].partition("=")
        if not given:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        pairs.append((key.replace("-", "_"), _parse_value(value)))
    return pairs


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a training field by name, or any place of the recipe by its dotted path."""
    if "." not in key and key not in BLOCKS:
        reject_unknown([key], [*_training_hints(), *BLOCKS], "setting")
        tree["training"][key] = value
        return
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
        raise UserError(f"--{key}: there is nothing to set inside {node!r}; check the path")


def reject_unknown(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise for the first unknown name, with the nearest known one."""
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known[:12])}"
            raise UserError(f"unknown {what} {name!r}; {advice}")


def _child(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, key)]
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        return node[part]
    raise UserError(f"--{key}: there is nothing to set inside {node!r}; check the path")


def _index(node: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"--{key}: {part!r} is not a place in a list of {len(node)} (from 0)")
    return int(part)


def _parse_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # a path or a sentence that only looks like YAML


def _mapping(tree: dict[str, Any], block: str) -> dict[str, Any]:
    value = tree.get(block) or {}
    if not isinstance(value, dict):
        raise UserError(f"{block}={value!r} is not a block of key: value lines; write one")
    return value


def _sources(tree: dict[str, Any], block: str) -> list[dict[str, Any]]:
    value = tree.get(block) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{block}={value!r} is not a list of sources; write '- type: ...' items")
    return value


def _lora(settings: dict[str, Any]) -> dict[str, Any]:
    known = {item.name for item in fields(peft.LoraConfig) if item.init}
    reject_unknown(settings, sorted(known), "LoRA setting")
    r = settings.get("r", 8)
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise UserError(f"lora.r={r!r} is impossible: the rank is a whole number from 1")
    for name, high in (("lora_alpha", float("inf")), ("lora_dropout", 1.0)):
        value = settings.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
            raise UserError(
                f"lora.{name}={value!r} is impossible; give a number from 0 to {high:g}"
            )
    return settings


@cache
def _training_hints() -> dict[str, Any]:
    hints = get_type_hints(UniGameConfig)
    return {item.name: hints[item.name] for item in fields(UniGameConfig) if item.init}
