"""Impossible values of every setting, wherever it lives, are one line that names it."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
import pytest

from tests.tiny import tiny_backbone
from unigame.backbones.common import lora_settings
from unigame.data import build_dataset
from unigame.data.build import TYPES
from unigame.data.settings import SOURCES
from unigame.errors import UserError
from unigame.methods.selfplay import SelfPlay
from unigame.settings.rules import Number, OneOf, Rule, Switch, Text, Whole
from unigame.settings.yaml_words import Word
from unigame.training.config import UniGameConfig, training_rules
from unigame.training.recipe import build_recipe, load_recipe
from unigame.training.settings import RULES

HERE = {
    **training_rules(UniGameConfig),
    **SelfPlay.rules(),
}  # the table also has settings of other versions of transformers
NUMBERS = sorted(name for name, rule in HERE.items() if isinstance(rule, Number))
TEXTS = sorted(name for name, rule in HERE.items() if isinstance(rule, Text) and rule.choices)
SWITCHES = sorted(name for name, rule in HERE.items() if isinstance(rule, Switch))
UNBOUNDED = [".inf", "-.inf", ".nan", "inf", "nan", "1e400", "-1e400", "9" * 400, "1" + "0" * 5000]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model: janus-nano\ndata: [{type: synthetic, size: 10}, {type: hf, path: x}]\n"
        "training: {max_steps: 3, use_cpu: true}\n"
    )
    return path


def refused(recipe: Path, name: str, word: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, [f"--{name}={word}"])
    message = str(caught.value)
    assert name.split(".")[-1] in message and "\n" not in message and len(message) < 800, message
    shown = word if len(word) < 150 else word[:100]
    assert shown in message, message


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_finite_and_in_its_range(recipe: Path, name: str) -> None:
    rule = HERE[name]
    assert isinstance(rule, Number)
    for word in (".inf", "1e400", "many"):
        refused(recipe, name, word)
    for word in (*UNBOUNDED, "1e39", "true", "[1]", "{a: 1}", "1,5", "0x", "--1"):
        with pytest.raises(UserError, match=name):
            rule.check(name, Word(word))
    if rule.low > -float("inf"):
        refused(recipe, name, str(rule.low - 7))
        if rule.above:
            refused(recipe, name, str(rule.low))
    if rule.high < float("inf"):
        refused(recipe, name, str(rule.high * 10))
    if isinstance(rule, Whole):
        refused(recipe, name, "1.5")
    if not rule.optional:
        refused(recipe, name, "null")
    for value in (float("nan"), True, [1]):
        with pytest.raises(UserError, match=name):
            if name in SelfPlay.rules():
                SelfPlay(**{name: value})
            else:
                UniGameConfig(output_dir="x", use_cpu=True, **{name: value})


@pytest.mark.parametrize("name", TEXTS)
def test_a_word_of_a_closed_list_is_known(recipe: Path, name: str) -> None:
    for word in ("perhaps", ""):
        refused(recipe, name, word)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_true_or_false(recipe: Path, name: str) -> None:
    for word in ("maybe", "2", ""):
        refused(recipe, name, word)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("seed", "-1"),
        ("seed", "4294967296"),
        ("data_seed", "-1"),
        ("dataloader_num_workers", "-1"),
        ("dataloader_num_workers", "1000000"),
        ("adam_beta1", "1"),
        ("adam_beta2", "2"),
        ("adam_epsilon", "-1"),
        ("save_steps", "0"),
        ("save_steps", "-5"),
        ("save_steps", "1.5"),
        ("eval_steps", "0"),
        ("logging_steps", "-1"),
        ("warmup_steps", "-1"),
        ("save_total_limit", "0"),
        ("beta", ".inf"),
        ("anchor", ".inf"),
        ("learning_rate", ".inf"),
        ("learning_rate", "1e38"),  # Adam's step would not fit into float32
        ("perturber_learning_rate", "1e38"),
        ("perturber_width", "1000000000"),
        ("perturber_depth", "1000000000"),
        ("num_candidates", "1000000000"),
        ("report_to", "tensorbord"),
        ("report_to", "[wandb, tensorbord]"),
        ("report_to", "none,wandb"),
        ("log_level", "loud"),
        ("optim", "adamm"),
        ("lr_scheduler_type", "cosin"),
        ("lr_scheduler_type", "cosine_with_min_lr"),
        ("lr_scheduler_type", "warmup_stable_decay"),
        ("hub_strategy", "never"),
        ("save_strategy", "sometimes"),
        ("train_sampling_strategy", "group_by_length"),
        ("dataloader_persistent_workers", "true"),
        ("dataloader_multiprocessing_context", "fork"),
        ("dataloader_prefetch_factor", "2"),
        ("accelerator_config", "nowhere.json"),
        ("accelerator_config", "{no_such: 1}"),
        ("lr_scheduler_kwargs", "fast"),
        ("gradient_checkpointing_kwargs", "[1]"),
        ("gradient_checkpointing_kwargs", "{reentrant: true}"),
        ("parallelism_config", "{a: 1}"),
        ("accelerator_config", "0"),
        ("torch_compile_mode", "fast"),
        ("debug", "\udcff"),
        ("debug", "everything"),
        ("lora.r", "1000000000"),
        ("lora.r", "-1"),
        ("lora.r", "1.5"),
        ("lora.r", ".inf"),
        ("lora.lora_alpha", ".nan"),
        ("lora.lora_alpha", "0"),
        ("lora.lora_dropout", "1"),
        ("lora.target_modules", "(("),
        ("lora.target_modules", "[]"),
        ("lora.exclude_modules", "*"),
        ("lora.bias", "some"),
        ("lora.init_lora_weights", "gausian"),
        ("lora.use_rslora", "perhaps"),
        ("lora.rank_pattern", "{q_proj: 0}"),
        ("lora.layers_to_transform", "-1"),
        ("lora.task_type", "NO_SUCH_TASK"),
        ("lora.inference_mode", "true"),
        ("lora.eva_config", "{rho: 2}"),
        ("lora.peft_type", "IA3"),
        ("lora.runtime_config", "x"),
        ("data.0.size", "0"),
        ("data.0.size", "1000000000000"),
        ("data.0.seed", "-1"),
        ("data.0.limit", "1.5"),
        ("data.0.weight", "-1"),
        ("data.0.weight", ".inf"),
        ("data.0.weight", "0"),
        ("data.1.verify", "always"),
        ("data.1.hub", "perhaps"),
        ("data.1.columns", "image"),
        ("data.1.limit", "-5"),
        ("dtype", "float16"),
    ],
)
def test_impossible_words_are_named(recipe: Path, name: str, word: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, [f"--{name}={word}"])
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    assert name.split(".")[-1] in message or "training settings" in message, message


@pytest.mark.parametrize("name", sorted(lora_settings.RULES))
def test_numbers_of_lora_are_finite(recipe: Path, name: str) -> None:
    rule = lora_settings.RULES[name]
    words = ["[", *(["{", *UNBOUNDED] if isinstance(rule, Number) else [])]
    if isinstance(rule, Switch | Number | OneOf):
        words = words if name != "init_lora_weights" else [*words, "zero", "2"]
        for word in words:
            refused(recipe, f"lora.{name}", word)


def test_every_field_of_a_source_has_a_rule() -> None:
    for kind, reader in TYPES.items():
        keys = set(inspect.signature(reader).parameters) | {"type", "weight", "limit"}
        assert keys <= set(SOURCES[kind]), kind


def test_every_number_of_peft_has_a_rule() -> None:
    numbers = {item.name for item in fields(peft.LoraConfig) if item.type in ("int", "float")}
    assert {"r", "lora_alpha"} <= numbers <= set(lora_settings.RULES)


@pytest.mark.parametrize(
    "settings",
    [{"r": 10**9}, {"r": 0}, {"lora_alpha": float("nan")}, {"lora_alpha": 0}, {"lora_dropout": 1}],
)
def test_a_lora_config_of_python_is_checked_by_the_same_table(settings: dict[str, Any]) -> None:
    try:
        config = peft.LoraConfig(**settings)
    except ValueError:
        pytest.skip("peft refuses it itself")
    with pytest.raises(UserError, match=f"lora.{next(iter(settings))}"):
        tiny_backbone().add_lora(config)


@pytest.mark.parametrize(
    "source",
    [
        {"type": "synthetic", "size": 5, "seed": -1},
        {"type": "synthetic", "size": 5, "weight": -1},
        {"type": "synthetic", "size": 5, "weight": float("nan")},
        {"type": "synthetic", "size": float("inf")},
        {"type": ["synthetic"]},
    ],
)
def test_sources_of_python_are_checked_too(source: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        build_dataset([source])


def test_a_typo_gets_the_nearest_name(recipe: Path) -> None:
    for words, nearest in (
        (["--report_to", "tensorbord"], "tensorboard"),
        (["--optim", "adamw_torc"], "adamw_torch"),
        (["--lora.init_lora_weights", "gausian"], "gaussian"),
        (["--data.0.tipe", "vqa"], "type"),
    ):
        with pytest.raises(UserError, match=f"did you mean '{nearest}'"):
            load_recipe(recipe, words)


def test_weights_of_sources_are_all_or_none(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"data.1 \(hf\) has no weight"):
        load_recipe(recipe, ["--data.0.weight", "2"])


def test_a_secret_is_not_repeated(recipe: Path) -> None:
    with pytest.raises(UserError, match="hub_token") as caught:
        UniGameConfig(output_dir="x", use_cpu=True, hub_token="hf_sec\udcffret")
    assert "sec" not in str(caught.value)


def test_a_setting_that_no_table_lists_is_read_by_its_type() -> None:
    """So a new transformers, or a subclass of the settings, needs nothing of ours."""
    from dataclasses import dataclass

    @dataclass
    class More(UniGameConfig):
        new_number: float = 0.5
        new_count: int | None = None
        new_name: str = "a"
        new_list: list[str] | str | None = None

    made = More(output_dir="x", use_cpu=True, new_number="1e-3", new_count="7")  # type: ignore[arg-type]
    assert (made.new_number, made.new_count) == (1e-3, 7)
    for wrong in ({"new_number": float("inf")}, {"new_count": 1.5}, {"new_name": None}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            More(output_dir="x", use_cpu=True, **wrong)


def test_made_settings_can_be_made_again(tmp_path: Path) -> None:
    """Copies go through the same checks with the values that transformers derived."""
    from dataclasses import replace

    made = UniGameConfig(output_dir=str(tmp_path), use_cpu=True, eval_strategy="steps")
    again = replace(made, seed=3)
    assert again.seed == 3 and again.eval_strategy == "steps" and again.report_to == []


def test_rules_describe_what_they_take() -> None:
    for table in (RULES, lora_settings.RULES, *SOURCES.values()):
        for name, rule in table.items():
            assert isinstance(rule, Rule) and len(rule.takes) > 3, name


def test_a_tree_of_python_is_checked_too() -> None:
    tree: dict[str, Any] = {"model": "m", "data": [{"type": "synthetic"}]}
    for block, value in (
        ("training", {"learning_rate": float("inf")}),
        ("methods", {"selfplay": {"beta": float("inf")}}),
        ("lora", {"r": float("nan")}),
        ("data", [{"type": "synthetic", "size": -3}]),
        ("data", [{"type": "synthetic", "weight": float("nan")}]),
        ("eval_data", [{"type": 3}]),
        ("model", 3.5 * 1j),
        ("model", ["a"]),
        ("dtype", 16),
        ("adapter", {}),
    ):
        with pytest.raises(UserError):
            build_recipe({**tree, block: value})
