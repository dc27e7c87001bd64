"""Which methods there are: ours, and those of installed packages (``unigame.methods``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unigame.errors import UserError
from unigame.methods.base import Method
from unigame.registry import Registry

METHODS = Registry(
    "unigame.methods",
    {
        "sft": "unigame.methods.sft:SFT",
        "selfplay": "unigame.methods.selfplay.method:SelfPlay",
        "reca": "unigame.methods.reca.method:RecA",
        "verify": "unigame.methods.verify.method:Verify",
        "imagine": "unigame.methods.imagine.method:Imagine",
    },
)
DEFAULT = "selfplay"
"""What a run plays that lists no method."""


def kind_of(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UserError: an unknown name, or an entry point that is no method.
    """
    found = METHODS.get(name)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(
            f"method {name!r} is registered as {found!r}, which is no unigame.methods.Method; "
            "name its class in the entry point"
        )
    return found


def build_methods(listed: Mapping[str, Mapping[str, Any] | None]) -> list[Method]:
    """The methods of a recipe's ``methods`` block, in its order.

    Raises:
        UserError: an unknown method or setting, or a value that does not fit.
    """
    return [kind_of(name)(**(settings or {})) for name, settings in listed.items()]


def as_methods(methods: Iterable[Method | str] | None) -> list[Method]:
    """What a user hands to the trainer: objects or names; None is self-play at its defaults.

    Raises:
        UserError: neither of the two, or one method twice.
    """
    listed = [DEFAULT] if methods is None else methods
    if isinstance(listed, str | Method):
        listed = [listed]
    built = [kind_of(item)() if isinstance(item, str) else item for item in listed]
    for method in built:
        if not isinstance(method, Method):
            raise UserError(
                f"methods holds {type(method).__name__}; give methods such as SelfPlay(beta=0.5), "
                f"or names: {', '.join(METHODS.names())}"
            )
    names = [method.name for method in built]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"methods lists {', '.join(sorted(twice))} twice; drop one")
    return built
