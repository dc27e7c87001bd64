"""Rules of settings: one object reads a value, checks it, and describes what the setting takes.

Tables of rules (``training/settings.py``, ``common/lora_settings.py``, ``data/settings.py``)
are the one home of types and ranges: recipes, the command line, Python and ``--help`` use the same.
Values come as Python has them or as a :class:`~unigame.settings.yaml_words.Word`; numbers are
finite.
"""

from __future__ import annotations

import difflib
import math
import numbers
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from unigame.errors import UserError
from unigame.settings.yaml_words import Word, is_text, parse_yaml, plain

INF = math.inf
FLOAT32 = 3.4e38
_VAST = 2**31 - 1  # a bound that only keeps libraries' counters from running over
_SWITCH = {"true": True, "yes": True, "on": True, "1": True}
_SWITCH |= {"false": False, "no": False, "off": False, "0": False}


class Misfit(ValueError):
    """Why a value does not fit: the rest of a sentence that begins with ``name=value``."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Any value as it is; the base of the other rules.

    Args:
        optional: whether None is a value too; the word ``null`` then stands for it.
        literal: it does not; ``null`` is a text like any other.
        help: what the setting does, where nothing else says it.
    """

    optional: bool = False
    literal: bool = False
    help: str = ""

    def check(self, name: str, value: Any) -> Any:
        """The value as the setting keeps it.

        Raises:
            UserError: it does not fit; one line with name, value and what would fit.
        """
        try:
            if value is None or self._unsets(value):
                if self.optional:
                    return None
                raise Misfit(f"is not a value here; give {self.takes}")
            return self._read(value)
        except Misfit as error:
            raise UserError(f"{name}={self._shown(value)} {error}") from None

    def _shown(self, value: Any) -> str:
        return shown(value)

    def _unsets(self, value: Any) -> bool:
        null = isinstance(value, Word) and value == "null"
        return null and self.optional and not self.literal

    def _read(self, value: Any) -> Any:
        """``value``, which is not None, as the setting keeps it, or :class:`Misfit`."""
        if isinstance(value, Word) and value[:1] in ("{", "["):
            value = _yaml(value)
        return plain(value)

    @property
    def takes(self) -> str:
        """What fits, in a few words."""
        return self._takes() + (", or null" if self.optional and not self.literal else "")

    @property
    def stands_alone(self) -> bool:
        """Whether ``--name`` without a value means true."""
        return self._alone()

    def _takes(self) -> str:
        return "a value"

    def _alone(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Switch(Rule):
    """True or false."""

    def _read(self, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _SWITCH:
            return _SWITCH[value.lower()]
        raise Misfit("is not a valid bool; give true or false")

    def _takes(self) -> str:
        return "true or false"

    def _alone(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Number(Rule):
    """A number in a range; finite in float32, which losses and weights are computed in.

    Args:
        low: end of the range.
        high: the other end.
        above: the lowest itself is not allowed.
        below: nor is the highest.
        also: values outside the range that have a meaning of their own.
    """

    low: float = -INF
    high: float = INF
    above: bool = False
    below: bool = False
    also: tuple[float, ...] = ()

    kind = "float"
    noun = "a number"

    def _read(self, value: Any) -> float:
        number = self._number(value)
        if number in self.also:
            return number
        if not abs(number) <= FLOAT32:  # nor is NaN
            raise Misfit(f"is impossible: it must be a finite number; give {self.takes}")
        too_low = number <= self.low if self.above else number < self.low
        too_high = number >= self.high if self.below else number > self.high
        if too_low or too_high:
            raise Misfit(f"is impossible: it must be {self._range}")
        return number

    def _number(self, value: Any) -> float:
        """A whole number stays an int."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real | str):
            raise Misfit(f"is not a valid {self.kind}: it is not a number; give {self.takes}")
        if isinstance(value, numbers.Integral):
            return int(value)
        if isinstance(value, str):
            if whole := _whole(value):
                return whole[0]
            value = value.strip()
        try:
            return float(value)
        except ValueError:
            pass
        if value.lower() in (".inf", "+.inf", "-.inf", ".nan"):  # as YAML writes them
            return float(value.lower().replace(".", ""))
        raise Misfit(f"is not a valid {self.kind}: it is not a number; give {self.takes}")

    @property
    def _range(self) -> str:
        parts = []
        if self.low > -INF:
            parts.append(f"{'above' if self.above else 'at least'} {_figure(self.low)}")
        if self.high < INF:
            parts.append(f"{'below' if self.below else 'at most'} {_figure(self.high)}")
        exceptions = "".join(f", or {_figure(value)}" for value in self.also)
        return " and ".join(parts) + exceptions

    def _takes(self) -> str:
        low = f" {'above' if self.above else 'from'} {_figure(self.low)}" if self.low > -INF else ""
        high = (
            f" to {'below ' if self.below else ''}{_figure(self.high)}" if self.high < _VAST else ""
        )
        return self.noun + low + high + "".join(f", or {_figure(value)}" for value in self.also)


@dataclass(frozen=True, kw_only=True)
class Whole(Number):
    """A whole number in a range."""

    kind = "int"
    noun = "a whole number"

    def _number(self, value: Any) -> float:
        number = super()._number(value)
        if isinstance(number, int) or not math.isfinite(number):
            return number  # what is not finite is refused with the range
        if number != int(number):
            raise Misfit(f"is not a whole number, so not a valid int; give {self.takes}")
        return int(number)


@dataclass(frozen=True, kw_only=True)
class Text(Rule):
    """A text, which stays as it was typed.

    Args:
        choices: the only ones that fit; none: any text that is not empty.
        empty: whether nothing at all is a text too.
        secret: the value is never shown.
        alone: the name without a value means ``true``.
    """

    choices: tuple[str, ...] = ()
    empty: bool = False
    secret: bool = False
    alone: bool = False

    def _shown(self, value: Any) -> str:
        return "(not shown)" if self.secret else shown(value)

    def _read(self, value: Any) -> str:
        text = _as_text(value)
        if not is_text(text):
            raise Misfit("is not valid text: it has bytes that are not UTF-8; write it anew")
        if self.choices and text not in self.choices:
            raise Misfit(f"is not one of {', '.join(self.choices)}; {_nearest(text, self.choices)}")
        if not text.strip() and not self.empty:
            raise Misfit(f"is empty; give {self.takes}")
        return text

    def _alone(self) -> bool:
        return self.alone

    def _takes(self) -> str:
        return " | ".join(self.choices) or "a text"


@dataclass(frozen=True, kw_only=True)
class Pattern(Text):
    """A text that is a regular expression."""

    def _read(self, value: Any) -> str:
        text = super()._read(value)
        try:
            with warnings.catch_warnings(action="ignore"):  # of what may once mean something else
                re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise Misfit(f"is not a valid regular expression: {error}; correct it") from None
        return text

    def _takes(self) -> str:
        return "a regular expression"


@dataclass(frozen=True, kw_only=True)
class Many(Rule):
    """A list, each item by one rule; on the command line ``[a, b]``, or with ``commas`` ``a,b``.

    Args:
        item: the rule of each.
        commas: whether a text is a list too, cut at its commas.
        least: fewest items.
    """

    item: Rule = field(default_factory=lambda: Text())
    commas: bool = False
    least: int = 0

    def _read(self, value: Any) -> list[Any]:
        if isinstance(value, Word) and value.startswith("["):
            value = _yaml(value)
        if isinstance(value, str) and self.commas:
            value = [Word(part.strip()) for part in value.split(",")]
        if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
            raise Misfit(f"is not a list; give {self.takes}")
        items = [_fitting(self.item, part) for part in value]
        if len(items) < self.least:
            raise Misfit(f"is empty; give {self.takes}")
        return items

    def _takes(self) -> str:
        return f"a list, each {self.item.takes}"


@dataclass(frozen=True, kw_only=True)
class Table(Rule):
    """A mapping, each value by one rule; on the command line ``{a: 1, b: 2}``.

    Args:
        item: the rule of each value.
        keys: the only keys that fit; none: any.
    """

    item: Rule = field(default_factory=Rule)
    keys: tuple[str, ...] = ()

    def _read(self, value: Any) -> dict[str, Any]:
        if isinstance(value, str) and value.startswith("{"):
            value = _yaml(value)
        if not isinstance(value, Mapping):
            raise Misfit(f"is not a mapping; give {self.takes}")
        for key in value:
            if self.keys and key not in self.keys:
                raise Misfit(f"has {shown(key)}, which is none of {', '.join(self.keys)}; drop it")
        return {str(key): _fitting(self.item, part) for key, part in value.items()}

    def _takes(self) -> str:
        return "a mapping such as {name: value}"


@dataclass(frozen=True, kw_only=True)
class Made(Table):
    """An object that Python makes, passed on as it is; in a recipe a mapping of its fields.

    Args:
        fields: whether a mapping will do.
    """

    fields: bool = True

    def _read(self, value: Any) -> Any:
        if isinstance(value, Word) and value.startswith("{"):
            value = _yaml(value)
        if isinstance(value, Mapping) and self.fields:
            return super()._read(value)
        if isinstance(value, str | numbers.Number | Sequence | Mapping):
            raise Misfit(f"cannot be used; give {self.takes}")
        return value

    def _takes(self) -> str:
        return super()._takes() if self.fields else "an object that Python makes"


@dataclass(frozen=True, kw_only=True)
class OneOf(Rule):
    """The first of several rules that a value fits; what the last one says, where none does."""

    rules: tuple[Rule, ...] = ()

    def _read(self, value: Any) -> Any:
        for rule in self.rules[:-1]:
            try:
                return rule._read(value)
            except Misfit:
                continue
        return self.rules[-1]._read(value)

    def _takes(self) -> str:
        return ", or ".join(rule.takes for rule in self.rules)

    def _alone(self) -> bool:
        return any(rule.stands_alone for rule in self.rules)


def rule_of(annotation: Any) -> Rule:
    """A rule from the declared type alone, for a setting that no table lists yet."""
    is_union = get_origin(annotation) in (Union, UnionType)
    options = get_args(annotation) if is_union else (annotation,)
    optional = NoneType in options
    kinds = [get_origin(option) or option for option in options if option is not NoneType]
    known: dict[Any, type[Rule]] = {bool: Switch, int: Whole, float: Number}
    known |= {list: Many, dict: Table, str: Text}
    found = [known[kind] for kind in known if kind in kinds]  # numbers before text
    if len(found) == 1 and len(kinds) == 1:
        return found[0](optional=optional)
    if found and all(kind in known or kind is Literal for kind in kinds):
        return OneOf(rules=tuple(kind() for kind in found), optional=optional)
    return Rule(optional=optional)


def setting(default: Any, rule: Rule, help: str, *, free: bool = False) -> Any:
    """A field of a settings dataclass: its default, what it takes, and what it does.

    Args:
        default: its value where nothing is said.
        rule: what it takes.
        help: for ``--help`` and the pages.
        free: it changes speed or memory, and nothing of what is learned.
    """
    return field(default=default, metadata={"rule": rule, "help": help, "free": free})


def rules_of(kind: type) -> dict[str, Rule]:
    """The rule of every field of a settings dataclass; by the declared type where it has none."""
    hints = get_type_hints(kind)
    found = fields(kind)  # type: ignore[arg-type]
    return {
        item.name: item.metadata.get("rule") or rule_of(hints[item.name])
        for item in found
        if item.init
    }


def check_fields(settings: Any) -> None:
    """Put every field of a settings object through its rule, in place; call it after making one.

    Raises:
        UserError: for the first value that does not fit.
    """
    for name, rule in rules_of(type(settings)).items():
        object.__setattr__(settings, name, rule.check(name, getattr(settings, name)))


def check_all(
    values: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str = ""
) -> dict[str, Any]:
    """Every value by the rule of its name; those without a rule without words."""
    return {
        str(name): rules[name].check(f"{prefix}{name}", value) if name in rules else plain(value)
        for name, value in values.items()
    }


def reject_unknown(names: Iterable[Any], known: Iterable[str], what: str) -> None:
    """Raise for the first unknown name, with the nearest known one."""
    known = list(known)
    for name in names:
        if name not in known:
            near = _meant(str(name), known)
            advice = f"did you mean {near!r}?" if near else f"known: {', '.join(known[:12])}"
            raise UserError(f"unknown {what} {shown(name)}; {advice}")


def _meant(name: str, known: Sequence[str]) -> str | None:
    """The known name that an unknown one begins, or is nearest to.

    Never one that lifts a safeguard (``resume_anyway``), unless that word was typed.
    """
    offered = [one for one in known if not one.endswith("_anyway") or "any" in name]
    begun = [one for one in offered if len(name) >= 3 and one.startswith(name)]
    near = begun[:1] or difflib.get_close_matches(name, offered, n=1, cutoff=0.5)
    return near[0] if near else None


def shown(value: Any) -> str:
    """A value in a message: short, and nothing that a terminal could not print."""
    if isinstance(value, Word) and isinstance(plain(value), int | float):
        return str(value)[:160]  # a number as it was typed
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits; a list inside itself
        text = f"({type(value).__name__})"
    return text if len(text) <= 160 else f"{text[:150]}...{text[-1]}"


def _as_text(value: Any) -> str:
    if isinstance(value, Enum) and isinstance(value.value, str):
        return value.value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, bool):  # YAML's reading of `save_strategy: no`, `resume...: true`
        return "true" if value else "no"
    if isinstance(value, int | float):
        return str(value)
    raise Misfit("is not a text; give one")


def _fitting(rule: Rule, value: Any) -> Any:
    """One item of a list or mapping; its own value is named, not only the whole."""
    if value is None:
        if rule.optional or type(rule) is Rule:
            return None
        raise Misfit("has an empty item; drop it")
    try:
        return rule._read(value)
    except Misfit as error:
        raise Misfit(f"does not fit: {shown(value)} {error}") from None


def _whole(text: str) -> tuple[int] | None:
    """A whole number as people write it: 5, 010 (ten), 1_000, 0xff, 0o17, 0b11."""
    text = text.strip()
    match = re.fullmatch(r"([-+]?)(0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9_]+)", text)
    if match is None or len(text) > 400:
        return None
    try:
        prefixed = match[2][1:2].isalpha()
        return (int(text, 0) if prefixed else int(text),)
    except ValueError:
        return None


def _nearest(text: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(text, choices, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else "pick one"


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _yaml(text: str) -> Any:
    try:
        return parse_yaml(text, "it")
    except UserError as error:
        raise Misfit(f"cannot be read: {error}") from None
