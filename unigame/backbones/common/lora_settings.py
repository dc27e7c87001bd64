"""The table of LoRA settings: what each field of ``peft.LoraConfig`` takes here.

Recipes, the command line and Python go through it. Fields that it does not list (peft has many for
research methods) are not taken: they need data, a call of their own, or another model.

With LoRA off a model must be the base model: captions, styled drawings and verification of the game
are the base's. So settings that write into the base's weights, or train them, are refused.
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
from unigame.settings.yaml_words import plain

WIDEST = 8192  # no language model here is wider, and no rank above the width says more
STARTS = ("gaussian", "orthogonal")  # the others of peft need data or a call, or are REWRITING
REWRITING = ("corda", "loftq", "lora_ga", "olora", "pissa")
"""How starts begin that leave W - BA, or a rounded W, in the base layer."""
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
    "bias": Text(choices=("none",)),
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
    "target_parameters": Many(optional=True),
    "task_type": Text(optional=True),
    "revision": Text(optional=True),
    "base_model_name_or_path": Text(optional=True),
}


def check_lora(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``lora:`` block of a recipe as ``peft.LoraConfig`` takes it.

    Raises:
        UserError: an unknown name, a value outside its range, one that peft refuses, or one with
            which the model without LoRA is not the base model.
    """
    known = {item.name for item in fields(peft.LoraConfig) if item.init}
    reject_unknown(settings, sorted(known), "LoRA setting")
    check_base_stays({name: plain(value) for name, value in settings.items()})
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
    """A ``peft.LoraConfig`` that was made without :func:`check_lora`: numbers, and the base.

    Raises:
        UserError: a number is outside its range or not finite, or without LoRA the model is not the
            base model.
    """
    check_base_stays(vars(config))
    numbers = ("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern")
    check_all({name: getattr(config, name) for name in numbers}, RULES, "lora.")


def check_base_stays(
    settings: Mapping[str, Any], where: str = "lora.", instead: str | None = None
) -> None:
    """That the model without LoRA is the base model.

    Args:
        settings: fields of ``peft.LoraConfig`` by name.
        where: what stands before a name in a message.
        instead: what to do; None: the value to give.

    Raises:
        UserError: a setting writes into the base's weights, trains them, or changes its layers.
    """
    start, bias = settings.get("init_lora_weights"), settings.get("bias")
    rewrites = isinstance(start, str) and start.lower().startswith(REWRITING)
    starts = ", ".join(("true", "false", *STARTS))
    faults = {
        "init_lora_weights": (rewrites, "writes into the base model's weights", f"give {starts}"),
        "bias": (bias in ("all", "lora_only"), "trains the base model's biases", "give none"),
        "modules_to_save": (None, "trains modules of the base model", "drop it"),
        "layer_replication": (None, "repeats layers of the base model", "drop it"),
        "kasa_config": (None, "cuts the base model's weights", "drop it"),
    }
    for name, (fault, does, advice) in faults.items():
        value = settings.get(name)
        if bool(value) if fault is None else fault:
            raise UserError(
                f"{where}{name}={shown(value)} {does}, so that without LoRA the model is no longer "
                f"the base that training compares with; {instead or advice}"
            )
