"""Presets of ``evidence.py``: read, merged, checked, and made whole, so that they can be frozen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from unigame.errors import UserError
from unigame.evaluation.attacks.adversary import adversary_for
from unigame.methods.registry import build_methods
from unigame.methods.selfplay import SelfPlaySettings
from unigame.settings.rules import reject_unknown
from unigame.training.recipe import Recipe, load_recipe

TABLE = Path(__file__).with_name("evidence_presets.yaml")
KEYS = (
    *("recipe", "model", "severity", "steps", "questions", "extra", "training", "game"),
    *("texts", "task_scenes", "measured", "arms", "frozen"),
)
MEASURED = (
    *("ood", "id", "groups", "attacked", "attack_steps"),
    *("drawings", "task", "task_ood", "score"),
)
ARM_KEYS = ("trained", "extra", "game", "methods", "real_pairs", "real_scenes")
EXTRA = ("split", "redrawn")
REAL = ("rows", "weight")
TEXTS = "captions.jsonl"
"""In an arm's ``texts``: the captions that each seed's arms share."""
OF_TRAINING = (
    "per_device_train_batch_size",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "cache_codes",
)


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        trained: False: the model as it comes.
        methods: what is played, every setting said.
        extra: real rows in the place of the game's: their split, and whether they are redrawn.
    """

    trained: bool
    methods: dict[str, dict[str, Any]]
    extra: dict[str, Any] | None
    real_pairs: dict[str, Any] | None = None
    """Real pictures of the captions, to draw: rows a step, and their weight."""
    real_scenes: dict[str, Any] | None = None
    """Real pictures of the captions, with the new task's questions: likewise."""

    @property
    def alone(self) -> int:
        """Steps in which only players move, which come on top of U's."""
        return max((int(m.get("warm_up_steps", 0)) for m in self.methods.values()), default=0)


