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

``--learning_rate 1e-4`` sets a field of ``training``, ``--beta 0.25`` that of the listed method
that has it, ``--selfplay.beta`` that of a certain one; a dotted path (``--data.0.path X``,
``--lora.r 8``) or the name of a block (``--model X``) sets anything else. A word stays the word it
is until the rule of its setting reads it: ``--output_dir 007`` is the folder ``007``. Nothing is
loaded here: a wrong key or value ends in one line of :class:`UserError` before any weight is read.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import peft

from unigame.backbones.common import lora_settings
from unigame.backbones.common.quantization import NONE, QUANTIZATIONS
from unigame.data.build import check_sources
from unigame.data.guess import Guess, guess_source
from unigame.data.settings import REPLACED, SOURCES, change_source, check_values
from unigame.errors import UserError
from unigame.methods.base import Method
from unigame.methods.registry import DEFAULT, METHODS, build_methods, kind_of
from unigame.settings.rules import Many, Rule, Text, reject_unknown, shown
from unigame.settings.yaml_words import Word, is_text, parse_yaml, plain, read_yaml_file
from unigame.training.config import MissingHardware, UniGameConfig, training_rules

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
DATA_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".tar")
TREES = ("data", "eval_data", "lora", "training")  # read as YAML where they are set as a whole


@dataclass
class Recipe:
    """A checked recipe; the fields are the blocks that the module docstring describes.

    Attributes:
        lacks: why this machine could not train it; only where it was read for another machine.
        found: what the data named by ``--data FILE`` turned out to be, a line each.
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
    found = apply_overrides(tree, overrides)
    if isinstance(tree["training"], dict) and tree["training"].get("output_dir") is None:
        tree["training"]["output_dir"] = f"runs/{path.stem}"
    recipe = build_recipe(tree, here=here)
    return replace(recipe, found=tuple(found), doubts=tuple(_doubts(recipe, overrides)))


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
    methods = {method.name: method for method in build_methods(_methods(tree))}
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
        if name not in known and (owners := _owners(name, METHODS.builtin)):
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


# ---- overrides -----------------------------------------------------------------------------------


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
        A line for each ``--data FILE``: what was found there.
    """
    found: list[str] = []
    deep: list[tuple[str, Any]] = []
    named: dict[str, list[Any]] = {}
    changes: dict[tuple[str, str], dict[str, Any]] = {}
    pairs = parse_overrides(words)
    for key, word in pairs:  # which methods are listed says whose other settings are
        if key == "methods":
            tree["methods"] = _listed(_valued(key, word), _methods(tree))
    tree["methods"] = _methods(tree)
    for key, word in pairs:
        if key == "methods":
            continue
        typed, key = key, _whole_path(tree, key)
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
    return found


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
    owners = _owners(key, listed)
    if len(owners) > 1:
        said = " or ".join(f"--{owner}.{key}" for owner in owners)
        raise UserError(f"--{key} is a setting of {' and '.join(owners)}; write {said}")
    if not owners:
        for owner in _owners(key, METHODS.names()):
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


def _owners(setting: str, methods: Iterable[str]) -> list[str]:
    """Which of these methods have a setting of that name."""
    found = []
    for name in methods:
        try:
            if setting in kind_of(name).rules():
                found.append(name)
        except UserError:  # another's package that does not load is no concern of this run
            continue
    return found


def _methods(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
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
    return {name: there.get(name, {}) for name in _methods({"methods": value})}


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
