"""Recipes: one YAML file per experiment, overridden from the command line, checked before use.

A recipe has these blocks::

    model: janus-nano            # bundled name, local folder or Hub id
    dtype: auto                  # of the frozen weights: auto, float32 or bfloat16
    quantization: none           # of the language model's linear layers: none, nf4 or int8
    adapter: null                # a LoRA adapter to start from
    data:                        # mixture of sources, see unigame.data
      - {type: vqa, ..., weight: 1.0}
    eval_data: []                # sources for the loss on held-out data
    lora: {r: 16, ...}           # peft.LoraConfig
    methods: {selfplay: {...}}   # what is played beside fine-tuning; [sft]: nothing
    training: {...}              # UniGameConfig, which extends transformers.TrainingArguments

What follows a recipe on the command line changes it (:mod:`unigame.training.overrides`). Nothing is
loaded here: a wrong key or value ends in one line of :class:`UserError` before any weight is read.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import peft

from unigame.backbones.common import lora_settings
from unigame.backbones.common.quantization import NONE
from unigame.data.build import check_sources
from unigame.data.settings import REPLACED, check_values
from unigame.errors import UserError
from unigame.methods.base import Method
from unigame.methods.registry import DEFAULT, METHODS, build_methods, kind_of
from unigame.settings.rules import reject_unknown, shown
from unigame.settings.yaml_words import plain, read_yaml_file
from unigame.training.config import MissingHardware, UniGameConfig, training_rules
from unigame.training.overrides import (
    BLOCKS,
    apply_overrides,
    methods_block,
    owners_of,
    parse_overrides,
)

DATA_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".tar")


@dataclass
class Recipe:
    """A checked recipe; the fields are the blocks that the module docstring describes.

    Attributes:
        lacks: why this machine could not train it; only where it was read for another machine.
        found: what the data named by ``--data FILE`` turned out to be, and what else the overrides
            changed, a line each.
        doubts: what is allowed and may not be meant, a line each.
    """

    model: str
    training: UniGameConfig
    data: list[dict[str, Any]]
    eval_data: list[dict[str, Any]] = field(default_factory=list)
    dtype: str = "auto"
    quantization: str = NONE
    adapter: str | None = None
    lora: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=lambda: {DEFAULT: {}})
    lacks: str | None = None
    found: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def weights_dtype(self) -> Literal["float32", "bfloat16"]:
        """In which the model is loaded; by ``dtype: auto`` as ``bf16`` trains it."""
        half = self.training.bf16 if self.dtype == "auto" else self.dtype == "bfloat16"
        return "bfloat16" if half else "float32"

    def lora_config(self) -> peft.LoraConfig | None:
        """The LoRA settings, or None to leave them to the backbone's default."""
        return peft.LoraConfig(**self.lora) if self.lora else None

    def build_methods(self) -> list[Method]:
        """The methods, made anew: each takes part in one run."""
        return build_methods(self.methods)

    def settings_of(self, method: str) -> Any:
        """The settings object of a listed method; None where it is not listed."""
        if method not in self.methods:
            return None
        return kind_of(method)(**self.methods[method]).settings


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, here: bool = True) -> Recipe:
    """Read a recipe, apply ``--key value`` overrides and check every key and value.

    Args:
        path: a YAML file, or the name of a recipe that ships with the package (``janus_nano``).
        overrides: the words after the recipe on the command line.
        here: whether it is to be trained on this machine; False to look at a recipe for another.

    Raises:
        UserError: no such recipe, malformed YAML, unknown key (with the nearest known one), a
            value of the wrong type or out of its range, or a machine that cannot run it.
    """
    path = find_recipe(path)
    tree = read_yaml(path)
    if tree.get("training") is None:
        tree["training"] = {}
    idle = _idle_passes(tree, overrides)
    found = apply_overrides(tree, overrides)
    if isinstance(tree["training"], dict) and tree["training"].get("output_dir") is None:
        tree["training"]["output_dir"] = f"runs/{path.stem}"
    recipe = build_recipe(tree, here=here)
    doubts = [*_doubts(recipe, overrides), *idle]
    return replace(recipe, found=tuple(found), doubts=tuple(doubts))


def build_recipe(tree: dict[str, Any], *, here: bool = True) -> Recipe:
    """Check a recipe given as nested dictionaries. See :func:`load_recipe` for what it raises."""
    reject_unknown(tree, BLOCKS, "recipe block")
    simple = {
        name: BLOCKS[name].check(name, tree.get(name))
        for name in ("model", "dtype", "quantization", "adapter")
    }
    if simple["model"] is None:
        raise UserError("model=None names no checkpoint; give a folder, Hub id or janus-nano")
    data = _sources(tree, "data")
    if not data:
        raise UserError("data is empty; list at least one source, e.g. {type: synthetic}")
    eval_data = _sources(tree, "eval_data")
    settings = _mapping(tree, "training")
    lora = lora_settings.check_lora(_mapping(tree, "lora"))
    methods = {method.name: method for method in build_methods(methods_block(tree))}
    training, lacks = _training(settings, here)
    for method in methods.values():
        method.check(training)
    recipe = Recipe(
        model=simple["model"],
        training=training,
        data=data,
        eval_data=eval_data,
        dtype=simple["dtype"] or "auto",
        quantization=simple["quantization"] or NONE,
        adapter=simple["adapter"],
        lora=lora,
        methods={name: method.as_dict() for name, method in methods.items()},
        lacks=lacks,
    )
    return _with_evaluation(recipe, said="eval_strategy" in settings)


