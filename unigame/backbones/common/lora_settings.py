"""The table of LoRA settings: what each field of ``peft.LoraConfig`` takes here.

Recipes, the command line and Python go through it. Fields that it does not list (peft has many for
research methods) are not taken: they need data, a call of their own, or another model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import peft

from unigame.errors import UserError
from unigame.settings.rules import (
    Many,
    Number,
    OneOf,
    Pattern,
    Rule,
    Switch,
    Table,
    Text,
    Whole,
    check_all,
    reject_unknown,
    shown,
)

WIDEST = 8192  # no language model here is wider, and no rank above the width says more
STARTS = (
    "gaussian",
    "olora",
    "pissa",
    "pissa_niter_16",
    "orthogonal",
)  # the others of peft need data or a call
_RANK = Whole(low=1, high=WIDEST)
_ALPHA = Number(low=0, above=True, high=1e6)
_NAMES = Many(least=1)
_SWITCH = Switch()

RULES: dict[str, Rule] = {
    "r": Whole(low=1, high=WIDEST, help="The rank."),
    "lora_alpha": Number(low=0, above=True, high=1e6, help="The product is scaled by alpha / r."),
    "lora_dropout": Number(low=0, high=1, below=True, help="Share of inputs left out."),
    "target_modules": OneOf(
        rules=(_NAMES, Pattern()),
        optional=True,
        help="Names of linear layers of the language model, or a pattern. null: the family's usual "
        "ones; all-linear: every one.",
    ),
    "exclude_modules": OneOf(rules=(_NAMES, Pattern()), optional=True),
    "bias": Text(choices=("none", "all", "lora_only")),
    "use_rslora": _SWITCH,
    "use_dora": _SWITCH,
    "use_qalora": _SWITCH,
    "lora_bias": _SWITCH,
    "fan_in_fan_out": _SWITCH,
    "ensure_weight_tying": _SWITCH,
    "qalora_group_size": Whole(low=1, high=WIDEST),
    "init_lora_weights": OneOf(
        rules=(Switch(), Text(choices=STARTS)), help="How the weights start."
    ),
    "layers_to_transform": OneOf(
        rules=(Whole(low=0, high=10_000), Many(item=Whole(low=0, high=10_000), least=1)),
        optional=True,
    ),
    "layers_pattern": OneOf(rules=(_NAMES, Pattern()), optional=True),
    "rank_pattern": Table(item=_RANK, optional=True),
    "alpha_pattern": Table(item=_ALPHA, optional=True),
    "modules_to_save": Many(optional=True),
    "target_parameters": Many(optional=True),
    "task_type": Text(optional=True),
    "revision": Text(optional=True),
    "base_model_name_or_path": Text(optional=True),
}


def check_lora(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``lora:`` block of a recipe as ``peft.LoraConfig`` takes it.

    Raises:
        UserError: an unknown name, a value outside its range, or one that peft refuses.
    """
    known = {item.name for item in fields(peft.LoraConfig) if item.init}
    reject_unknown(settings, sorted(known), "LoRA setting")
    checked = check_all(settings, RULES, "lora.")
    for name in checked:
        if name not in RULES and checked[name] not in (None, False):
            raise UserError(
                f"lora.{name}={shown(checked[name])} is not supported here; drop it, or choose "
                f"from {', '.join(RULES)}"
            )
    try:
        peft.LoraConfig(**checked)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise UserError(f"lora={checked}: {' '.join(str(error).split())}") from error
    return checked


def check_lora_config(config: peft.LoraConfig) -> None:
    """The numbers of a ``peft.LoraConfig`` that was made without :func:`check_lora`.

    Raises:
        UserError: one is outside its range, or not finite.
    """
    numbers = ("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern")
    check_all({name: getattr(config, name) for name in numbers}, RULES, "lora.")
