"""``unigame train RECIPE --help``: every setting in groups, its value now, and what it takes.

It prints the tables that check the values: ``training/settings.py``, ``common/lora_settings.py``
and ``data/settings.py``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any, NamedTuple

import peft
from rich.text import Text

from unigame.backbones.common import lora_settings
from unigame.cli.endings import next_step
from unigame.data.settings import SOURCES
from unigame.settings.rules import Rule
from unigame.settings.rules import Text as TextRule
from unigame.system.console import make_console
from unigame.training.config import UNSUPPORTED, UniGameConfig, training_rules
from unigame.training.overrides import BLOCKS
from unigame.training.recipe import Recipe, load_recipe
from unigame.training.settings import GROUPS

_COLUMN = 44


class Line(NamedTuple):
    """One setting: its name, its value in this recipe, its rule, and what it does."""

    name: str
    value: Any
    rule: Rule
    help: str


def print_settings(recipe: str, overrides: Sequence[str] = ()) -> None:
    """Print the settings of a recipe with the overrides that stand beside ``--help``.

    Raises:
        UserError: as ``load_recipe``; the machine need not be able to train it.
    """
    words = [word for word in overrides if word not in ("--help", "-h")]
    plan = load_recipe(recipe, words, here=False)
    console = make_console()
    console.print(f"unigame train {recipe} --name value ...  sets what the recipe does not.\n")
    for title, lines in groups(plan):
        console.print(Text(title, style="bold"))
        for line in lines:
            shown = f"  --{line.name} {_value(line)}"
            gap = " " * max(2, _COLUMN - len(shown))
            console.print(Text(shown + gap + line.rule.takes))
            if line.help:
                console.print(Text(f"      {line.help}", style="dim"))
        console.print()
    next_step(
        f"train it:  unigame train {shlex.quote(recipe)}",
        f"what it needs:  unigame doctor --recipe {shlex.quote(recipe)}",
    )


def groups(plan: Recipe) -> Iterator[tuple[str, list[Line]]]:
    """The blocks of a recipe, its sources, LoRA, and the groups of training settings."""
    simple = ("model", "dtype", "quantization", "adapter")
    yield "Model", [Line(n, getattr(plan, n), BLOCKS[n], BLOCKS[n].help) for n in simple]
    for block in ("data", "eval_data"):
        for place, source in enumerate(getattr(plan, block)):
            rules = SOURCES[source["type"]]
            title = f"{block}.{place}: a source of type {source['type']} ({', '.join(SOURCES)})"
            yield title, list(_lines(rules, source, f"{block}.{place}."))
    defaults = {i.name: i.default for i in fields(peft.LoraConfig) if i.default is not MISSING}
    yield "LoRA", list(_lines(lora_settings.RULES, {**defaults, **plan.lora}, "lora."))
    for method in plan.build_methods():
        helps = {item.name: item.metadata.get("help", "") for item in fields(method.settings)}
        lines = [
            Line(f"{method.name}.{name}", getattr(method.settings, name), rule, helps[name])
            for name, rule in method.rules().items()
        ]
        yield f"Method {method.name}", lines
    yield from _training(plan.training)


def _training(settings: UniGameConfig) -> Iterator[tuple[str, list[Line]]]:
    helps = {item.name: item.metadata.get("help", "") for item in fields(settings)}
    own = {item.name for item in fields(settings)} - {i.name for i in _inherited()}
    rules = {
        name: rule
        for name, rule in training_rules(UniGameConfig).items()
        if name not in UNSUPPORTED
    }
    named = {name for group in GROUPS.values() for name in group}
    tables = {**GROUPS, "Others": {n: rule for n, rule in rules.items() if n not in named}}
    for title, group in tables.items():
        lines = [
            Line(name, getattr(settings, name), rule, helps[name] if name in own else rule.help)
            for name, rule in group.items()
            if name in rules
        ]
        if lines:
            yield title, lines


def _inherited() -> Any:
    from transformers import TrainingArguments

    return fields(TrainingArguments)


def _lines(rules: Mapping[str, Rule], values: Mapping[str, Any], prefix: str) -> Iterator[Line]:
    for name, rule in rules.items():
        yield Line(prefix + name, values.get(name, ""), rule, rule.help)


def _value(line: Line) -> str:
    """A value as it would be typed."""
    value = line.value
    if isinstance(line.rule, TextRule) and line.rule.secret:
        return "null" if value is None else "(set)"
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