def build_training(settings: dict[str, Any]) -> UniGameConfig:
    """``UniGameConfig`` from plain values or words; it checks them, after their names here."""
    known = training_rules(UniGameConfig)
    for name, value in settings.items():
        if name not in known and (owners := owners_of(name, METHODS.builtin)):
            owner = owners[0]
            raise UserError(
                f"training.{name} is a setting of method {owner}: write methods: {{{owner}: "
                f"{{{name}: {plain(value)}}}}}, or --{owner}.{name} {plain(value)}"
            )
    of_methods = [name for method in METHODS.builtin for name in kind_of(method).rules()]
    reject_unknown(settings, [*known, *of_methods], "training setting")
    return UniGameConfig(**settings)


def find_recipe(path: str | Path) -> Path:
    """The file itself, or the shipped recipe of that name."""
    try:
        if Path(path).is_file():
            return Path(path)
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UserError(f"no recipe at {shown(str(path))}: {error.strerror}") from error
    shipped = Path(str(files("unigame") / "recipes"))
    named = shipped / f"{Path(path).name.removesuffix('.yaml')}.yaml"
    if named.is_file() and len(Path(path).parts) == 1:
        return named
    if Path(path).is_dir():
        raise _no_recipe(Path(path))
    known = ", ".join(sorted(item.stem for item in shipped.glob("*.yaml")))
    raise UserError(f"no recipe at {shown(str(path))}; give a YAML file or a shipped one: {known}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The top-level mapping of a YAML file, its unquoted values as words."""
    is_data = path.suffix.lower() in DATA_ENDINGS
    try:
        tree = read_yaml_file(path)
    except UserError:
        if is_data:
            raise _no_recipe(path) from None
        raise
    if is_data and not (isinstance(tree, dict) and BLOCKS.keys() & tree.keys()):
        raise _no_recipe(path)
    if not isinstance(tree, dict):
        raise UserError(
            f"{path} holds {type(tree).__name__}, not settings; give a YAML file of them, or the "
            "name of a shipped recipe such as janus_nano"
        )
    return tree


def _no_recipe(path: Path) -> UserError:
    """The error for data where a recipe belongs."""
    return UserError(
        f"{path} is no recipe; data goes after --data: unigame train janus_nano --data "
        f"{shlex.quote(str(path))}"
    )


def _doubts(recipe: Recipe, overrides: Sequence[str]) -> list[str]:
    """Own data with the recipe's held-out rows: a loss that says nothing of the data."""
    paths = [key.split(".") for key, _ in parse_overrides(overrides)]
    rows = (*REPLACED, "type")
    own = any(path[0] == "data" and (len(path) < 3 or path[2] in rows) for path in paths)
    if not own or not recipe.eval_data or any(path[0] == "eval_data" for path in paths):
        return []
    held_out = recipe.eval_data[0]
    named = held_out.get("path") or held_out.get("questions") or held_out["type"]
    return [
        f"the data are your own, and the held-out loss is of the recipe's eval_data "
        f"({shown(plain(named))}); give --eval_data FILE, or --eval_strategy no"
    ]


def _idle_passes(tree: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Passes over the data that a recipe's file names beside steps, which decide.

    Nothing is said where the length of the run is typed.
    """
    typed = {key.removeprefix("training.") for key, _ in parse_overrides(overrides)}
    settings = tree["training"]
    if not isinstance(settings, dict) or typed & {"max_steps", "num_train_epochs", "training"}:
        return []
    steps = str(plain(settings.get("max_steps", -1)))
    if "num_train_epochs" not in settings or steps == "-1":
        return []
    return [
        f"num_train_epochs={plain(settings['num_train_epochs'])} acts on nothing: "
        f"max_steps={steps} ends the run; leave one of them out of the recipe"
    ]


# ---- blocks --------------------------------------------------------------------------------------


def _training(settings: dict[str, Any], here: bool) -> tuple[UniGameConfig, str | None]:
    """The settings, and what this machine lacks for them where that is no error."""
    try:
        return build_training(settings), None
    except MissingHardware as error:
        if here:
            raise
        return build_training({**settings, "use_cpu": True, "tf32": None}), str(error)


def _with_evaluation(recipe: Recipe, said: bool) -> Recipe:
    """The recipe with its held-out data, or without where the recipe says that it is not used.

    Args:
        recipe: to complete.
        said: whether it names ``eval_strategy``; by default there is one evaluation, at the end.
    """
    training = recipe.training
    wanted = training.eval_strategy != "no" or training.eval_on_start
    if wanted and not recipe.eval_data:
        raise UserError(
            f"eval_strategy={str(training.eval_strategy.value)!r} with eval_on_start="
            f"{training.eval_on_start} but no eval_data: there is nothing to evaluate on; give "
            "eval_data, or set eval_strategy=no"
        )
    return recipe if wanted or not said else replace(recipe, eval_data=[])


def _mapping(tree: dict[str, Any], block: str) -> dict[str, Any]:
    value = tree.get(block) or {}
    if not isinstance(value, dict):
        raise UserError(
            f"{block}={shown(plain(value))} is not a block of key: value lines; write one"
        )
    return value


def _sources(tree: dict[str, Any], block: str) -> list[dict[str, Any]]:
    value = tree.get(block) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(
            f"{block}={shown(plain(value))} is not a list of sources; write '- type: ...' items"
        )
    sources = [check_values(source, f"{block}.{place}") for place, source in enumerate(value)]
    check_sources(sources, f"{block}.")
    return sources
