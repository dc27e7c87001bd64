"""Plain values from YAML or the command line -> the type that a dataclass field declares.

YAML reads ``1e-4`` as text and ``no`` as False; both are common in recipes and both are put right
here, by the declared type of the field. Anything that does not fit is a :class:`UserError`.
"""

from __future__ import annotations

from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from unigame.errors import UserError

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def coerce(name: str, value: Any, annotation: Any) -> Any:
    """``value`` as the declared type of field ``name``.

    Raises:
        UserError: if it cannot be read as any of the declared types.
    """
    is_union = get_origin(annotation) in (Union, UnionType)
    options = get_args(annotation) if is_union else (annotation,)
    if value is None and NoneType in options:
        return None
    kinds = [get_origin(option) or option for option in options if option is not NoneType]
    for kind in sorted(kinds, key=_preference):
        try:
            return _READERS.get(kind, _read_other)(value)
        except (TypeError, ValueError):
            continue
    wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise UserError(f"{name}={value!r} is not a valid {wanted}; correct the value")


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    raise TypeError(value)


def _read_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(value)
    number = float(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)


def _read_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(value)
    return float(value)


def _read_str(value: Any) -> str:
    if isinstance(value, bool):  # YAML's reading of `save_strategy: no`, `resume...: true`
        return "true" if value else "no"
    if isinstance(value, dict | list) or value is None:
        raise TypeError(value)
    return str(value)


def _read_dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise TypeError(value)
    return value


def _read_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(value)
    return value


def _read_other(value: Any) -> Any:
    if isinstance(value, Enum | dict):
        return value
    raise TypeError(value)


_READERS = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_str,
    dict: _read_dict,
    list: _read_list,
}
_ORDER = (bool, int, float, list, dict, str)


def _preference(kind: Any) -> int:
    """Numbers before text, so that '3' for ``int | str`` is 3; unknown kinds last."""
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)