@dataclass(frozen=True)
class Settings:
    """A preset with everything that it takes from its recipe; equal settings, equal runs."""

    severity: str
    steps: int
    questions: int
    extra: int
    measured: dict[str, int]
    lora: dict[str, Any]
    training: dict[str, Any]
    game: dict[str, Any]
    arms: dict[str, Arm]
    weights: str = ""
    """Digest of the model's weights."""
    texts: int = 0
    """Captions of new scenes, without pictures, for the methods that draw from text alone."""
    task_scenes: int = 0
    """Scenes of a new task, "where is the red disc?", that are trained on in the place of
    ``questions``; 0: no new task."""

    @property
    def plays_game(self) -> bool:
        """Whether anything depends on ``game``: an arm, its number of added rows, or the attack."""
        arms = self.arms.values()
        plays = any(arm.extra or "selfplay" in arm.methods for arm in arms)
        return plays or self.measured["attacked"] > 0

    def text(self) -> str:
        """What ``settings.json`` holds, and what the hash is of.

        Without what a preset does not use, so that it keeps its hash as others learn new words.
        """
        found = asdict(self)
        for name in ("texts", "task_scenes"):
            if not found[name]:
                del found[name]
        if not self.plays_game:
            del found["game"]
        for arm in found["arms"].values():
            for name in ("real_pairs", "real_scenes"):
                if arm[name] is None:
                    del arm[name]
        return json.dumps(found, indent=1, sort_keys=True, default=str) + "\n"

    def sha256(self) -> str:
        """Of ``text``."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def read_presets(file: Path = TABLE) -> dict[str, dict[str, Any]]:
    """The table as it is written."""
    table: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return table


def preset(name: str, changes: Sequence[str] = (), file: Path = TABLE) -> dict[str, Any]:
    """One preset, merged with what it is like, and changed by ``KEY=VALUE`` texts.

    Raises:
        UserError: an unknown preset or key.
    """
    table = read_presets(file)
    reject_unknown([name], table, "preset")
    found = dict(table[name])
    if (like := found.pop("like", None)) is not None:
        found = _merged(preset(like, (), file), {"frozen": None, **found})
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}: write KEY=VALUE, such as game.eps_max=0.4")
        node = found
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {change}: {part} holds no settings")
        node[last] = yaml.safe_load(value)
    reject_unknown(found, KEYS, "preset setting")
    reject_unknown(found["measured"], MEASURED, "number of what is measured")
    return found


def settle(found: Mapping[str, Any], weights: str = "") -> Settings:
    """Fill in what the recipe says, and check every setting of every arm.

    Args:
        found: of ``preset``.
        weights: digest of the model's.

    Raises:
        UserError: a setting that does not exist, or a value that does not fit.
    """
    recipe = load_recipe(found["recipe"], here=False)
    if "selfplay" not in recipe.methods:
        raise UserError(f"recipe {found['recipe']} lists no method selfplay to take settings from")
    training = found.get("training") or {}
    reject_unknown(training, OF_TRAINING, "training setting of a preset")
    game = _methods({"selfplay": {**recipe.methods["selfplay"], **(found["game"] or {})}})
    adversary_for(SelfPlaySettings(**game["selfplay"]))  # it attacks all arms
    arms = {
        str(name): _arm(str(name), dict(arm or {}), game["selfplay"])
        for name, arm in found["arms"].items()
        if arm is not False  # of a preset that this one is like, and left out here
    }
    _check_texts(arms, found)
    return Settings(
        severity=found["severity"],
        steps=found["steps"],
        questions=found["questions"],
        extra=found["extra"],
        measured=dict(found["measured"]),
        lora=recipe.lora,
        training={**_training(recipe), **training},
        game=game["selfplay"],
        arms=arms,
        weights=weights,
        texts=found.get("texts") or 0,
        task_scenes=found.get("task_scenes") or 0,
    )


def _check_texts(arms: Mapping[str, Arm], found: Mapping[str, Any]) -> None:
    for name, arm in arms.items():
        by_text = any(method.get("texts") == TEXTS for method in arm.methods.values())
        if (by_text or arm.real_pairs or arm.real_scenes) and not found.get("texts"):
            raise UserError(f"arm {name!r} needs captions; set texts, how many there are")
        if arm.real_scenes and not found.get("task_scenes"):
            raise UserError(f"arm {name!r} has real scenes of a new task; set task_scenes")


def _training(recipe: Recipe) -> dict[str, Any]:
    found = {name: getattr(recipe.training, name) for name in OF_TRAINING}
    return {name: getattr(value, "value", value) for name, value in found.items()}


def _arm(name: str, arm: dict[str, Any], game: dict[str, Any]) -> Arm:
    reject_unknown(arm, ARM_KEYS, f"setting of arm {name!r}:")
    if len(arm) > 1 and set(arm) != {"methods", "game"}:
        raise UserError(
            f"arm {name!r} is {' and '.join(arm)}; it can be one of them, or methods and game"
        )
    methods = arm.get("methods") or {"sft": {}}
    if "game" in arm:  # after the others, whose drawings it may take
        beside = arm.get("methods") or {}
        if "selfplay" in beside:
            raise UserError(f"arm {name!r} has selfplay in methods and a game; name it once")
        methods = {**beside, "selfplay": {**game, **(arm["game"] or {})}}
    extra = arm.get("extra")
    reject_unknown(extra or {}, EXTRA, f"setting of arm {name!r}: extra")
    for kind in ("real_pairs", "real_scenes"):
        reject_unknown(arm.get(kind) or {}, REAL, f"setting of arm {name!r}: {kind}")
    real = arm.get("real_pairs"), arm.get("real_scenes")
    return Arm(arm.get("trained", True), _methods(methods), extra, *real)


def _methods(listed: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Methods with all of their settings in plain values; refuses what they refuse."""
    return {method.name: method.as_dict() for method in build_methods(listed)}


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of both; where both have one, that of ``high``."""
    found = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _merged(found[key], value) if both else value
    return found
